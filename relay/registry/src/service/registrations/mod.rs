//! Claiming an environment, finding its executor, and vouching for a key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, RegistrationId, StreamId};
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::registry::{
    ConnectReply, ConnectRequest, Profiles, RegisterReply, RegisterRequest, TransportPolicy,
    ValidateRequest,
};
use rendez_proto::ticket::{self, Claims, Purpose, Ticket, TicketError, TicketText};

use super::Registry;
use super::tickets::redemption;
use super::waiting::{Away, Unreachable};
use crate::model::{Caller, Forbidden, NewRegistration, Registration, Role};
use crate::public_url::WebsocketBase;
use crate::seam::NoRandomness;
use crate::store::{Claimed, Redeemed, Redemption, StoreError, Used};

/// Why a registration was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The caller's fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The caller's token ended while it asked.
    #[error("the token is not active any more")]
    TokenInactive,
    /// Ours, for now.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ours.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// Why an orchestrator was not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The caller's fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The caller's token ended while it asked.
    #[error("the token is not active any more")]
    TokenInactive,
    /// Nobody's fault, or a misspelt environment.
    #[error("{0}")]
    Absent(Away),
    /// The two ends have nothing in common.
    #[error("the executor offers {}, of which the orchestrator accepts none",
        .offered.iter().map(|profile| profile.name()).collect::<Vec<_>>().join(", "))]
    NoCommonProfile {
        /// What the executor offers.
        offered: Vec<Profile>,
    },
    /// Ours, for now.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Ours.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl From<Unreachable> for ConnectError {
    fn from(error: Unreachable) -> Self {
        match error {
            Unreachable::Away(away) => Self::Absent(away),
            Unreachable::Store(error) => Self::Store(error),
        }
    }
}

/// Why a key was not even judged.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The caller's fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Another executor has claimed the environment, or nobody ever did.
    #[error("the registration is not the environment's current one")]
    Superseded,
    /// Ours, for now.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A ticket could not be issued. Ours, never the caller's fault.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No ids can be made.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// Our ids do not fit a ticket.
    #[error(transparent)]
    Subject(#[from] ticket::SubjectTooLong),
    /// Our ids are not ids.
    #[error(transparent)]
    Id(#[from] rendez_proto::ids::InvalidId),
}

/// What `/validate` says about an orchestrator's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The handshake may complete.
    Valid,
    /// It may not, and why; for our log, not for the executor.
    Denied(Denied),
}

/// Why an orchestrator's key was turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The authorization is not one, or too old.
    #[error(transparent)]
    Ticket(#[from] TicketError),
    /// It is for another environment or registration.
    #[error("the authorization is for another registration")]
    OtherRegistration,
    /// It is for other keys.
    #[error("the authorization is for other keys")]
    OtherKeys,
    /// It was used before.
    #[error("the authorization was used before")]
    Used,
    /// The orchestrator's token was revoked since, or expired.
    #[error("the orchestrator's token is not active any more")]
    TokenInactive,
}

impl Registry {
    /// Makes the caller the executor of `environment`, instead of whoever was.
    /// Waits for a database that is not available for as long as the whole call
    /// may, `REGISTER_PATIENCE`.
    ///
    /// # Errors
    /// See [`RegisterError`].
    pub async fn register(
        &self,
        caller: &Caller,
        environment: &EnvironmentId,
        request: &RegisterRequest,
        base: &WebsocketBase,
    ) -> Result<RegisterReply, RegisterError> {
        caller.may(Role::Executor, environment)?;
        let id = self.random::<16>().map_err(IssueError::from)?;
        let new = NewRegistration {
            environment: environment.clone(),
            id: format!("reg_{}", URL_SAFE_NO_PAD.encode(id))
                .parse::<RegistrationId>()
                .map_err(IssueError::from)?,
            key: request.executor_public_key.clone(),
            profiles: request.offered(),
            subject: caller.subject.clone(),
        };
        let put = || self.store().put_registration(&new, self.now());
        let registration = match self.patient().persist(put).await? {
            Claimed::Current(registration) => registration,
            Claimed::UsedUp => return Err(Forbidden::UsedUp.into()),
            Claimed::EnvironmentRevoked => return Err(Forbidden::EnvironmentRevoked.into()),
            Claimed::Inactive => return Err(RegisterError::TokenInactive),
        };
        tracing::info!(
            %environment,
            registration = %registration.id,
            generation = %registration.generation,
            token = %caller.subject,
            "registered"
        );

        let (actor, id) = (&caller.subject, Some(&registration.id));
        self.audit().record(self.trace(AuditKind::Register, actor, environment, id));
        let claims = self.claims(Purpose::Executor, &registration, caller)?;
        let ticket = self.sign(&Claims { profile: request.security_profile, ..claims })?;
        Ok(RegisterReply {
            environment_id: environment.clone(),
            url: base.rendezvous(&ticket),
            security_profile: request.security_profile,
            executor_registration_id: registration.id,
            transport_policy: Some(TransportPolicy::nodelay(registration.generation)),
            rendez: Some(Profiles { profiles: registration.profiles }),
        })
    }

    /// Tells an orchestrator how to reach the environment's executor, and
    /// authorizes its key there, once. Waits up to
    /// [`Options::connect_wait`](crate::Options::connect_wait) for an executor
    /// that is away.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(
        &self,
        caller: &Caller,
        environment: &EnvironmentId,
        request: &ConnectRequest,
        base: &WebsocketBase,
    ) -> Result<ConnectReply, ConnectError> {
        caller.may(Role::Orchestrator, environment)?;
        let actor = &caller.subject;
        let registration = match self.reachable(environment).await {
            Ok(registration) => registration,
            Err(error) => {
                if matches!(error, Unreachable::Away(_)) {
                    let asked = self.trace(AuditKind::Connect, actor, environment, None);
                    let what = Some("away".to_owned());
                    self.audit().record_refusal(AuditEvent { what, ..asked });
                }
                return Err(error.into());
            }
        };
        let no_common = || ConnectError::NoCommonProfile { offered: registration.profiles.clone() };
        let profile = request.choose(&registration.profiles).ok_or_else(no_common)?;
        let suite = profile.suite();
        let executor_key = registration.key.for_suite(suite).ok_or_else(no_common)?;
        let orchestrator_key = request.harness_public_key.for_suite(suite).ok_or_else(no_common)?;

        match self.store().use_token(&caller.subject, self.now()).await? {
            Used::Now => {}
            Used::UsedUp => return Err(Forbidden::UsedUp.into()),
            Used::Inactive => return Err(ConnectError::TokenInactive),
        }
        let expires = self.now().saturating_add(limits::ORCHESTRATOR_TICKET_TTL.as_secs());
        let ticket = self.sign(&Claims {
            profile,
            expires_at_unix_secs: Some(expires),
            // The relay gives a stream to the key that opened it.
            binding: orchestrator_key.fingerprint(),
            ..self.claims(Purpose::Orchestrator, &registration, caller)?
        })?;
        let authorization = self.sign(&Claims {
            profile,
            expires_at_unix_secs: Some(expires),
            binding: ticket::binding(&orchestrator_key, &executor_key),
            ..self.claims(Purpose::KeyAuthorization, &registration, caller)?
        })?;
        let id = Some(&registration.id);
        self.audit().record(self.trace(AuditKind::Connect, actor, environment, id));
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

    /// Judges the key that an orchestrator's handshake proved. The
    /// authorization is used up only if all else about it is right, so that a
    /// stranger who saw it cannot burn it.
    ///
    /// # Errors
    /// See [`ValidateError`].
    pub async fn validate(
        &self,
        caller: &Caller,
        environment: &EnvironmentId,
        request: &ValidateRequest,
        stream: Option<&StreamId>,
    ) -> Result<Verdict, ValidateError> {
        caller.may(Role::Executor, environment)?;
        let registration = self
            .store()
            .registration(environment)
            .await?
            .filter(|current| current.id == request.executor_registration_id)
            .ok_or(ValidateError::Superseded)?;
        if registration.subject != caller.subject {
            return Err(Forbidden::Token.into());
        }
        let verdict = match self.judge(&registration, request) {
            Err(denied) => Verdict::Denied(denied),
            Ok(redemption) => match self.store().redeem(&redemption, self.now()).await? {
                Redeemed::Now => Verdict::Valid,
                Redeemed::Before => Verdict::Denied(Denied::Used),
                Redeemed::TokenInactive => Verdict::Denied(Denied::TokenInactive),
            },
        };
        let id = Some(&registration.id);
        let judged = AuditEvent {
            stream: stream.map(|stream| stream.as_str().to_owned()),
            ..self.trace(AuditKind::Validate, &caller.subject, environment, id)
        };
        match verdict {
            Verdict::Valid => {
                let what = Some("valid".to_owned());
                self.audit().record(AuditEvent { what, ..judged });
                tracing::info!(%environment, registration = %registration.id, "key accepted");
            }
            Verdict::Denied(why) => {
                let what = Some("denied".to_owned());
                self.audit().record_refusal(AuditEvent { what, ..judged });
                tracing::info!(%environment, registration = %registration.id, %why, "key denied");
            }
        }
        Ok(verdict)
    }

    fn judge(
        &self,
        registration: &Registration,
        request: &ValidateRequest,
    ) -> Result<Redemption, Denied> {
        let claims = Ticket::verify(
            request.harness_key_authorization.expose(),
            &self.verifying_key(),
            Purpose::KeyAuthorization,
            self.now(),
        )?;
        if claims.environment != registration.environment || claims.registration != registration.id
        {
            return Err(Denied::OtherRegistration);
        }
        let executor_key =
            registration.key.for_suite(claims.profile.suite()).ok_or(Denied::OtherKeys)?;
        if ticket::binding(&request.harness_public_key, &executor_key) != claims.binding {
            return Err(Denied::OtherKeys);
        }
        redemption(&claims).ok_or(Denied::Ticket(TicketError::Malformed))
    }

    /// Claims about `registration` that still lack a profile, an end and keys.
    fn claims(
        &self,
        purpose: Purpose,
        registration: &Registration,
        caller: &Caller,
    ) -> Result<Claims, IssueError> {
        Ok(Claims {
            purpose,
            environment: registration.environment.clone(),
            registration: registration.id.clone(),
            generation: registration.generation,
            subject: caller.ticket_subject().to_string(),
            profile: Profile::NoiseHybridIkV1,
            expires_at_unix_secs: None,
            id: self.random()?,
            binding: [0; ticket::BINDING_BYTES],
        })
    }

    fn sign(&self, claims: &Claims) -> Result<TicketText, IssueError> {
        Ok(self.inner.signer.issue(claims)?)
    }
}

#[cfg(test)]
mod tests;
