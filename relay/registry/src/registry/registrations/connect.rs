//! Connecting an orchestrator to an environment's executor.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::registry::{ConnectReply, ConnectRequest, Profiles, TransportPolicy};
use rendez_proto::ticket::{self, Claims, Purpose};

use super::Registrations;
use super::executor_wait::{ExecutorOffline, ReachError};
use crate::model::{Caller, Forbidden, Role};
use crate::public_url::WebsocketBase;
use crate::registry::tickets::{IssueError, Tickets};
use crate::store::{StoreError, UseOutcome};

/// Why an orchestrator was not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The caller is at fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The caller's token ended during the request.
    #[error("the token is no longer active")]
    TokenInactive,
    /// The executor is offline, or the environment is misspelt.
    #[error("{0}")]
    Offline(ExecutorOffline),
    /// Executor and orchestrator have no profile in common.
    #[error("the orchestrator accepts none of the executor's profiles: {}",
        .offered.iter().map(|profile| profile.name()).collect::<Vec<_>>().join(", "))]
    NoCommonProfile {
        /// The profiles that the executor offers.
        offered: Vec<Profile>,
    },
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl From<ReachError> for ConnectError {
    fn from(error: ReachError) -> Self {
        match error {
            ReachError::Offline(away) => Self::Offline(away),
            ReachError::Store(error) => Self::Store(error),
        }
    }
}

impl Registrations<'_> {
    /// Returns the URL of the environment's executor and authorizes the
    /// orchestrator's key there, once. Waits up to
    /// [`Options::connect_wait`](crate::Options::connect_wait) for an offline
    /// executor.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        self,
        caller: &Caller,
        environment: &EnvironmentId,
        request: &ConnectRequest,
        base: &WebsocketBase,
    ) -> Result<ConnectReply, ConnectError> {
        caller.authorize(Role::Orchestrator, environment)?;
        let actor = &caller.subject;
        let registration = match self.wait_until_reachable(environment).await {
            Ok(registration) => registration,
            Err(error) => {
                if matches!(error, ReachError::Offline(_)) {
                    let asked = self.ctx.caller_event(AuditKind::Connect, actor, environment, None);
                    let what = Some("away".to_owned());
                    self.ctx.audit().record_refusal(AuditEvent { what, ..asked });
                }
                return Err(error.into());
            }
        };
        let no_common = || ConnectError::NoCommonProfile { offered: registration.profiles.clone() };
        let profile = request.choose(&registration.profiles).ok_or_else(no_common)?;
        let suite = profile.suite();
        let executor_key = registration.key.for_suite(suite).ok_or_else(no_common)?;
        let orchestrator_key = request.harness_public_key.for_suite(suite).ok_or_else(no_common)?;

        match self.ctx.store().use_token(&caller.subject, self.ctx.now()).await? {
            UseOutcome::Allowed => {}
            UseOutcome::UsedUp => return Err(Forbidden::UsedUp.into()),
            UseOutcome::Inactive => return Err(ConnectError::TokenInactive),
        }
        let expires = self.ctx.now().saturating_add(limits::ORCHESTRATOR_TICKET_TTL.as_secs());
        let tickets = Tickets::new(self.ctx);
        let ticket = tickets.sign(&Claims {
            profile,
            expires_at_unix_secs: Some(expires),
            // The relay assigns a stream to the key that opened it.
            binding: orchestrator_key.fingerprint(),
            ..tickets.claims(Purpose::Orchestrator, &registration, caller)?
        })?;
        let authorization = tickets.sign(&Claims {
            profile,
            expires_at_unix_secs: Some(expires),
            binding: ticket::binding(&orchestrator_key, &executor_key),
            ..tickets.claims(Purpose::KeyAuthorization, &registration, caller)?
        })?;
        let id = Some(&registration.id);
        self.ctx.audit().record(self.ctx.caller_event(AuditKind::Connect, actor, environment, id));
        tracing::debug!(
            %environment,
            registration = %registration.id,
            token = %caller.subject,
            %profile,
            "connecting"
        );
        Ok(ConnectReply {
            environment_id: environment.clone(),
            url: base.rendezvous(&ticket),
            security_profile: profile,
            executor_registration_id: registration.id,
            executor_public_key: executor_key,
            harness_key_authorization: authorization,
            transport_policy: Some(TransportPolicy::nodelay(registration.generation)),
            rendez: Some(Profiles { profiles: registration.profiles }),
        })
    }
}
