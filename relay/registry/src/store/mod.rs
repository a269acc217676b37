//! What the registry keeps. One transaction per method; `now` is an argument,
//! in seconds since 1970.
//!
//! What must leave a trace takes an `act`: the audit log's row of it, which is
//! written in the same transaction. So it is there if, and only if, the thing
//! was done.

pub mod audit;
pub mod capacity;
pub mod records;
pub mod sqlite;
pub(crate) mod timed;

#[cfg(test)]
pub(crate) mod contract;

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::{limits, ticket};
use std::time::Duration;

use crate::model::{
    Environment, NewRegistration, Registration, Subject, Token, TokenId, TokenPattern, Withdrawal,
};

/// How often old rows of the audit log and of the history are looked for.
pub(crate) const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

const _: () = assert!(PRUNE_INTERVAL.as_secs() <= limits::KEEP_MIN.as_secs());

/// Pause after the database refused what is written in the background.
pub(crate) const WRITE_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Busy, or not reachable: the same call may succeed later.
    #[error("the database is not available: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A row is not what this version wrote. The operator has to act.
    #[error("the database holds an invalid {0}")]
    Corrupt(&'static str),
    /// There may be no more of these. The caller asked for too much.
    #[error("there are {max} {what} already, which is the limit")]
    LimitReached {
        /// Of what.
        what: &'static str,
        /// How many.
        max: u32,
    },
}

/// A ticket that is about to be used, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The ticket.
    pub ticket: [u8; ticket::ID_BYTES],
    /// When it ends; its record is kept at least until then.
    pub expires_at: u64,
    /// Who asked for it, and must be active still.
    pub subject: Subject,
}

/// What became of a [`Redemption`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeemed {
    /// It is used now.
    Now,
    /// It was used before.
    Before,
    /// Its subject is gone, revoked or expired; the ticket is not used.
    TokenInactive,
}

/// What became of a use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used {
    /// It counts, if this token's uses are counted.
    Now,
    /// The token was used as often as it may be.
    UsedUp,
    /// It is gone, revoked, expired or blocked.
    Inactive,
}

/// What became of a claim to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It is the current one, and a use of its token.
    Current(Registration),
    /// Its token was used as often as it may be.
    UsedUp,
    /// Its subject is gone, revoked, expired or blocked.
    Inactive,
    /// The environment was revoked after its subject's credential was made.
    EnvironmentRevoked,
}

/// What became of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rotated {
    /// The token with its new secret.
    To(Box<Token>),
    /// It is revoked or expired.
    Inactive,
    /// It is an enrolled executor's, which has a key and no secret.
    HasKey,
    /// There is none.
    Unknown,
}

/// What became of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enrolled {
    /// The key is good from now on, and the join token used once more.
    Now,
    /// The key is or was somebody's; nothing has changed.
    KeyKnown,
    /// The join token was used as often as it may be.
    UsedUp,
    /// The join token is gone, revoked or expired.
    Inactive,
    /// The environment was revoked after the join token had been made.
    EnvironmentRevoked,
}

/// Some of what was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawn {
    /// In order, with their numbers.
    pub list: Vec<(u64, Withdrawal)>,
    /// Whether nothing is missing between the number asked for and the list:
    /// old ones are not kept.
    pub complete: bool,
}

/// The registry's memory.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Adds a token that is made at its `created_at`, up to
    /// [`capacity::TOKENS_MAX`]. Ended ones without a key may be
    /// forgotten for it: after [`capacity::TOKENS_ENDED_KEPT`], or if
    /// there is no room.
    async fn insert_token(&self, token: &Token, act: &AuditEvent) -> Result<(), StoreError>;

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
        act: &AuditEvent,
    ) -> Result<Rotated, StoreError>;

    /// Counts a use, unless this token's uses are not counted. Of any number of
    /// calls, as many as the maximum get [`Used::Now`].
    async fn use_token(&self, subject: &Subject, now: u64) -> Result<Used, StoreError>;

    /// Adds `token`, which has a key and covers one environment, and uses
    /// `join` once; up to [`capacity::ENROLLED_MAX`].
    async fn enrol(
        &self,
        token: &Token,
        join: &TokenId,
        now: u64,
        act: &AuditEvent,
    ) -> Result<Enrolled, StoreError>;

    /// Marks a token as revoked at `now`, or blocks a foreign subject, unless
    /// it is already, and notes a withdrawal. `false`: there is no such token.
    async fn revoke(
        &self,
        subject: &Subject,
        now: u64,
        act: &AuditEvent,
    ) -> Result<bool, StoreError>;

    /// Whether a foreign subject was revoked.
    async fn is_blocked(&self, subject: &Subject) -> Result<bool, StoreError>;

    /// Makes `new` the current registration of its environment, which is
    /// created if needed, up to [`capacity::ENVIRONMENTS_MAX`]. Where
    /// there is no room, some others are forgotten: those without a registration,
    /// and those that are away longest, for
    /// [`capacity::ENVIRONMENTS_AWAY_KEPT`] at least; none that was
    /// revoked. The registration's generation is higher than any that the
    /// environment had. Counts as a use of the subject's token.
    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<Claimed, StoreError>;

    /// The environment's current registration.
    async fn registration(
        &self,
        environment: &EnvironmentId,
    ) -> Result<Option<Registration>, StoreError>;

    /// At most `limit` environments that any of these patterns covers, whose id
    /// is greater than `after`, ordered by id; those without a registration
    /// included.
    async fn environments(
        &self,
        covered: &[TokenPattern],
        after: Option<&EnvironmentId>,
        limit: u32,
    ) -> Result<Vec<Environment>, StoreError>;

    /// One environment, also if its registration was ended. `None`: nobody has
    /// registered, or it was forgotten.
    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError>;

    /// Ends the environment's current registration and notes a withdrawal.
    /// `None`: there is none.
    async fn remove_registration(
        &self,
        environment: &EnvironmentId,
        now: u64,
        act: &AuditEvent,
    ) -> Result<Option<RegistrationId>, StoreError>;

    /// Ends the environment's registration, revokes the executors that are
    /// enrolled for it, refuses it to all credentials that were made until now,
    /// and notes a withdrawal. `false`: nobody ever registered.
    async fn revoke_environment(
        &self,
        environment: &EnvironmentId,
        now: u64,
        act: &AuditEvent,
    ) -> Result<bool, StoreError>;

    /// The number of the last withdrawal, 0 if there was none.
    async fn last_withdrawal(&self) -> Result<u64, StoreError>;

    /// At most `limit` withdrawals with a greater number than `after`.
    async fn withdrawals(&self, after: u64, limit: u32) -> Result<Withdrawn, StoreError>;

    /// Uses a ticket. Of any number of calls with the same ticket, one gets
    /// [`Redeemed::Now`].
    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<Redeemed, StoreError>;
}

/// What is written in the background, and decides nothing.
pub trait Background: records::Records + audit::AuditStore {}

impl<T: records::Records + audit::AuditStore> Background for T {}
