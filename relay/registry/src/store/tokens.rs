//! Tokens and enrolled executors in a store.

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;

use super::StoreError;
use crate::model::{Subject, Token, TokenId};

/// What became of a use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UseOutcome {
    /// It counts, if this token's uses are counted.
    Allowed,
    /// The token was used as often as it may be.
    UsedUp,
    /// It is gone, revoked, expired or blocked.
    Inactive,
}

/// What became of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RotateOutcome {
    /// The token with its new secret.
    Rotated(Box<Token>),
    /// It is revoked or expired.
    Inactive,
    /// It is an enrolled executor's, which has a key and no secret.
    HasKey,
    /// There is none.
    NotFound,
}

/// What became of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnrolOutcome {
    /// The key is good from now on, and the join token used once more.
    Enrolled,
    /// The key is or was somebody's; nothing has changed.
    KeyKnown,
    /// The join token was used as often as it may be.
    UsedUp,
    /// The join token is gone, revoked or expired.
    Inactive,
    /// The environment was revoked after the join token had been made.
    EnvironmentRevoked,
}

/// Tokens, enrolled executors and blocked subjects. One transaction per method.
#[async_trait]
pub trait TokenStore: Send + Sync + 'static {
    /// Adds a token that is made at its `created_at`, up to
    /// [`TOKENS_MAX`](super::capacity::TOKENS_MAX). Ended ones without a key may be
    /// forgotten for it: after [`TOKENS_ENDED_KEPT`](super::capacity::TOKENS_ENDED_KEPT), or if
    /// there is no room.
    async fn insert_token(&self, token: &Token, event: &AuditEvent) -> Result<(), StoreError>;

    /// The token with this id, in whatever state.
    async fn token(&self, id: &TokenId) -> Result<Option<Token>, StoreError>;

    /// At most `limit` tokens whose id is greater than `after`, ordered by id.
    async fn tokens(&self, after: Option<&TokenId>, limit: u32) -> Result<Vec<Token>, StoreError>;

    /// The enrolled executor with this Ed25519 key, in whatever state.
    async fn token_by_key(&self, public: &[u8; 32]) -> Result<Option<Token>, StoreError>;

    /// Gives an active token a new secret, whose hash is `new`, and lets the
    /// old one be good for `overlap` seconds more. One from a rotation before
    /// that ends.
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

    /// Adds `token`, which has a key and covers one environment, and uses
    /// `join` once; up to [`ENROLLED_MAX`](super::capacity::ENROLLED_MAX).
    async fn enrol(
        &self,
        token: &Token,
        join: &TokenId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<EnrolOutcome, StoreError>;

    /// Marks a token as revoked at `now`, or blocks a foreign subject, unless
    /// it is already, and notes a withdrawal. `false`: there is no such token.
    async fn revoke(
        &self,
        subject: &Subject,
        now: u64,
        event: &AuditEvent,
    ) -> Result<bool, StoreError>;

    /// Whether a foreign subject was revoked.
    async fn is_blocked(&self, subject: &Subject) -> Result<bool, StoreError>;
}
