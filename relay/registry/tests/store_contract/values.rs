//! Values that the tests store.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::keys::PublicKey;
use rendez_registry::model::{Credential, Role, Token, TokenId};

/// The audit log's row of a change that a test makes.
pub(crate) fn audit_event() -> AuditEvent {
    AuditEvent::new(AuditKind::Admin, 1_800_000_000)
}

pub(crate) fn env(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

pub(crate) fn key(n: u8) -> PublicKey {
    PublicKey::hybrid([n; 32], Box::new([n; 1184]))
}

/// Token number `n`, for every environment whose name begins with `dev-`. The
/// second one expires.
pub(crate) fn token(n: u8, role: Role) -> Token {
    let credential = Credential::Secret { hash: [n; 32], previous: None };
    let environments = "dev-*".parse().unwrap();
    Token {
        label: format!("number {n}"),
        expires_at: (n == 2).then_some(1000),
        ..Token::new(TokenId::from_random([n; 8]), role, environments, credential, 10)
    }
}
