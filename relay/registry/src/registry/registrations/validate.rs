//! Validating the key that an orchestrator's handshake proved.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, StreamId};
use rendez_proto::registry::ValidateRequest;
use rendez_proto::ticket::{self, Purpose, Ticket, TicketError};

use super::Registrations;
use crate::model::{Caller, Forbidden, Registration, Role};
use crate::registry::tickets::redemption;
use crate::store::{RedeemOutcome, Redemption, StoreError};

/// Why a key was not checked.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The caller is at fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Another executor has registered in the environment, or it was never
    /// registered.
    #[error("the registration is not the environment's current one")]
    Superseded,
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The result of `/validate` for an orchestrator's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The handshake may complete.
    Valid,
    /// The handshake must not complete. The reason is for the registry's log, not
    /// for the executor.
    Denied(Denied),
}

/// Why an orchestrator's key was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The authorization is invalid or expired.
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
    /// The orchestrator's token was revoked or has expired.
    #[error("the orchestrator's token is no longer active")]
    TokenInactive,
}

impl Registrations<'_> {
    /// Checks the key that an orchestrator's handshake proved. The authorization
    /// is used up only if everything else is right, so that a stranger who saw it
    /// cannot use it up.
    ///
    /// # Errors
    /// See [`ValidateError`].
    pub async fn validate(
        self,
        caller: &Caller,
        environment: &EnvironmentId,
        request: &ValidateRequest,
        stream: Option<&StreamId>,
    ) -> Result<Verdict, ValidateError> {
        caller.authorize(Role::Executor, environment)?;
        let registration = self
            .ctx
            .store()
            .registration(environment)
            .await?
            .filter(|current| current.id == request.executor_registration_id)
            .ok_or(ValidateError::Superseded)?;
        if registration.subject != caller.subject {
            return Err(Forbidden::Token.into());
        }
        let verdict = match self.check(&registration, request) {
            Err(denied) => Verdict::Denied(denied),
            Ok(redemption) => match self.ctx.store().redeem(&redemption, self.ctx.now()).await? {
                RedeemOutcome::Redeemed => Verdict::Valid,
                RedeemOutcome::AlreadyRedeemed => Verdict::Denied(Denied::Used),
                RedeemOutcome::TokenInactive => Verdict::Denied(Denied::TokenInactive),
            },
        };
        let id = Some(&registration.id);
        let event = AuditEvent {
            stream: stream.map(|stream| stream.as_str().to_owned()),
            ..self.ctx.caller_event(AuditKind::Validate, &caller.subject, environment, id)
        };
        match verdict {
            Verdict::Valid => {
                let what = Some("valid".to_owned());
                self.ctx.audit().record(AuditEvent { what, ..event });
                tracing::info!(%environment, registration = %registration.id, "key accepted");
            }
            Verdict::Denied(why) => {
                let what = Some("denied".to_owned());
                self.ctx.audit().record_refusal(AuditEvent { what, ..event });
                tracing::info!(%environment, registration = %registration.id, %why, "key denied");
            }
        }
        Ok(verdict)
    }

    fn check(
        self,
        registration: &Registration,
        request: &ValidateRequest,
    ) -> Result<Redemption, Denied> {
        let claims = Ticket::verify(
            request.harness_key_authorization.expose(),
            &self.ctx.signer.verifying_key(),
            Purpose::KeyAuthorization,
            self.ctx.now(),
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
}
