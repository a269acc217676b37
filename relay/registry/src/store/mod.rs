//! What the registry keeps. One transaction per method; `now` is an argument,
//! in seconds since 1970.

pub mod audit;
pub mod records;
pub mod sqlite;

#[cfg(test)]
pub(crate) mod contract;

use async_trait::async_trait;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::ticket;

use crate::model::{Environment, NewRegistration, Registration, Token, TokenId};

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
    /// The token that asked for it, which must be active still.
    pub subject: TokenId,
}

/// What became of a [`Redemption`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redeemed {
    /// It is used now.
    Now,
    /// It was used before.
    Before,
    /// Its token is gone, revoked or expired; the ticket is not used.
    TokenInactive,
}

/// The registry's memory.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Adds a token, up to [`rendez_proto::limits::TOKENS_MAX`].
    async fn insert_token(&self, token: &Token) -> Result<(), StoreError>;

    /// The token with this id, in whatever state.
    async fn token(&self, id: &TokenId) -> Result<Option<Token>, StoreError>;

    /// At most `limit` tokens whose id is greater than `after`, ordered by id.
    async fn tokens(&self, after: Option<&TokenId>, limit: u32) -> Result<Vec<Token>, StoreError>;

    /// Marks a token as revoked at `now`, unless it is already. `false`: there
    /// is no such token.
    async fn revoke_token(&self, id: &TokenId, now: u64) -> Result<bool, StoreError>;

    /// Makes `new` the current registration of its environment, which is
    /// created if needed, up to [`rendez_proto::limits::ENVIRONMENTS_MAX`]. Its
    /// generation is one more than the environment's last.
    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<Registration, StoreError>;

    /// The environment's current registration.
    async fn registration(
        &self,
        environment: &EnvironmentId,
    ) -> Result<Option<Registration>, StoreError>;

    /// At most `limit` environments whose id is greater than `after`, ordered
    /// by id.
    async fn environments(
        &self,
        after: Option<&EnvironmentId>,
        limit: u32,
    ) -> Result<Vec<Environment>, StoreError>;

    /// One environment.
    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError>;

    /// Uses a ticket. Of any number of calls with the same ticket, one gets
    /// [`Redeemed::Now`].
    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<Redeemed, StoreError>;
}

/// What is written in the background, and decides nothing.
pub trait Background: records::Records + audit::AuditStore {}

impl<T: records::Records + audit::AuditStore> Background for T {}
