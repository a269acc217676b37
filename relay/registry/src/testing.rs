//! A registry in a temporary directory, with a controlled clock, ids and presence.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use rendez_proto::audit::{AuditEvent, AuditKind, AuditRow, Head};
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_proto::registry::admin::CreateToken;
use rendez_proto::registry::environments::{EndReason, LiveExecutor};
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry, ConnectionRole};
use rendez_proto::registry::{
    ConnectReply, ConnectRequest, Profiles, RegisterReply, RegisterRequest, ValidateRequest,
};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::audit::AuditRetention;
use crate::history::HistoryRetention;
use crate::jwt::config::IssuerConfig;
use crate::model::{
    Caller, Credential, Environment, NewRegistration, Registration, Role, Subject, Token, TokenId,
    TokenPattern,
};
use crate::public_url::WebsocketBase;
use crate::store::connections::{ConnectionRow, ConnectionUpdate, PreviousEnd};
use crate::store::{
    AuditStore, ConnectionStore, EnrolOutcome, RedeemOutcome, Redemption, RegisterOutcome,
    RegistrationStore, RevocationPage, RevocationStore, RotateOutcome, StoreError, TicketStore,
    TokenStore, UseOutcome,
};
use crate::store_retry::StoreRetry;
use crate::traits::{
    Clock, EnvironmentConnections, NoRandomness, NoStoreMetrics, Presence, Random, WaitRefused,
};
use crate::{Options, PublicUrl, Registry};

/// The time at which tests begin, in seconds since 1970.
pub(crate) const START: u64 = 1_800_000_000;

/// The audit log's row of a change that a test makes.
pub(crate) fn audit_event() -> AuditEvent {
    AuditEvent::new(AuditKind::Admin, START)
}

/// Token number `n`, for every environment whose name begins with `dev-`. The
/// second one expires.
pub(crate) fn token(n: u8, role: Role) -> Token {
    let credential = Credential::Secret { hash: [n; 32], previous: None };
    let environments = "dev-*".parse().unwrap();
    Token {
        label: format!("number {n}"),
        expires_at: (n == 2).then_some(1000),
        ..Token::new(TokenId::from_random([n; 8]), role, environments, credential, 10)
    }
}

pub(crate) struct FixedClock(pub(crate) AtomicU64);

impl Clock for FixedClock {
    fn now_unix_secs(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Different bytes each time, but the same in each run.
#[derive(Default)]
pub(crate) struct FixedRandom(AtomicU64);

impl Random for FixedRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        for chunk in bytes.chunks_mut(32) {
            let n = self.0.fetch_add(1, Ordering::SeqCst);
            chunk.copy_from_slice(&Sha256::digest(n.to_be_bytes())[..chunk.len()]);
        }
        Ok(())
    }
}

/// The connected executors, all since [`START`].
pub(crate) struct FixedPresence {
    connected: watch::Sender<BTreeMap<EnvironmentId, RegistrationId>>,
    /// Calls of `wait_for_executor` so far.
    waits: Arc<AtomicU64>,
}

#[async_trait]
impl Presence for FixedPresence {
    async fn connected(&self, environment: &EnvironmentId) -> Option<RegistrationId> {
        self.connected.borrow().get(environment).cloned()
    }

    async fn wait_for_executor(
        &self,
        environment: &EnvironmentId,
        other_than: Option<&RegistrationId>,
    ) -> Result<RegistrationId, WaitRefused> {
        let mut changes = self.connected.subscribe();
        self.waits.fetch_add(1, Ordering::SeqCst);
        let found = |all: &BTreeMap<EnvironmentId, RegistrationId>| {
            all.get(environment).filter(|id| Some(*id) != other_than).cloned()
        };
        let all = changes.wait_for(|all| found(all).is_some()).await.map_err(|_| WaitRefused)?;
        found(&all).ok_or(WaitRefused)
    }

    async fn environment_connections(&self, environment: &EnvironmentId) -> EnvironmentConnections {
        let executor = self.connected(environment).await.map(|id| LiveExecutor {
            executor_registration_id: id,
            connected_at_unix_secs: START,
            verified: None,
            received_bytes: 0,
            sent_bytes: 0,
        });
        EnvironmentConnections { executor, ..EnvironmentConnections::default() }
    }

    async fn connections(
        &self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
        limit: usize,
    ) -> Vec<ConnectionEntry> {
        let connected = self.connected.borrow();
        let all = connected.iter().zip(1..).map(|((environment, registration), number)| {
            let cursor = ConnectionCursor { environment: environment.clone(), number };
            (cursor, registration)
        });
        all.filter(|(cursor, _)| environment.is_none_or(|wanted| *wanted == cursor.environment))
            .filter(|(cursor, _)| after.is_none_or(|after| cursor > after))
            .take(limit)
            .map(|(cursor, registration)| ConnectionEntry {
                id: cursor.to_string(),
                environment_id: cursor.environment,
                role: ConnectionRole::Executor,
                executor_registration_id: registration.clone(),
                generation: Generation(1),
                subject: "0011223344556677".to_owned(),
                profile: Profile::RendezIkV1.name().to_owned(),
                connected_at_unix_secs: START,
                verified_ms_ago: Some(7),
                received_bytes: 1,
                sent_bytes: 2,
            })
            .collect()
    }
}

/// A store in memory. It keeps what is written in the background, and knows one
/// token, with which a registration succeeds. Other calls fail.
#[derive(Default)]
pub(crate) struct MemoryStore {
    token: Option<Token>,
    /// The errors to come, by kind of call.
    failures: Mutex<BTreeMap<&'static str, VecDeque<StoreError>>>,
    /// The scriptable calls so far.
    pub(crate) calls: AtomicUsize,
    /// Whether writes of connections fail.
    pub(crate) down: AtomicBool,
    /// Connections, one entry per write.
    pub(crate) connections: Mutex<Vec<Vec<ConnectionUpdate>>>,
    /// The `keep` of the last write.
    pub(crate) keep: AtomicU64,
    /// The `before` of each prune.
    pub(crate) prunes: Mutex<Vec<u64>>,
    /// Rows of the audit log.
    pub(crate) events: Mutex<Vec<AuditEvent>>,
}

impl MemoryStore {
    pub(crate) fn scripted(
        token: Token,
        failures: impl IntoIterator<Item = (&'static str, Vec<StoreError>)>,
    ) -> Self {
        let failures = failures.into_iter().map(|(call, list)| (call, list.into())).collect();
        Self { token: Some(token), failures: Mutex::new(failures), ..Self::default() }
    }

    fn scripted_failure(&self, call: &'static str) -> Result<(), StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut failures = self.failures.lock();
        failures.get_mut(call).and_then(VecDeque::pop_front).map_or(Ok(()), Err)
    }
}

pub(crate) fn busy() -> StoreError {
    StoreError::Unavailable("database is locked".into())
}

#[async_trait]
impl TokenStore for MemoryStore {
    async fn insert_token(&self, _: &Token, _: &AuditEvent) -> Result<(), StoreError> {
        Err(busy())
    }
    async fn token(&self, _: &TokenId) -> Result<Option<Token>, StoreError> {
        self.scripted_failure("token").map(|()| self.token.clone())
    }
    async fn tokens(&self, _: Option<&TokenId>, _: u32) -> Result<Vec<Token>, StoreError> {
        Err(busy())
    }
    async fn token_by_key(&self, _: &[u8; 32]) -> Result<Option<Token>, StoreError> {
        self.scripted_failure("token_by_key").map(|()| None)
    }
    async fn rotate_token(
        &self,
        _: &TokenId,
        _: &[u8; 32],
        _: u64,
        _: u64,
        _: &AuditEvent,
    ) -> Result<RotateOutcome, StoreError> {
        Err(busy())
    }
    async fn use_token(&self, _: &Subject, _: u64) -> Result<UseOutcome, StoreError> {
        Err(busy())
    }
    async fn enrol(
        &self,
        _: &Token,
        _: &TokenId,
        _: u64,
        _: &AuditEvent,
    ) -> Result<EnrolOutcome, StoreError> {
        self.scripted_failure("enrol").map(|()| EnrolOutcome::Enrolled)
    }
    async fn revoke(&self, _: &Subject, _: u64, _: &AuditEvent) -> Result<bool, StoreError> {
        Err(busy())
    }
    async fn is_blocked(&self, _: &Subject) -> Result<bool, StoreError> {
        Err(busy())
    }
}

#[async_trait]
impl RegistrationStore for MemoryStore {
    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<RegisterOutcome, StoreError> {
        self.scripted_failure("put")?;
        Ok(RegisterOutcome::Registered(Registration {
            environment: new.environment.clone(),
            id: new.id.clone(),
            generation: Generation(1),
            key: new.key.clone(),
            profiles: new.profiles.clone(),
            subject: new.subject.clone(),
            registered_at: now,
        }))
    }
    async fn registration(&self, _: &EnvironmentId) -> Result<Option<Registration>, StoreError> {
        Err(busy())
    }
    async fn environments(
        &self,
        _: &[TokenPattern],
        _: Option<&EnvironmentId>,
        _: u32,
    ) -> Result<Vec<Environment>, StoreError> {
        Err(busy())
    }
    async fn environment(&self, _: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
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
}

#[async_trait]
impl TicketStore for MemoryStore {
    async fn redeem(&self, _: &Redemption, _: u64) -> Result<RedeemOutcome, StoreError> {
        self.scripted_failure("redeem").map(|()| RedeemOutcome::Redeemed)
    }
}

#[async_trait]
impl RevocationStore for MemoryStore {
    async fn last_revocation(&self) -> Result<u64, StoreError> {
        Err(busy())
    }
    async fn revocations(&self, _: u64, _: u32) -> Result<RevocationPage, StoreError> {
        Err(busy())
    }
}

#[async_trait]
impl ConnectionStore for MemoryStore {
    async fn write_connections(
        &self,
        updates: &[ConnectionUpdate],
        keep: u32,
    ) -> Result<Vec<PreviousEnd>, StoreError> {
        self.keep.store(keep.into(), Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(busy());
        }
        self.connections.lock().push(updates.to_vec());
        Ok(vec![None, Some(EndReason::Revoked)])
    }
    async fn connections(
        &self,
        _: &EnvironmentId,
        _: u32,
    ) -> Result<Vec<ConnectionRow>, StoreError> {
        Ok(vec![])
    }
    async fn last_connections(
        &self,
        _: &[EnvironmentId],
    ) -> Result<Vec<ConnectionRow>, StoreError> {
        Ok(vec![])
    }
    async fn prune_connections(&self, before: u64, limit: u32) -> Result<u64, StoreError> {
        let mut prunes = self.prunes.lock();
        prunes.push(before);
        // the first batch is full
        Ok(if prunes.len() == 1 { limit.into() } else { 0 })
    }
    async fn end_open_connections(&self, _: u64, _: EndReason) -> Result<u64, StoreError> {
        Ok(0)
    }
}

#[async_trait]
impl AuditStore for MemoryStore {
    async fn append_audit(&self, events: &[AuditEvent]) -> Result<Head, StoreError> {
        self.events.lock().extend_from_slice(events);
        Ok(Head::EMPTY)
    }
    async fn audit_rows(&self, _: u64, _: u32) -> Result<Vec<AuditRow>, StoreError> {
        Ok(vec![])
    }
    async fn audit_head(&self) -> Result<Head, StoreError> {
        Ok(Head::EMPTY)
    }
    async fn prune_audit(&self, _: u64, _: u64, _: u32, _: u64) -> Result<u64, StoreError> {
        Ok(0)
    }
}

pub(crate) struct Fixture {
    pub(crate) registry: Registry,
    pub(crate) clock: Arc<FixedClock>,
    presence: Arc<FixedPresence>,
    /// The waits for an executor so far.
    pub(crate) waits: Arc<AtomicU64>,
    pub(crate) dir: TempDir,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with_connect_wait(Duration::ZERO).await
    }

    /// A fixture whose `/connect` waits for executors.
    pub(crate) async fn with_connect_wait(connect_wait: Duration) -> Self {
        Self::with(connect_wait, Vec::new()).await
    }

    /// A fixture that trusts these issuers.
    pub(crate) async fn trusting(issuers: Vec<IssuerConfig>) -> Self {
        Self::with(Duration::ZERO, issuers).await
    }

    async fn with(connect_wait: Duration, issuers: Vec<IssuerConfig>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let waits = Arc::<AtomicU64>::default();
        let clock = Arc::new(FixedClock(AtomicU64::new(START)));
        let presence = Arc::new(FixedPresence {
            connected: watch::channel(BTreeMap::new()).0,
            waits: waits.clone(),
        });
        let options = Options {
            public_url: PublicUrl::FromHost,
            connect_wait,
            audit_retention: AuditRetention::default(),
            history_retention: HistoryRetention::default(),
            store_metrics: Arc::new(NoStoreMetrics),
            issuers,
            fetch_keys: Arc::new(crate::traits::NoFetch),
            trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
            presence: presence.clone(),
            clock: clock.clone(),
            random: Arc::new(FixedRandom::default()),
        };
        let registry = Registry::open(dir.path(), options).await.unwrap();
        Self { registry, clock, presence, waits, dir }
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.clock.0.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Creates a token and returns its text.
    pub(crate) async fn token(&self, role: Role, environments: &str) -> String {
        let new = CreateToken { environments: environments.to_owned(), ..CreateToken::new(role) };
        self.registry.tokens().create(None, &new).await.unwrap().token.expose().to_owned()
    }

    /// Creates a token and returns its bearer.
    pub(crate) async fn caller(&self, role: Role, environments: &str) -> Caller {
        let token = self.token(role, environments).await;
        self.registry.tokens().authenticate(&token, None, StoreRetry::NEVER).await.unwrap()
    }

    pub(crate) async fn register(&self, caller: &Caller, environment: &str) -> RegisterReply {
        let request = register_request();
        self.registry
            .registrations()
            .register(caller, &env(environment), &request, &base(), StoreRetry::for_registration())
            .await
            .unwrap()
    }

    /// Registers and connects the executor.
    pub(crate) async fn online(&self, caller: &Caller, environment: &str) -> RegisterReply {
        let reply = self.register(caller, environment).await;
        self.set_connected(environment, &reply.executor_registration_id);
        reply
    }

    pub(crate) fn set_connected(&self, environment: &str, registration: &RegistrationId) {
        let id = registration.clone();
        self.presence.connected.send_modify(|all| drop(all.insert(env(environment), id)));
    }

    /// Waits for the `times`th wait for an executor to begin.
    pub(crate) async fn until_waiting(&self, times: u64) {
        wait_until(async || self.waits.load(Ordering::SeqCst) >= times).await;
    }
}

/// Waits until a condition holds. Fails after a minute of real time.
pub(crate) async fn wait_until(mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "the condition did not become true");
        tokio::task::yield_now().await;
    }
}

pub(crate) fn env(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

pub(crate) fn base() -> WebsocketBase {
    PublicUrl::FromHost.base(Some("relay.test:7000")).unwrap()
}

/// The ticket in a reply's URL.
pub(crate) fn ticket(url: &rendez_proto::registry::RendezvousUrl) -> String {
    url.expose().strip_prefix("ws://relay.test:7000/v1/rendezvous?ticket=").unwrap().to_owned()
}

pub(crate) fn key(n: u8) -> PublicKey {
    PublicKey::hybrid([n; 32], Box::new([n; 1184]))
}

/// A Rendez executor, which stock orchestrators can use too.
pub(crate) fn register_request() -> RegisterRequest {
    RegisterRequest {
        security_profile: Profile::NoiseHybridIkV1,
        executor_public_key: key(1),
        rendez: Some(Profiles { profiles: vec![Profile::RendezHybridIkV1, Profile::RendezIkV1] }),
    }
}

pub(crate) fn connect_request(profiles: Option<&[Profile]>) -> ConnectRequest {
    ConnectRequest {
        harness_public_key: key(2),
        rendez: profiles.map(|profiles| Profiles { profiles: profiles.to_vec() }),
    }
}

/// The executor's request after a handshake that `reply` permitted.
pub(crate) fn validate_request(reply: &ConnectReply) -> ValidateRequest {
    ValidateRequest {
        executor_registration_id: reply.executor_registration_id.clone(),
        harness_public_key: key(2).for_suite(reply.security_profile.suite()).unwrap(),
        harness_key_authorization: reply.harness_key_authorization.clone(),
    }
}
