//! Environments and their registrations in a store.

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;
use rendez_proto::ids::{EnvironmentId, RegistrationId};

use super::StoreError;
use crate::model::{Environment, NewRegistration, Registration, TokenPattern};

/// The outcome of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegisterOutcome {
    /// It is the current one, and a use of its token.
    Registered(Registration),
    /// All uses of its token are used up.
    UsedUp,
    /// Its subject is gone, revoked, expired or blocked.
    Inactive,
    /// The environment was revoked after its subject's credential was created.
    EnvironmentRevoked,
}

/// Environments and their registrations. One transaction per method.
#[async_trait]
pub trait RegistrationStore: Send + Sync + 'static {
    /// Makes `new` the current registration of its environment, which is created
    /// if needed, up to [`ENVIRONMENTS_MAX`](super::capacity::ENVIRONMENTS_MAX).
    /// At that limit some environments are purged: those without a registration,
    /// and those that are offline longest, for at least
    /// [`ENVIRONMENTS_OFFLINE_KEPT`](super::capacity::ENVIRONMENTS_OFFLINE_KEPT), but
    /// none that was revoked. The generation is higher than any that the
    /// environment had. Counts as a use of the subject's token.
    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<RegisterOutcome, StoreError>;

    /// Returns the environment's current registration.
    async fn registration(
        &self,
        environment: &EnvironmentId,
    ) -> Result<Option<Registration>, StoreError>;

    /// Returns at most `limit` environments that any of these patterns covers,
    /// whose id is greater than `after`, ordered by id. Environments without a
    /// registration are included.
    async fn environments(
        &self,
        covered: &[TokenPattern],
        after: Option<&EnvironmentId>,
        limit: u32,
    ) -> Result<Vec<Environment>, StoreError>;

    /// Returns one environment, also if its registration was ended. `None` if it
    /// was never registered or has been purged.
    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError>;

    /// Ends the environment's current registration and adds a revocation. Returns
    /// `None` if there is none.
    async fn remove_registration(
        &self,
        environment: &EnvironmentId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<Option<RegistrationId>, StoreError>;

    /// Ends the environment's registration, revokes the executors that are
    /// enrolled for it, refuses it to all existing credentials, and adds a
    /// revocation. Returns `false` if it was never registered.
    async fn revoke_environment(
        &self,
        environment: &EnvironmentId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<bool, StoreError>;
}
