//! Registrations: an executor registers in an environment, an orchestrator
//! connects to it, and the executor validates the orchestrator's key.

mod connect;
pub mod executor_wait;
mod validate;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rendez_proto::audit::AuditKind;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::limits;
use rendez_proto::registry::status::{RegistrationEntry, RegistrationList};
use rendez_proto::registry::{Profiles, RegisterReply, RegisterRequest, TransportPolicy};
use rendez_proto::ticket::{Claims, Purpose};

pub use self::connect::ConnectError;
pub use self::validate::{Denied, ValidateError, Verdict};
use super::context::Context;
use super::tickets::{IssueError, Tickets};
use crate::model::{Caller, Forbidden, NewRegistration, Registration, Role, Subject, TokenPattern};
use crate::page;
use crate::public_url::WebsocketBase;
use crate::store::{RegisterOutcome, StoreError};
use crate::store_retry::StoreRetry;

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The caller is at fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The caller's token ended during the request.
    #[error("the token is no longer active")]
    TokenInactive,
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// The registrations of a registry.
#[derive(Clone, Copy)]
pub struct Registrations<'a> {
    ctx: &'a Context,
}

impl<'a> Registrations<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl Registrations<'_> {
    /// Makes the caller the executor of `environment` and supersedes the previous
    /// one. `retry` bounds how long the call waits for an unavailable database.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn register(
        self,
        caller: &Caller,
        environment: &EnvironmentId,
        request: &RegisterRequest,
        base: &WebsocketBase,
        retry: StoreRetry,
    ) -> Result<RegisterReply, RegisterError> {
        caller.authorize(Role::Executor, environment)?;
        let id = self.ctx.random::<16>().map_err(IssueError::from)?;
        let new = NewRegistration {
            environment: environment.clone(),
            id: format!("reg_{}", URL_SAFE_NO_PAD.encode(id))
                .parse::<RegistrationId>()
                .map_err(IssueError::from)?,
            key: request.executor_public_key.clone(),
            profiles: request.offered(),
            subject: caller.subject.clone(),
        };
        let put = || self.ctx.store().put_registration(&new, self.ctx.now());
        let registration = match retry.call(put).await? {
            RegisterOutcome::Registered(registration) => registration,
            RegisterOutcome::UsedUp => return Err(Forbidden::UsedUp.into()),
            RegisterOutcome::EnvironmentRevoked => return Err(Forbidden::EnvironmentRevoked.into()),
            RegisterOutcome::Inactive => return Err(RegisterError::TokenInactive),
        };
        tracing::info!(
            %environment,
            registration = %registration.id,
            generation = %registration.generation,
            token = %caller.subject,
            "registered"
        );

        let (actor, id) = (&caller.subject, Some(&registration.id));
        self.ctx.audit().record(self.ctx.caller_event(AuditKind::Register, actor, environment, id));
        let tickets = Tickets::new(self.ctx);
        let claims = tickets.claims(Purpose::Executor, &registration, caller)?;
        let ticket = tickets.sign(&Claims { profile: request.security_profile, ..claims })?;
        Ok(RegisterReply {
            environment_id: environment.clone(),
            url: base.rendezvous(&ticket),
            security_profile: request.security_profile,
            executor_registration_id: registration.id,
            transport_policy: Some(TransportPolicy::nodelay(registration.generation)),
            rendez: Some(Profiles { profiles: registration.profiles }),
        })
    }

    /// Returns one page of the current registrations, one per environment. For
    /// admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(self, after: Option<&EnvironmentId>) -> Result<RegistrationList, StoreError> {
        let page = self
            .ctx
            .store()
            .environments(&[TokenPattern::everything()], after, limits::LIST_PAGE_MAX)
            .await?;
        let next = page::next_cursor(&page, |last| last.id.clone());
        let registrations = page.into_iter().filter_map(|environment| environment.registration);
        Ok(RegistrationList { registrations: registrations.map(entry).collect(), next })
    }

    /// Ends an environment's current registration and closes its websockets within
    /// seconds. Its executor may register again. Returns `None` if there was none.
    /// For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn end(
        self,
        actor: Option<&Subject>,
        environment: &EnvironmentId,
    ) -> Result<Option<RegistrationId>, StoreError> {
        let what = format!("registration_ended {environment}");
        let event = self.ctx.operator_event(AuditKind::Revoke, actor, what).await?;
        let ended =
            self.ctx.store().remove_registration(environment, self.ctx.now(), &event).await?;
        if let Some(registration) = &ended {
            tracing::info!(%environment, %registration, "registration ended");
        }
        Ok(ended)
    }
}

fn entry(registration: Registration) -> RegistrationEntry {
    let fingerprint = registration.key.fingerprint();
    RegistrationEntry {
        environment_id: registration.environment,
        executor_registration_id: registration.id,
        generation: registration.generation,
        profiles: registration.profiles,
        key_fingerprint: fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
        subject: registration.subject.to_string(),
        registered_at_unix_secs: registration.registered_at,
    }
}

#[cfg(test)]
mod tests;
