//! Tokens and enrolled executors in a store.

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;

use super::StoreError;
use crate::model::{Subject, Token, TokenId};

/// The outcome of a use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseOutcome {
    /// The use is permitted, and counted if this token's uses are counted.
    Allowed,
    /// All uses are used up.
    UsedUp,
    /// The token is gone, revoked, expired or blocked.
    Inactive,
}

/// The outcome of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotateOutcome {
    /// The token with its new secret.
    Rotated(Box<Token>),
    /// The token is revoked or expired.
    Inactive,
    /// The token is an enrolled executor, which has a key and no secret.
    HasKey,
    /// The token does not exist.
    NotFound,
}

/// The outcome of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// The key is enrolled, and the join token used once.
    Enrolled,
    /// The key is or was enrolled before. Nothing has changed.
    KeyKnown,
    /// All uses of the join token are used up.
    UsedUp,
    /// The join token is gone, revoked or expired.
    Inactive,
    /// The environment was revoked after the join token was created.
    EnvironmentRevoked,
}

/// Tokens, enrolled executors and blocked subjects. One transaction per method.
#[async_trait]
pub trait TokenStore: Send + Sync + 'static {
    /// Adds a token that is created at its `created_at`, up to
    /// [`TOKENS_MAX`](super::capacity::TOKENS_MAX). Purges ended tokens without a
    /// key after [`TOKENS_ENDED_KEPT`](super::capacity::TOKENS_ENDED_KEPT), or
    /// earlier if there is no room.
    async fn insert_token(&self, token: &Token, event: &AuditEvent) -> Result<(), StoreError>;

    /// Returns the token with this id, in any state.
    async fn token(&self, id: &TokenId) -> Result<Option<Token>, StoreError>;

    /// Returns at most `limit` tokens whose id is greater than `after`, ordered by
    /// id.
    async fn tokens(&self, after: Option<&TokenId>, limit: u32) -> Result<Vec<Token>, StoreError>;

    /// Returns the enrolled executor with this Ed25519 key, in any state.
    async fn token_by_key(&self, public: &[u8; 32]) -> Result<Option<Token>, StoreError>;

    /// Gives an active token a new secret with the hash `new`. The old secret
    /// stays valid for `overlap` seconds; one from a rotation before that ends.
    async fn rotate_token(
        &self,
        id: &TokenId,
        new: &[u8; 32],
        overlap: u64,
        now: u64,
        event: &AuditEvent,
    ) -> Result<RotateOutcome, StoreError>;

    /// Counts a use, unless this token's uses are not counted. Of any number of
    /// calls, as many as the maximum get [`UseOutcome::Allowed`].
    async fn use_token(&self, subject: &Subject, now: u64) -> Result<UseOutcome, StoreError>;

    /// Adds `token`, which has a key and covers one environment, and uses `join`
    /// once; up to [`ENROLLED_MAX`](super::capacity::ENROLLED_MAX).
    async fn enrol(
        &self,
        token: &Token,
        join: &TokenId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<EnrolOutcome, StoreError>;

    /// Marks a token as revoked at `now`, or blocks a foreign subject, unless that
    /// was done before, and adds a revocation. Returns `false` if there is no such
    /// token.
    async fn revoke(
        &self,
        subject: &Subject,
        now: u64,
        event: &AuditEvent,
    ) -> Result<bool, StoreError>;

    /// Whether a foreign subject was revoked.
    async fn is_blocked(&self, subject: &Subject) -> Result<bool, StoreError>;
}
