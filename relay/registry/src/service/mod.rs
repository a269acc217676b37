//! The registry's use cases: who may do what, with which consequences.
//!
//! [`Registry`] owns time, ids and signatures; the store only remembers. Each
//! operation has one error type that says who is at fault.

pub mod admin;
pub mod auth;
pub mod environments;
pub(crate) mod patience;
pub mod proofs;
pub mod registrations;
mod status;
pub mod tickets;
mod trail;
pub mod waiting;
pub mod withdrawals;

use std::fs::DirBuilder;
use std::io::{self, ErrorKind::NotADirectory, ErrorKind::NotFound};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use ipnet::IpNet;
use rendez_proto::limits;
use tokio::time::{Instant, timeout};

use crate::audit::{Audit, AuditKeep};
use crate::damage::Said;
use crate::history::{History, HistoryKeep};
use crate::jwt::Issuers;
use crate::jwt::config::{InvalidIssuer, IssuerConfig};
use crate::model::TokenPattern;
use crate::public_url::PublicUrl;
use crate::seam::{Clock, FetchKeys, NoFetching, NoRandomness, NobodyConnected, Presence, Random};
use crate::seam::{NoTiming, SystemClock, SystemRandom, Timing, random_bytes};
use crate::signer::{Signer, SignerError};
use crate::stats::Stats;
use crate::store::sqlite::{SqliteOpenError, SqliteStore};
use crate::store::{Store, StoreError};

/// How long a stopping relay waits for what is written in the background.
pub(crate) const WRITE_FAREWELL: Duration = Duration::from_secs(2);

/// Name of the database file in the state directory.
pub const DATABASE_FILE: &str = "registry.sqlite";

/// The registry. Clones share it.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
    /// Until when a call that this handle was made for tries again.
    patience: Option<Instant>,
}

struct Inner {
    store: Arc<dyn Store>,
    history: History,
    audit: Arc<Audit>,
    signer: Signer,
    issuers: Issuers,
    started_at: u64,
    options: Options,
    stats: Stats,
}

/// What a registry is given besides its state.
#[derive(Clone)]
pub struct Options {
    /// Base of the websocket URLs in replies.
    pub public_url: PublicUrl,
    /// How long `/connect` waits for an executor that is away; zero: not at
    /// all. At most [`limits::CONNECT_WAIT_MAX`] counts.
    pub connect_wait: Duration,
    /// How much of the audit log is kept.
    pub audit_keep: AuditKeep,
    /// How much of the history of connections is kept.
    pub history_keep: HistoryKeep,
    /// Other issuers whose tokens are accepted.
    pub issuers: Vec<IssuerConfig>,
    /// Gets their keys.
    pub fetch_keys: Arc<dyn FetchKeys>,
    /// Proxies whose `X-Forwarded-For` is believed; by default none.
    pub trusted_proxies: Vec<IpNet>,
    /// Who knows which executors are connected.
    pub presence: Arc<dyn Presence>,
    /// Who is told how long the database takes.
    pub timing: Arc<dyn Timing>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids and secrets.
    pub random: Arc<dyn Random>,
}

impl Default for Options {
    /// The system's time and randomness, URLs from the Host header, and nobody
    /// connected.
    fn default() -> Self {
        Self {
            public_url: PublicUrl::default(),
            connect_wait: limits::CONNECT_WAIT,
            audit_keep: AuditKeep::default(),
            history_keep: HistoryKeep::default(),
            issuers: Vec::new(),
            fetch_keys: Arc::new(NoFetching),
            trusted_proxies: Vec::new(),
            presence: Arc::new(NobodyConnected),
            timing: Arc::new(NoTiming),
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
        }
    }
}

/// The state directory cannot be used. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be made or looked into.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory, or what is in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a relay's.
    #[error("{}: there is no database here; this is not the state of a relay", .0.display())]
    NoDatabase(PathBuf),
    /// An issuer's configuration is the trouble.
    #[error(transparent)]
    Issuer(#[from] InvalidIssuer),
    /// The signing key is the trouble.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The database is the trouble.
    #[error("{}: {}", path.display(), Said(source))]
    Database {
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        source: SqliteOpenError,
    },
}

/// Whether there is a file, if that can be seen: nobody is told that nothing is
/// there who may not look.
pub(crate) fn is_file(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

impl OpenError {
    /// Whether somebody was in the way: the same may work later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, OpenError::Database { source, .. } if source.is_busy())
    }
}

impl Inner {
    fn new(
        store: Arc<dyn Store>,
        run: u64,
        signer: Signer,
        issuers: Issuers,
        options: Options,
    ) -> Self {
        let history = History::new(store.clone(), options.clock.clone(), run, options.history_keep);
        let audit = Audit::new(store.clone(), options.clock.clone(), options.audit_keep);
        let audit = Arc::new(audit);
        let stats = Stats::default();
        let started_at = options.clock.now_unix_secs();
        Self { store, history, audit, signer, issuers, started_at, options, stats }
    }
}

impl Registry {
    /// Opens the registry in `state_dir`: makes the directory (mode 0700), the
    /// signing key and the SQLite database if they do not exist. Several
    /// processes may have the same directory open.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(state_dir: &Path, options: Options) -> Result<Self, OpenError> {
        // before anything is made: a typing error should cost nothing
        let issuers = Issuers::new(&options.issuers)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_dir)
            .map_err(|source| OpenError::Directory { path: state_dir.to_owned(), source })?;
        let signer = Signer::open(state_dir, &*options.random)?;
        let path = state_dir.join(DATABASE_FILE);
        let store = SqliteStore::open(&path).await;
        let store = store.map_err(|source| OpenError::Database { path, source })?;
        Self::on(store, signer, issuers, options)
    }

    /// Opens the registry in the state directory of a relay, which may run
    /// meanwhile and be older than this program. Makes nothing: neither
    /// directory, key and database, nor a newer schema.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn attach(state_dir: &Path, options: Options) -> Result<Self, OpenError> {
        let issuers = Issuers::new(&options.issuers)?;
        let path = state_dir.join(DATABASE_FILE);
        match is_file(&path) {
            Ok(true) => {}
            Ok(false) => return Err(OpenError::NoDatabase(path)),
            Err(source) => return Err(OpenError::Directory { path, source }),
        }
        let signer = Signer::open_existing(state_dir)?;
        let store = SqliteStore::open_current(&path).await;
        let store = store.map_err(|source| OpenError::Database { path, source })?;
        Self::on(store, signer, issuers, options)
    }

    fn on(
        store: SqliteStore,
        signer: Signer,
        issuers: Issuers,
        options: Options,
    ) -> Result<Self, OpenError> {
        let run = random_bytes(&*options.random).map_err(SignerError::from)?;
        let store = Arc::new(store.with_timing(options.timing.clone()));
        let run = u64::from_be_bytes(run);
        let inner = Arc::new(Inner::new(store, run, signer, issuers, options));
        Ok(Self { inner, patience: None })
    }

    /// A registry over any store, for tests. `run` is another number at each
    /// start.
    #[cfg(test)]
    pub(crate) fn new(store: Arc<dyn Store>, run: u64, signer: Signer, options: Options) -> Self {
        let issuers = Issuers::new(&options.issuers).unwrap();
        let inner = Arc::new(Inner::new(store, run, signer, issuers, options));
        Self { inner, patience: None }
    }

    /// Writes in the background what need not be written at once, for ever.
    /// Whoever runs a relay runs this beside it.
    pub async fn write_behind(self) {
        tokio::join!(self.inner.history.run(), self.inner.audit.run());
    }

    /// Writes what [`write_behind`](Self::write_behind) has not yet, for a relay
    /// that stops; waits no longer than [`WRITE_FAREWELL`].
    pub async fn write_the_rest(&self) {
        let history = timeout(WRITE_FAREWELL, self.history().flush());
        let audit = timeout(WRITE_FAREWELL, self.audit().finish());
        // each for itself: that one cannot be written says nothing of the other
        let (history, audit) = tokio::join!(history, audit);
        for (what, done) in [("history", history), ("audit log", audit)] {
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the {what} lacks its end"),
                Err(_) => tracing::warn!("the {what} lacks its end: the database is slow"),
            }
        }
    }

    /// Which executors were connected when.
    pub fn history(&self) -> &History {
        &self.inner.history
    }

    /// Who did what.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.inner.audit
    }

    /// The registry's time, in seconds since 1970.
    pub fn unix_now(&self) -> u64 {
        self.now()
    }

    fn presence(&self) -> &dyn Presence {
        &*self.inner.options.presence
    }

    /// What verifies this registry's tickets.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.inner.signer.verifying_key()
    }

    /// What was asked and how it ended, since the start.
    pub fn stats(&self) -> &Stats {
        &self.inner.stats
    }

    /// Asks the store anything, for readiness checks.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.store().environments(&[TokenPattern::everything()], None, 1).await.map(drop)
    }

    /// Base of websocket URLs.
    pub(crate) fn public_url(&self) -> &PublicUrl {
        &self.inner.options.public_url
    }

    /// Whose `X-Forwarded-For` is believed.
    pub(crate) fn trusted_proxies(&self) -> &[IpNet] {
        &self.inner.options.trusted_proxies
    }

    fn issuers(&self) -> &Issuers {
        &self.inner.issuers
    }

    fn store(&self) -> &dyn Store {
        &*self.inner.store
    }

    fn now(&self) -> u64 {
        self.inner.options.clock.now_unix_secs()
    }

    fn random<const N: usize>(&self) -> Result<[u8; N], NoRandomness> {
        random_bytes(&*self.inner.options.random)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("stats", self.stats()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_history_that_cannot_be_written_does_not_cost_the_audit_log_its_end() {
        let fixture = crate::testing::Fixture::new().await;
        let registry = &fixture.registry;
        let executor = fixture.caller(crate::model::Role::Executor, "*").await;
        let path = fixture.dir.path().join(DATABASE_FILE);
        let store = SqliteStore::open(&path).await.unwrap();
        sqlx::query("DROP TABLE connections").execute(store.pool()).await.unwrap();
        let registered = fixture.register(&executor, "dev").await;
        registry.history().note(crate::store::connections::Connection {
            id: registry.history().next_id(),
            environment: registered.environment_id,
            registration: registered.executor_registration_id,
            generation: rendez_proto::ids::Generation(1),
            connected_at: 1,
            ended: None,
            received_bytes: 0,
            sent_bytes: 0,
        });
        registry.write_the_rest().await;
        assert_eq!((registry.history().unwritten(), registry.audit().unwritten()), (1, 0));
        let rows = registry.audit().page(0).await.unwrap().rows;
        assert_eq!(rows.last().unwrap().event.kind, rendez_proto::audit::AuditKind::Register);
    }

    #[tokio::test]
    async fn who_attaches_makes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let attach = async || Registry::attach(&state, Options::default()).await;
        assert!(matches!(attach().await, Err(OpenError::NoDatabase(_))));
        assert!(!state.exists());

        // what cannot be looked at is not what is not there
        let loop_path = dir.path().join(DATABASE_FILE);
        std::os::unix::fs::symlink(&loop_path, &loop_path).unwrap();
        let error = Registry::attach(dir.path(), Options::default()).await.unwrap_err();
        assert!(matches!(&error, OpenError::Directory { path, .. } if *path == loop_path));

        let registry = Registry::open(&state, Options::default()).await.unwrap();
        let attached = attach().await.unwrap();
        assert_eq!(attached.verifying_key(), registry.verifying_key());
        attached.bootstrap().await.unwrap();
        assert_eq!(registry.list_tokens(None).await.unwrap().tokens.len(), 1);

        let key = state.join(crate::signer::SIGNING_KEY_FILE);
        std::fs::remove_file(&key).unwrap();
        let error = attach().await.unwrap_err();
        assert!(matches!(error, OpenError::Signer(SignerError::Missing(_))), "{error}");
        assert!(!key.exists());
    }
}
