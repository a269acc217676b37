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
use tokio::time::{Instant, sleep, timeout_at};

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
    /// Waits up to [`limits::REGISTER_PATIENCE`] for a database that is not
    /// available, since stock executors exit on any failure.
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
        let registration = match self.put_patiently(&new).await? {
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

        let actor = caller.subject.to_string();
        self.trail(AuditKind::Register, &actor, environment, Some(&registration.id), None);
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
        let actor = caller.subject.to_string();
        let registration = match self.reachable(environment).await {
            Ok(registration) => registration,
            Err(error) => {
                if matches!(error, Unreachable::Away(_)) {
                    self.trail(AuditKind::Connect, &actor, environment, None, Some("away"));
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
        self.trail(AuditKind::Connect, &actor, environment, Some(&registration.id), None);
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
        let what = if verdict == Verdict::Valid { "valid" } else { "denied" };
        self.audit().record(AuditEvent {
            actor: Some(caller.subject.to_string()),
            environment: Some(environment.clone()),
            registration: Some(registration.id.clone()),
            stream: stream.map(|stream| stream.as_str().to_owned()),
            what: Some(what.to_owned()),
            ..self.audit().event(AuditKind::Validate)
        });
        match verdict {
            Verdict::Valid => {
                tracing::info!(%environment, registration = %registration.id, "key accepted");
            }
            Verdict::Denied(why) => {
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

    async fn put_patiently(&self, new: &NewRegistration) -> Result<Claimed, StoreError> {
        let deadline = Instant::now() + limits::REGISTER_PATIENCE;
        loop {
            let attempt = self.store().put_registration(new, self.now());
            match timeout_at(deadline, attempt).await {
                Ok(Err(StoreError::Unavailable(error)))
                    if Instant::now() + limits::REGISTER_RETRY_PAUSE < deadline =>
                {
                    tracing::debug!(environment = %new.environment, %error, "database not available, trying again");
                    sleep(limits::REGISTER_RETRY_PAUSE).await;
                }
                Ok(result) => return result,
                Err(late) => return Err(StoreError::Unavailable(Box::new(late))),
            }
        }
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
mod tests {
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use rendez_proto::audit::AuditEvent;
    use rendez_proto::ids::Generation;
    use rendez_proto::registry::error::AbsenceState;
    use rendez_proto::ticket::BINDING_BYTES;

    use super::*;
    use crate::model::{Environment, Grant, Subject, Token, TokenId};
    use crate::signer::Signer;
    use crate::store::{Enrolled, Rotated, Store, Withdrawn};
    use crate::testing::{
        Fixture, START, base, connect_request, env, key, register_request, ticket, validate_request,
    };
    use crate::{NobodyConnected, Options};

    async fn connect(
        fixture: &Fixture,
        caller: &Caller,
        profiles: Option<&[Profile]>,
    ) -> Result<ConnectReply, ConnectError> {
        let request = connect_request(profiles);
        fixture.registry.connect(caller, &env("dev"), &request, &base()).await
    }

    fn claims(fixture: &Fixture, ticket: &str, purpose: Purpose) -> Claims {
        let now = fixture.registry.now();
        Ticket::verify(ticket, &fixture.registry.verifying_key(), purpose, now).unwrap()
    }

    #[tokio::test]
    async fn a_registration_gets_a_url_with_its_ticket() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "dev").await;
        let first = fixture.register(&executor, "dev").await;
        assert_eq!(first.environment_id, env("dev"));
        assert_eq!(first.security_profile, Profile::NoiseHybridIkV1);
        assert_eq!(first.executor_registration_id.as_str().len(), 26);
        assert_eq!(first.transport_policy, Some(TransportPolicy::nodelay(Generation(1))));
        assert_eq!(first.rendez.unwrap().profiles.len(), 3);

        let claims = claims(&fixture, &ticket(&first.url), Purpose::Executor);
        assert_eq!(claims.environment, env("dev"));
        assert_eq!(claims.registration, first.executor_registration_id);
        assert_eq!(claims.subject, executor.subject.to_string());
        assert_eq!(claims.expires_at_unix_secs, None);
        assert_eq!(claims.binding, [0; BINDING_BYTES]);

        let second = fixture.register(&executor, "dev").await;
        assert_ne!(second.executor_registration_id, first.executor_registration_id);
        assert_eq!(second.transport_policy, Some(TransportPolicy::nodelay(Generation(2))));
    }

    #[tokio::test]
    async fn roles_and_patterns_decide_who_may_what() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "dev").await;
        let reply = fixture.online(&executor, "dev").await;
        let orchestrator = fixture.caller(Role::Orchestrator, "*").await;
        let good = connect(&fixture, &orchestrator, None).await.unwrap();
        assert_eq!(good.executor_registration_id, reply.executor_registration_id);

        let (registry, request) = (&fixture.registry, register_request());
        let validate = validate_request(&good);
        for (role, pattern, why) in [
            (Role::Orchestrator, "*", Forbidden::Role),
            (Role::Admin, "*", Forbidden::Role),
            (Role::Executor, "prod-*", Forbidden::Environment),
        ] {
            let caller = fixture.caller(role, pattern).await;
            let result = registry.register(&caller, &env("dev"), &request, &base()).await;
            assert!(matches!(result, Err(RegisterError::Forbidden(f)) if f == why));
            let result = registry.validate(&caller, &env("dev"), &validate, None).await;
            assert!(matches!(result, Err(ValidateError::Forbidden(f)) if f == why));
        }
        for (role, pattern, why) in [
            (Role::Executor, "*", Forbidden::Role),
            (Role::Admin, "*", Forbidden::Role),
            (Role::Orchestrator, "prod-*", Forbidden::Environment),
        ] {
            let caller = fixture.caller(role, pattern).await;
            let result = connect(&fixture, &caller, None).await;
            assert!(matches!(result, Err(ConnectError::Forbidden(f)) if f == why));
        }
        // an executor's token that covers the environment but did not register
        let other = fixture.caller(Role::Executor, "*").await;
        let result = registry.validate(&other, &env("dev"), &validate, None).await;
        assert!(matches!(result, Err(ValidateError::Forbidden(Forbidden::Token))));
        let result = registry.validate(&executor, &env("dev"), &validate, None).await;
        assert_eq!(result.unwrap(), Verdict::Valid, "none of these used it up");
    }

    #[tokio::test]
    async fn only_a_connected_current_executor_is_reached() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "dev").await;
        let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
        let absent = async || match connect(&fixture, &orchestrator, None).await {
            Err(ConnectError::Absent(away)) => Some(away.absence.state),
            result => result.map(|_| None).unwrap(),
        };
        assert_eq!(absent().await, Some(AbsenceState::Unknown));
        let first = fixture.register(&executor, "dev").await;
        assert_eq!(absent().await, Some(AbsenceState::Offline));
        fixture.set_connected("dev", &first.executor_registration_id);
        assert_eq!(absent().await, None);
        // registered anew, while the old websocket is still open
        let second = fixture.register(&executor, "dev").await;
        assert_eq!(absent().await, Some(AbsenceState::Offline));
        fixture.set_connected("dev", &second.executor_registration_id);
        assert_eq!(absent().await, None);
    }

    #[tokio::test]
    async fn the_chosen_profile_shapes_the_reply() {
        use Profile::*;
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "dev").await;
        fixture.online(&executor, "dev").await;
        let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
        for (accepted, chosen) in [
            (None, NoiseHybridIkV1),
            (Some(&[RendezHybridIkV1, RendezIkV1][..]), RendezHybridIkV1),
            (Some(&[RendezIkV1, RendezHybridIkV1][..]), RendezIkV1),
        ] {
            let reply = connect(&fixture, &orchestrator, accepted).await.unwrap();
            assert_eq!(reply.security_profile, chosen);
            assert_eq!(Some(&reply.executor_public_key), key(1).for_suite(chosen.suite()).as_ref());
            let authorization = reply.harness_key_authorization.expose();
            for (text, purpose) in [
                (ticket(&reply.url).as_str(), Purpose::Orchestrator),
                (authorization, Purpose::KeyAuthorization),
            ] {
                let claims = claims(&fixture, text, purpose);
                assert_eq!(claims.profile, chosen);
                assert_eq!(claims.expires_at_unix_secs, Some(START + 60));
                assert_eq!(claims.subject, orchestrator.subject.to_string());
            }
            let verdict = fixture
                .registry
                .validate(&executor, &env("dev"), &validate_request(&reply), None)
                .await;
            assert_eq!(verdict.unwrap(), Verdict::Valid);
        }
        let result = connect(&fixture, &orchestrator, Some(&[])).await;
        assert!(matches!(result, Err(ConnectError::NoCommonProfile { .. })));
    }

    #[tokio::test]
    async fn an_authorization_is_good_once_for_its_keys_registration_and_minute() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "*").await;
        fixture.online(&executor, "dev").await;
        let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
        let denied = async |request: &ValidateRequest| match fixture
            .registry
            .validate(&executor, &env("dev"), request, None)
            .await
            .unwrap()
        {
            Verdict::Valid => None,
            Verdict::Denied(why) => Some(why),
        };

        let reply = connect(&fixture, &orchestrator, None).await.unwrap();
        let good = validate_request(&reply);
        for harness_public_key in
            [key(3), key(2).for_suite(rendez_proto::profile::Suite::Ik).unwrap()]
        {
            let request = ValidateRequest { harness_public_key, ..good.clone() };
            assert_eq!(denied(&request).await, Some(Denied::OtherKeys));
        }
        for (text, why) in [
            ("auth-1".to_owned(), TicketError::Malformed),
            (ticket(&reply.url), TicketError::WrongPurpose),
        ] {
            let harness_key_authorization = text.parse().unwrap();
            let request = ValidateRequest { harness_key_authorization, ..good.clone() };
            assert_eq!(denied(&request).await, Some(Denied::Ticket(why)));
        }
        assert_eq!(denied(&good).await, None, "the refused ones did not use it up");
        assert_eq!(denied(&good).await, Some(Denied::Used));

        let late = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
        fixture.advance(59);
        let in_time = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
        fixture.advance(1);
        assert_eq!(denied(&late).await, Some(Denied::Ticket(TicketError::Expired)));
        assert_eq!(denied(&in_time).await, None);

        // the same keys in another environment, or after a new registration
        let other = fixture.online(&executor, "other").await;
        let foreign = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
        let foreign =
            ValidateRequest { executor_registration_id: other.executor_registration_id, ..foreign };
        let verdict =
            fixture.registry.validate(&executor, &env("other"), &foreign, None).await.unwrap();
        assert_eq!(verdict, Verdict::Denied(Denied::OtherRegistration));

        let before = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
        let anew = fixture.online(&executor, "dev").await;
        let result = fixture.registry.validate(&executor, &env("dev"), &before, None).await;
        assert!(matches!(result, Err(ValidateError::Superseded)));
        let spliced =
            ValidateRequest { executor_registration_id: anew.executor_registration_id, ..before };
        assert_eq!(denied(&spliced).await, Some(Denied::OtherRegistration));
    }

    #[tokio::test]
    async fn a_revoked_orchestrator_is_denied_at_once() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "dev").await;
        fixture.online(&executor, "dev").await;
        let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
        let request = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
        assert!(fixture.registry.revoke(None, &orchestrator.subject).await.unwrap());
        let verdict =
            fixture.registry.validate(&executor, &env("dev"), &request, None).await.unwrap();
        assert_eq!(verdict, Verdict::Denied(Denied::TokenInactive));
    }

    /// A store of which only `put_registration` works, after some failures.
    struct Scripted {
        failures: Mutex<VecDeque<StoreError>>,
        calls: AtomicUsize,
    }

    #[async_trait]
    impl Store for Scripted {
        async fn insert_token(&self, _: &Token, _: &AuditEvent) -> Result<(), StoreError> {
            Err(busy())
        }
        async fn token(&self, _: &TokenId) -> Result<Option<Token>, StoreError> {
            Err(busy())
        }
        async fn tokens(&self, _: Option<&TokenId>, _: u32) -> Result<Vec<Token>, StoreError> {
            Err(busy())
        }
        async fn token_by_key(&self, _: &[u8; 32]) -> Result<Option<Token>, StoreError> {
            Err(busy())
        }
        async fn rotate_token(
            &self,
            _: &TokenId,
            _: &[u8; 32],
            _: u64,
            _: u64,
            _: &AuditEvent,
        ) -> Result<Rotated, StoreError> {
            Err(busy())
        }
        async fn use_token(&self, _: &Subject, _: u64) -> Result<Used, StoreError> {
            Err(busy())
        }
        async fn enrol(
            &self,
            _: &Token,
            _: &TokenId,
            _: u64,
            _: &AuditEvent,
        ) -> Result<Enrolled, StoreError> {
            Err(busy())
        }
        async fn revoke(&self, _: &Subject, _: u64, _: &AuditEvent) -> Result<bool, StoreError> {
            Err(busy())
        }
        async fn is_blocked(&self, _: &Subject) -> Result<bool, StoreError> {
            Err(busy())
        }
        async fn remove_registration(
            &self,
            _: &EnvironmentId,
            _: u64,
            _: &AuditEvent,
        ) -> Result<Option<RegistrationId>, StoreError> {
            Err(busy())
        }
        async fn revoke_environment(
            &self,
            _: &EnvironmentId,
            _: u64,
            _: &AuditEvent,
        ) -> Result<bool, StoreError> {
            Err(busy())
        }
        async fn last_withdrawal(&self) -> Result<u64, StoreError> {
            Err(busy())
        }
        async fn withdrawals(&self, _: u64, _: u32) -> Result<Withdrawn, StoreError> {
            Err(busy())
        }
        async fn put_registration(
            &self,
            new: &NewRegistration,
            now: u64,
        ) -> Result<Claimed, StoreError> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            match self.failures.lock().unwrap().pop_front() {
                Some(error) => Err(error),
                None => Ok(Claimed::Current(Registration {
                    environment: new.environment.clone(),
                    id: new.id.clone(),
                    generation: Generation(1),
                    key: new.key.clone(),
                    profiles: new.profiles.clone(),
                    subject: new.subject.clone(),
                    registered_at: now,
                })),
            }
        }
        async fn registration(
            &self,
            _: &EnvironmentId,
        ) -> Result<Option<Registration>, StoreError> {
            Err(busy())
        }
        async fn environments(
            &self,
            _: Option<&EnvironmentId>,
            _: u32,
        ) -> Result<Vec<Environment>, StoreError> {
            Err(busy())
        }
        async fn environment(&self, _: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
            Err(busy())
        }
        async fn redeem(&self, _: &Redemption, _: u64) -> Result<Redeemed, StoreError> {
            Err(busy())
        }
    }

    fn busy() -> StoreError {
        StoreError::Unavailable("database is locked".into())
    }

    async fn register_on(
        failures: Vec<StoreError>,
    ) -> (Result<RegisterReply, RegisterError>, usize) {
        let store = Arc::new(Scripted {
            failures: Mutex::new(failures.into()),
            calls: AtomicUsize::new(0),
        });
        let options = Options { presence: Arc::new(NobodyConnected), ..Options::default() };
        let registry = Registry::new(
            store.clone(),
            Arc::new(crate::testing::NoRecords),
            1,
            Signer::from_seed(&[1; 32]),
            options,
        );
        let caller = Caller {
            subject: TokenId::from_random([1; 8]).into(),
            grants: vec![Grant { role: Role::Executor, environments: "*".parse().unwrap() }],
            until: None,
        };
        let result = registry.register(&caller, &env("dev"), &register_request(), &base()).await;
        (result, store.calls.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_waits_for_a_busy_database() {
        let start = Instant::now();
        let (result, calls) = register_on((0..100).map(|_| busy()).collect()).await;
        assert!(result.is_ok());
        assert_eq!(calls, 101);
        assert_eq!(start.elapsed(), limits::REGISTER_RETRY_PAUSE * 100);
    }

    #[tokio::test(start_paused = true)]
    async fn but_not_longer_than_a_stock_executor_does() {
        let start = Instant::now();
        let (result, _) = register_on((0..1000).map(|_| busy()).collect()).await;
        assert!(matches!(result, Err(RegisterError::Store(StoreError::Unavailable(_)))));
        assert!(start.elapsed() <= limits::REGISTER_PATIENCE);
        assert!(start.elapsed() + limits::REGISTER_RETRY_PAUSE >= limits::REGISTER_PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waiting_does_not_cure_fails_at_once() {
        let (result, calls) = register_on(vec![StoreError::Corrupt("generation")]).await;
        assert!(matches!(result, Err(RegisterError::Store(StoreError::Corrupt(_)))));
        assert_eq!(calls, 1);
    }
}
