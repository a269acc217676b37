//! Environments and their registrations in a store.

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;
use rendez_proto::ids::{EnvironmentId, RegistrationId};

use super::StoreError;
use crate::model::{Environment, NewRegistration, Registration, TokenPattern};

/// What became of a claim to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// It is the current one, and a use of its token.
    Registered(Registration),
    /// Its token was used as often as it may be.
    UsedUp,
    /// Its subject is gone, revoked, expired or blocked.
    Inactive,
    /// The environment was revoked after its subject's credential was made.
    EnvironmentRevoked,
}

/// Environments and their registrations. One transaction per method.
#[async_trait]
pub trait RegistrationStore: Send + Sync + 'static {
    /// Makes `new` the current registration of its environment, which is
    /// created if needed, up to [`ENVIRONMENTS_MAX`](super::capacity::ENVIRONMENTS_MAX). Where
    /// there is no room, some others are forgotten: those without a registration,
    /// and those that are away longest, for
    /// [`ENVIRONMENTS_AWAY_KEPT`](super::capacity::ENVIRONMENTS_AWAY_KEPT) at least; none that was
    /// revoked. The registration's generation is higher than any that the
    /// environment had. Counts as a use of the subject's token.
    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<RegisterOutcome, StoreError>;

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
        event: &AuditEvent,
    ) -> Result<Option<RegistrationId>, StoreError>;

    /// Ends the environment's registration, revokes the executors that are
    /// enrolled for it, refuses it to all credentials that were made until now,
    /// and notes a withdrawal. `false`: nobody ever registered.
    async fn revoke_environment(
        &self,
        environment: &EnvironmentId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<bool, StoreError>;
}
