//! Tickets: issuing them, and checking those that arrive in websocket URLs.

use std::net::IpAddr;

use rendez_proto::profile::Profile;
use rendez_proto::registry::error::ErrorCode;
use rendez_proto::ticket::{self, Claims, Purpose, Ticket, TicketError, TicketText};

use super::context::Context;
use crate::model::{Caller, Registration, SourceCidrs, Subject, TicketSubject};
use crate::stats::{Operation, Outcome, TicketFault};
use crate::store::{RedeemOutcome, Redemption, StoreError};
use crate::traits::NoRandomness;

/// Why a websocket may not be opened.
///
/// All but [`Unavailable`](TicketRefused::Unavailable) are final for this ticket:
/// answer the upgrade with a 4xx, after which a stock executor registers again
/// (docs/codex-wire.md#rendezvous-websocket). `Unavailable` is the registry's
/// failure: answer 503, and the executor retries the same URL.
#[derive(Debug, thiserror::Error)]
pub enum TicketRefused {
    /// The ticket is not valid for this purpose now. Its bearer is at fault.
    #[error(transparent)]
    Invalid(#[from] TicketError),
    /// It is an orchestrator's ticket that was used before.
    #[error("the ticket was used before")]
    Used,
    /// The token that requested it was revoked or has expired.
    #[error("the ticket's token is no longer active")]
    Revoked,
    /// The token that requested it may not be used from this address.
    #[error("the ticket's token may not be used from this address")]
    Source,
    /// A newer registration superseded it.
    #[error("the ticket's registration was superseded")]
    Superseded,
    /// This registry does not know the environment.
    #[error("the ticket's environment is unknown")]
    Unknown,
    /// The store failed.
    #[error(transparent)]
    Unavailable(#[from] StoreError),
}

impl TicketRefused {
    /// Returns the fault for counters; `None` if the ticket is not at fault.
    pub fn fault(&self) -> Option<TicketFault> {
        Some(match self {
            TicketRefused::Invalid(TicketError::Malformed) => TicketFault::Malformed,
            TicketRefused::Invalid(TicketError::BadSignature) => TicketFault::BadSignature,
            TicketRefused::Invalid(TicketError::Expired) => TicketFault::Expired,
            TicketRefused::Invalid(TicketError::WrongPurpose) => TicketFault::WrongPurpose,
            TicketRefused::Used => TicketFault::Used,
            TicketRefused::Revoked => TicketFault::Revoked,
            TicketRefused::Source => TicketFault::Source,
            TicketRefused::Superseded => TicketFault::Superseded,
            TicketRefused::Unknown => TicketFault::Unknown,
            TicketRefused::Unavailable(_) => return None,
        })
    }
}

/// A ticket could not be issued. The registry is at fault, never the caller.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// No random id could be generated.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The subject does not fit a ticket.
    #[error(transparent)]
    Subject(#[from] ticket::SubjectTooLong),
    /// A generated id is invalid.
    #[error(transparent)]
    Id(#[from] rendez_proto::ids::InvalidId),
}

/// A websocket that may be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The claims of its ticket.
    pub claims: Claims,
    /// The subject that requested the ticket. Its revocation closes the websocket.
    pub subject: Subject,
    /// When the websocket must end, in seconds since 1970: when its token expires.
    pub until: Option<u64>,
}

/// The limits of an active subject.
struct ActiveSubject {
    expires_at: Option<u64>,
    sources: SourceCidrs,
}

/// The tickets of a registry: issued for clients, checked for the relay.
#[derive(Clone, Copy)]
pub struct Tickets<'a> {
    ctx: &'a Context,
}

impl<'a> Tickets<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl Tickets<'_> {
    /// Admits a ticket of either kind to a websocket at `source`;
    /// [`Claims::purpose`] has the kind. Refuses key authorizations.
    ///
    /// # Errors
    /// See [`TicketRefused`].
    pub async fn admit(
        self,
        ticket: &str,
        source: Option<IpAddr>,
    ) -> Result<Admitted, TicketRefused> {
        let key = self.ctx.signer.verifying_key();
        match Ticket::verify(ticket, &key, Purpose::Executor, self.ctx.now()) {
            Ok(_) => self.check_executor(ticket, source).await,
            // the signature is valid, so it may be the other kind
            Err(TicketError::WrongPurpose) => self.redeem_orchestrator(ticket, source).await,
            Err(error) => Err(self.count_refused(Operation::UnknownTicket, error.into())),
        }
    }

    /// Admits an orchestrator's ticket to its one websocket.
    ///
    /// # Errors
    /// See [`TicketRefused`]; never `Superseded` or `Unknown`.
    pub async fn redeem_orchestrator(
        self,
        ticket: &str,
        source: Option<IpAddr>,
    ) -> Result<Admitted, TicketRefused> {
        let result = async {
            let now = self.ctx.now();
            let claims = Ticket::verify(
                ticket,
                &self.ctx.signer.verifying_key(),
                Purpose::Orchestrator,
                now,
            )?;
            let redemption = redemption(&claims).ok_or(TicketError::Malformed)?;
            let admitted = self.check_subject(claims, source).await?;
            match self.ctx.store().redeem(&redemption, now).await? {
                RedeemOutcome::Redeemed => Ok(admitted),
                RedeemOutcome::AlreadyRedeemed => Err(TicketRefused::Used),
                RedeemOutcome::TokenInactive => Err(TicketRefused::Revoked),
            }
        }
        .await;
        self.counted(Operation::OrchestratorTicket, result)
    }

    /// Admits an executor's ticket, any number of times while its registration is
    /// current and its token active.
    ///
    /// # Errors
    /// See [`TicketRefused`]; never `Used`.
    pub async fn check_executor(
        self,
        ticket: &str,
        source: Option<IpAddr>,
    ) -> Result<Admitted, TicketRefused> {
        let result = async {
            let now = self.ctx.now();
            let claims =
                Ticket::verify(ticket, &self.ctx.signer.verifying_key(), Purpose::Executor, now)?;
            let current = self
                .ctx
                .store()
                .registration(&claims.environment)
                .await?
                .ok_or(TicketRefused::Unknown)?;
            if current.id != claims.registration || current.generation != claims.generation {
                return Err(TicketRefused::Superseded);
            }
            self.check_subject(claims, source).await
        }
        .await;
        self.counted(Operation::ExecutorTicket, result)
    }

    async fn check_subject(
        self,
        claims: Claims,
        source: Option<IpAddr>,
    ) -> Result<Admitted, TicketRefused> {
        let bearer = claims.subject.parse::<TicketSubject>().map_err(|_| TicketError::Malformed)?;
        let active = self.active_subject(&bearer.subject).await?.ok_or(TicketRefused::Revoked)?;
        let until = [active.expires_at, bearer.until].into_iter().flatten().min();
        if until.is_some_and(|end| self.ctx.now() >= end) {
            return Err(TicketRefused::Revoked);
        }
        if !active.sources.permit(source) {
            return Err(TicketRefused::Source);
        }
        Ok(Admitted { claims, subject: bearer.subject, until })
    }

    /// Whether an admitted websocket may stay open. A relay that first adds the
    /// websocket to its table, then calls this, and then reads revocations misses
    /// none.
    ///
    /// # Errors
    /// The store's.
    pub async fn is_still_valid(self, admitted: &Admitted) -> Result<bool, StoreError> {
        let claims = &admitted.claims;
        let Some(current) = self.ctx.store().registration(&claims.environment).await? else {
            return Ok(false);
        };
        let superseded = claims.purpose == Purpose::Executor && current.id != claims.registration;
        Ok(!superseded && self.active_subject(&admitted.subject).await?.is_some())
    }

    /// Returns the limits of a subject; `None` if it is not active.
    async fn active_subject(self, subject: &Subject) -> Result<Option<ActiveSubject>, StoreError> {
        match subject {
            Subject::Token(id) => {
                let token = self.ctx.store().token(id).await?;
                let active = token.filter(|token| token.is_active(self.ctx.now()));
                Ok(active.map(|token| ActiveSubject {
                    expires_at: token.expires_at,
                    sources: token.sources,
                }))
            }
            Subject::Foreign(id) => {
                let known =
                    self.ctx.issuers().include(id) && !self.ctx.store().is_blocked(subject).await?;
                let active = ActiveSubject { expires_at: None, sources: SourceCidrs::default() };
                Ok(known.then_some(active))
            }
        }
    }

    /// Creates claims about `registration`, without profile, expiry and keys.
    pub(super) fn claims(
        self,
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
            id: self.ctx.random()?,
            binding: [0; ticket::BINDING_BYTES],
        })
    }

    pub(super) fn sign(self, claims: &Claims) -> Result<TicketText, IssueError> {
        Ok(self.ctx.signer.issue(claims)?)
    }

    fn counted(
        self,
        operation: Operation,
        result: Result<Admitted, TicketRefused>,
    ) -> Result<Admitted, TicketRefused> {
        match result {
            Ok(admitted) => {
                self.ctx.stats().count(operation, Outcome::Ok);
                Ok(admitted)
            }
            Err(refused) => Err(self.count_refused(operation, refused)),
        }
    }

    fn count_refused(self, operation: Operation, refused: TicketRefused) -> TicketRefused {
        match refused.fault() {
            Some(fault) => {
                tracing::debug!(?operation, why = %refused, "ticket refused");
                self.ctx.stats().count(operation, Outcome::Ticket(fault));
            }
            None => {
                tracing::warn!(?operation, why = %refused, "failed to check a ticket");
                self.ctx.stats().count(operation, Outcome::Error(ErrorCode::Unavailable));
            }
        }
        refused
    }
}

/// Returns the redemption of a ticket; `None` for claims that this registry never
/// signs.
pub(super) fn redemption(claims: &Claims) -> Option<Redemption> {
    Some(Redemption {
        ticket: claims.id,
        expires_at: claims.expires_at_unix_secs?,
        subject: claims.subject.parse::<TicketSubject>().ok()?.subject,
    })
}

#[cfg(test)]
mod tests {
    use rendez_proto::registry::ConnectReply;

    use super::*;
    use crate::model::{Caller, Role};
    use crate::testing::{Fixture, base, connect_request, env, ticket};

    struct Pair {
        fixture: Fixture,
        executor: Caller,
        orchestrator: Caller,
        executor_ticket: String,
    }

    impl Pair {
        async fn new() -> Self {
            let fixture = Fixture::new().await;
            let executor = fixture.caller(Role::Executor, "dev").await;
            let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
            let executor_ticket = ticket(&fixture.online(&executor, "dev").await.url);
            Self { fixture, executor, orchestrator, executor_ticket }
        }

        async fn connect(&self) -> ConnectReply {
            let request = connect_request(None);
            let registry = &self.fixture.registry;
            registry
                .registrations()
                .connect(&self.orchestrator, &env("dev"), &request, &base())
                .await
                .unwrap()
        }

        fn count(&self, operation: Operation, fault: TicketFault) -> u64 {
            self.fixture.registry.stats().get(operation, Outcome::Ticket(fault))
        }
    }

    #[tokio::test]
    async fn orchestrator_ticket_opens_one_websocket() {
        let pair = Pair::new().await;
        let registry = &pair.fixture.registry;
        let first = ticket(&pair.connect().await.url);
        let Admitted { claims, .. } =
            registry.tickets().redeem_orchestrator(&first, None).await.unwrap();
        assert_eq!((claims.purpose, claims.environment), (Purpose::Orchestrator, env("dev")));
        assert!(matches!(
            registry.tickets().redeem_orchestrator(&first, None).await,
            Err(TicketRefused::Used)
        ));
        assert_eq!(pair.count(Operation::OrchestratorTicket, TicketFault::Used), 1);
        assert_eq!(registry.stats().get(Operation::OrchestratorTicket, Outcome::Ok), 1);

        let late = ticket(&pair.connect().await.url);
        pair.fixture.advance(60);
        let result = registry.tickets().redeem_orchestrator(&late, None).await;
        assert!(matches!(result, Err(TicketRefused::Invalid(TicketError::Expired))));

        let revoked = ticket(&pair.connect().await.url);
        registry.tokens().revoke(None, &pair.orchestrator.subject).await.unwrap();
        let result = registry.tickets().redeem_orchestrator(&revoked, None).await;
        assert!(matches!(result, Err(TicketRefused::Revoked)));
    }

    #[tokio::test]
    async fn executor_ticket_lasts_until_superseded() {
        let pair = Pair::new().await;
        let registry = &pair.fixture.registry;
        pair.fixture.advance(30 * 86_400);
        for _ in 0..2 {
            let Admitted { claims, .. } =
                registry.tickets().check_executor(&pair.executor_ticket, None).await.unwrap();
            assert_eq!(claims.purpose, Purpose::Executor);
        }
        let anew = ticket(&pair.fixture.register(&pair.executor, "dev").await.url);
        let result = registry.tickets().check_executor(&pair.executor_ticket, None).await;
        assert!(matches!(result, Err(TicketRefused::Superseded)));
        registry.tickets().check_executor(&anew, None).await.unwrap();

        registry.tokens().revoke(None, &pair.executor.subject).await.unwrap();
        assert!(matches!(
            registry.tickets().check_executor(&anew, None).await,
            Err(TicketRefused::Revoked)
        ));
        assert_eq!(pair.count(Operation::ExecutorTicket, TicketFault::Superseded), 1);
        assert_eq!(pair.count(Operation::ExecutorTicket, TicketFault::Revoked), 1);
    }

    /// The same signing key with another database: a relay that lost its state.
    #[tokio::test]
    async fn ticket_for_unknown_environment_is_refused() {
        let pair = Pair::new().await;
        let signing_key = pair.fixture.dir.path().join(crate::signer::SIGNING_KEY_FILE);
        let fresh = tempfile::tempdir().unwrap();
        std::fs::copy(&signing_key, fresh.path().join(crate::signer::SIGNING_KEY_FILE)).unwrap();
        let registry =
            crate::Registry::open(fresh.path(), crate::Options::default()).await.unwrap();
        let result = registry.tickets().check_executor(&pair.executor_ticket, None).await;
        assert!(matches!(result, Err(TicketRefused::Unknown)));
    }

    #[tokio::test]
    async fn ticket_opens_only_its_purpose() {
        let pair = Pair::new().await;
        let registry = &pair.fixture.registry;
        let reply = pair.connect().await;
        let (orchestrators, authorization) =
            (ticket(&reply.url), reply.harness_key_authorization.expose());

        let Admitted { claims, .. } =
            registry.tickets().admit(&pair.executor_ticket, None).await.unwrap();
        assert_eq!(claims.purpose, Purpose::Executor);
        let Admitted { claims, .. } = registry.tickets().admit(&orchestrators, None).await.unwrap();
        assert_eq!(claims.purpose, Purpose::Orchestrator);
        assert!(matches!(
            registry.tickets().admit(&orchestrators, None).await,
            Err(TicketRefused::Used)
        ));

        let foreign = Pair::new().await;
        // both fixtures draw the same "random" bytes; this registry needs another
        // signing key
        let stranger = crate::Registry::new(
            std::sync::Arc::new(
                crate::store::sqlite::SqliteStore::open(&foreign.fixture.dir.path().join("other"))
                    .await
                    .unwrap(),
            ),
            1,
            crate::signer::Signer::from_seed(&[9; 32]),
            crate::Options::default(),
        );
        let result = stranger.tickets().admit(&pair.executor_ticket, None).await;
        assert!(matches!(result, Err(TicketRefused::Invalid(TicketError::BadSignature))));

        for (text, why) in [
            (authorization, TicketError::WrongPurpose),
            ("", TicketError::Malformed),
            ("rubbish", TicketError::Malformed),
        ] {
            let result = registry.tickets().admit(text, None).await;
            assert!(matches!(result, Err(TicketRefused::Invalid(error)) if error == why));
        }
        assert_eq!(pair.count(Operation::UnknownTicket, TicketFault::Malformed), 2);
        // the method for the other kind
        let result = registry.tickets().check_executor(&orchestrators, None).await;
        assert!(matches!(result, Err(TicketRefused::Invalid(TicketError::WrongPurpose))));
        let result = registry.tickets().redeem_orchestrator(&pair.executor_ticket, None).await;
        assert!(matches!(result, Err(TicketRefused::Invalid(TicketError::WrongPurpose))));
    }
}
