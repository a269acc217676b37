//! From a ticket to a guard, or to the reply that refuses the upgrade.

use std::net::IpAddr;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use rendez_proto::registry::error::{ErrorBody, ErrorCode, ErrorDetail};
use rendez_registry::{Admitted, TicketRefused};
use rendez_relay_core::{JoinError, Level};

use super::Rendezvous;
use crate::connections::{ConnectionGuard, ConnectionPermit, audit_refusal};

impl Rendezvous {
    /// Joins first and then checks the ticket a second time, so that no revocation
    /// in between is missed.
    pub(super) async fn admit(
        &self,
        ticket: &str,
        source: Option<IpAddr>,
        permit: ConnectionPermit,
    ) -> Result<ConnectionGuard, UpgradeRefused> {
        if self.connections.is_closed() {
            return Err(UpgradeRefused::ShuttingDown);
        }
        let admitted = self.registry.tickets().admit(ticket, source).await?;
        permit.show_credential();
        let joined = ConnectionGuard::join(&self.connections, &self.registry, &admitted, permit);
        let guard = joined.inspect_err(|error| self.audit_join_error(&admitted, error))?;
        if !self.registry.tickets().is_still_valid(&admitted).await.map_err(TicketRefused::from)? {
            return Err(TicketRefused::Revoked.into());
        }
        guard.open();
        Ok(guard)
    }

    /// Audits a connection that exceeds a limit.
    fn audit_join_error(&self, Admitted { claims, subject, .. }: &Admitted, error: &JoinError) {
        let limit = match error {
            JoinError::Stale { .. } => return,
            JoinError::TooManyOrchestrators => "orchestrators of the executor",
            JoinError::Quota(Level::Node) => "connections of the node",
            JoinError::Quota(Level::Environment) => "connections of the environment",
            JoinError::Quota(Level::Token) => "connections of the token",
        };
        let registry = &self.registry;
        audit_refusal(registry, subject, &claims.environment, &claims.registration, limit);
    }
}

/// Why an upgrade was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeRefused {
    #[error("this is a websocket endpoint; send an upgrade request")]
    NotAnUpgrade,
    #[error("the relay is shutting down; try again")]
    ShuttingDown,
    #[error(transparent)]
    Ticket(#[from] TicketRefused),
    #[error(transparent)]
    Join(#[from] JoinError),
}

impl UpgradeRefused {
    fn status(&self) -> (StatusCode, ErrorCode) {
        match self {
            UpgradeRefused::NotAnUpgrade => (StatusCode::BAD_REQUEST, ErrorCode::InvalidRequest),
            UpgradeRefused::Ticket(TicketRefused::Unavailable(_))
            | UpgradeRefused::ShuttingDown
            | UpgradeRefused::Join(JoinError::TooManyOrchestrators | JoinError::Quota(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable)
            }
            UpgradeRefused::Ticket(TicketRefused::Superseded)
            | UpgradeRefused::Join(JoinError::Stale { .. }) => {
                (StatusCode::CONFLICT, ErrorCode::RegistrationSuperseded)
            }
            UpgradeRefused::Ticket(_) => (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized),
        }
    }

    pub(super) fn into_response(self) -> Response {
        let (status, code) = self.status();
        tracing::debug!(status = status.as_u16(), why = %self, "refused an upgrade");
        let error = ErrorDetail::new(code, self.to_string());
        (status, axum::Json(ErrorBody { error, rendez: None })).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rendez_proto::audit::AuditKind;
    use rendez_proto::ids::Generation;
    use rendez_proto::profile::Profile;
    use rendez_proto::ticket::{Claims, Purpose};
    use rendez_registry::{Options, Registry, model};

    use super::*;
    use crate::connections::{ConnectionLimit, ConnectionTable, StrangerBounds};

    /// The ticket is one of an issuer's token that ends with its websockets.
    #[tokio::test]
    async fn audit_names_the_tickets_requester() {
        let state = tempfile::tempdir().unwrap();
        let registry = Registry::open(state.path(), Options::default()).await.unwrap();
        let connections = Arc::<ConnectionTable>::default();
        let rendezvous = Rendezvous { registry: registry.clone(), connections };
        let subject = "jwt_03dba21c_d7BQaXTTBnDeFVeJi2qskQ".parse::<model::Subject>().unwrap();
        let until = Some(1_800_000_300);
        let ticket = model::TicketSubject { subject: subject.clone(), until };
        let claims = Claims {
            purpose: Purpose::Executor,
            environment: "box".parse().unwrap(),
            registration: "reg_a".parse().unwrap(),
            generation: Generation(1),
            subject: ticket.to_string(),
            profile: Profile::NoiseHybridIkV1,
            expires_at_unix_secs: None,
            id: [1; 16],
            binding: [0; 32],
        };
        let admitted = Admitted { claims, subject: subject.clone(), until };
        let permit = ConnectionLimit::new(1, StrangerBounds::NONE).admit(None).await.unwrap();
        let joined = ConnectionGuard::join(&rendezvous.connections, &registry, &admitted, permit);
        let guard = joined.unwrap();
        guard.open();
        // The subject that `rendez token revoke` takes.
        assert_eq!(guard.connection().subject, subject);
        drop(guard);
        rendezvous.audit_join_error(&admitted, &JoinError::TooManyOrchestrators);

        registry.audit().flush().await.unwrap();
        let rows = registry.audit().page(0).await.unwrap().rows;
        let rows: Vec<_> = rows.into_iter().map(|row| (row.event.kind, row.event.actor)).collect();
        let by = |kind| (kind, Some(subject.to_string()));
        assert_eq!(rows, [AuditKind::Open, AuditKind::Close, AuditKind::Quota].map(by));
    }
}
