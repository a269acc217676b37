//! The registry: one resource per kind of data, over a shared context.
//!
//! Each resource is a small type in a file of its own that borrows the context:
//! store, clock, randomness, signer, options and counters. A resource owns the
//! rules; the store only keeps rows. Each operation has one error type, whose
//! variants name the side at fault.

mod audit_events;
mod context;
pub mod environments;
pub mod executor_keys;
pub mod node;
mod options;
pub mod registrations;
pub mod revocations;
pub mod tickets;
pub mod tokens;

use std::fs::DirBuilder;
use std::io::{self, ErrorKind::NotADirectory, ErrorKind::NotFound};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::VerifyingKey;
use ipnet::IpNet;
use tokio::time::timeout;

use self::context::Context;
use self::environments::Environments;
use self::executor_keys::ExecutorKeys;
use self::node::Node;
pub use self::options::Options;
use self::registrations::Registrations;
use self::revocations::Revocations;
use self::tickets::Tickets;
use self::tokens::Tokens;
use crate::audit::Audit;
use crate::history::History;
use crate::jwt::Issuers;
use crate::jwt::config::InvalidIssuer;
use crate::public_url::PublicUrl;
use crate::signer::{Signer, SignerError};
use crate::stats::Stats;
use crate::store::StoreError;
use crate::store::sqlite::{SqliteOpenError, SqliteStore};
use crate::traits::random_bytes;

/// How long a relay that stops waits for background writes.
pub(crate) const SHUTDOWN_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of the database file in the state directory.
pub const DATABASE_FILE: &str = "registry.sqlite";

/// The registry. Clones share its state.
#[derive(Clone)]
pub struct Registry {
    ctx: Arc<Context>,
}

/// The state directory cannot be used. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be created or accessed.
    #[error("{}: {source}", path.display())]
    Directory {
        /// The directory or a file in it.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The directory is not the state of a relay.
    #[error("{}: the database is missing; this is not the state directory of a relay", .0.display())]
    NoDatabase(PathBuf),
    /// The configuration of an issuer is invalid.
    #[error(transparent)]
    Issuer(#[from] InvalidIssuer),
    /// The signing key cannot be used.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The database cannot be used.
    #[error("{}: {source}", path.display())]
    Database {
        /// The database file.
        path: PathBuf,
        /// The reason.
        source: SqliteOpenError,
    },
}

/// Whether the file exists. Permission errors are returned, not reported as
/// "missing".
pub(crate) fn is_file(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file()),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => Ok(false),
        Err(error) => Err(error),
    }
}

impl OpenError {
    /// Whether the database was locked: a retry may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, OpenError::Database { source, .. } if source.is_busy())
    }
}

impl Registry {
    /// Opens the registry in `state_dir`. Creates the directory (mode 0700), the
    /// signing key and the SQLite database if they do not exist. Several processes
    /// may have the same directory open.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(state_dir: &Path, options: Options) -> Result<Self, OpenError> {
        // before anything is created: a typing error leaves no files behind
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

    /// Opens the registry in the state directory of a relay, which may be running
    /// and older than this program. Creates nothing: neither directory, key and
    /// database, nor a newer schema.
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
        let instance = random_bytes(&*options.random).map_err(SignerError::from)?;
        let store = Arc::new(store.with_metrics(options.store_metrics.clone()));
        let instance = u64::from_be_bytes(instance);
        let ctx = Arc::new(Context::new(store, instance, signer, issuers, options));
        Ok(Self { ctx })
    }

    /// Creates a registry over any store. `instance` differs at each start.
    #[cfg(test)]
    pub(crate) fn new(
        store: Arc<dyn crate::store::Store>,
        instance: u64,
        signer: Signer,
        options: Options,
    ) -> Self {
        let issuers = Issuers::new(&options.issuers).unwrap();
        let ctx = Arc::new(Context::new(store, instance, signer, issuers, options));
        Self { ctx }
    }

    /// Writes the history and the audit log in the background, forever. A relay
    /// runs this beside the registry.
    pub async fn write_behind(self) {
        tokio::join!(self.ctx.history.run(), self.ctx.audit.run());
    }

    /// Writes the rest of what [`write_behind`](Self::write_behind) writes, when a
    /// relay stops. Waits at most `SHUTDOWN_FLUSH_TIMEOUT`.
    pub async fn flush_on_shutdown(&self) {
        let history = timeout(SHUTDOWN_FLUSH_TIMEOUT, self.history().flush());
        let audit = timeout(SHUTDOWN_FLUSH_TIMEOUT, self.audit().flush_all());
        // each on its own: a failure of one does not affect the other
        let (history, audit) = tokio::join!(history, audit);
        for (what, done) in [("history", history), ("audit log", audit)] {
            match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "failed to flush the {what} on shutdown; its last entries are lost")
                }
                Err(_) => tracing::warn!(
                    "failed to flush the {what} on shutdown: the database is slow; its last entries are lost"
                ),
            }
        }
    }

    /// The tokens.
    pub fn tokens(&self) -> Tokens<'_> {
        Tokens::new(&self.ctx)
    }

    /// The executors that authenticate with a key.
    pub fn executor_keys(&self) -> ExecutorKeys<'_> {
        ExecutorKeys::new(&self.ctx)
    }

    /// The registrations of executors.
    pub fn registrations(&self) -> Registrations<'_> {
        Registrations::new(&self.ctx)
    }

    /// The environments.
    pub fn environments(&self) -> Environments<'_> {
        Environments::new(&self.ctx)
    }

    /// The tickets, for the relay.
    pub fn tickets(&self) -> Tickets<'_> {
        Tickets::new(&self.ctx)
    }

    /// The revocations, for the relay.
    pub fn revocations(&self) -> Revocations<'_> {
        Revocations::new(&self.ctx)
    }

    /// This node of the relay.
    pub fn node(&self) -> Node<'_> {
        Node::new(&self.ctx)
    }

    /// The history of executors' connections.
    pub fn history(&self) -> &History {
        &self.ctx.history
    }

    /// The audit log.
    pub fn audit(&self) -> &Arc<Audit> {
        &self.ctx.audit
    }

    /// Returns the registry's time, in seconds since 1970.
    pub fn unix_now(&self) -> u64 {
        self.ctx.now()
    }

    /// Returns the key that verifies this registry's tickets.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.ctx.signer.verifying_key()
    }

    /// Returns the counters of operations and outcomes since the start.
    pub fn stats(&self) -> &Stats {
        &self.ctx.stats
    }

    /// Checks that the store responds, for readiness checks.
    ///
    /// # Errors
    /// The store does not respond.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.ctx.store().last_revocation().await.map(drop)
    }

    /// The base of websocket URLs.
    pub(crate) fn public_url(&self) -> &PublicUrl {
        &self.ctx.options.public_url
    }

    /// The proxies whose `X-Forwarded-For` is trusted.
    pub(crate) fn trusted_proxies(&self) -> &[IpNet] {
        &self.ctx.options.trusted_proxies
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
    async fn audit_log_is_flushed_despite_history_failure() {
        let fixture = crate::testing::Fixture::new().await;
        let registry = &fixture.registry;
        let executor = fixture.caller(crate::model::Role::Executor, "*").await;
        let path = fixture.dir.path().join(DATABASE_FILE);
        let store = SqliteStore::open(&path).await.unwrap();
        sqlx::query("DROP TABLE connections").execute(store.pool()).await.unwrap();
        let registered = fixture.register(&executor, "dev").await;
        registry.history().record(crate::store::connections::ConnectionRow {
            id: registry.history().next_id(),
            environment: registered.environment_id,
            registration: registered.executor_registration_id,
            generation: rendez_proto::ids::Generation(1),
            connected_at: 1,
            ended: None,
            received_bytes: 0,
            sent_bytes: 0,
        });
        registry.flush_on_shutdown().await;
        assert_eq!((registry.history().unwritten(), registry.audit().unwritten()), (1, 0));
        let rows = registry.audit().page(0).await.unwrap().rows;
        assert_eq!(rows.last().unwrap().event.kind, rendez_proto::audit::AuditKind::Register);
    }

    #[tokio::test]
    async fn attach_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let attach = async || Registry::attach(&state, Options::default()).await;
        assert!(matches!(attach().await, Err(OpenError::NoDatabase(_))));
        assert!(!state.exists());

        // an access error is not reported as a missing database
        let loop_path = dir.path().join(DATABASE_FILE);
        std::os::unix::fs::symlink(&loop_path, &loop_path).unwrap();
        let error = Registry::attach(dir.path(), Options::default()).await.unwrap_err();
        assert!(matches!(&error, OpenError::Directory { path, .. } if *path == loop_path));

        let registry = Registry::open(&state, Options::default()).await.unwrap();
        let attached = attach().await.unwrap();
        assert_eq!(attached.verifying_key(), registry.verifying_key());
        attached.tokens().bootstrap().await.unwrap();
        assert_eq!(registry.tokens().list(None).await.unwrap().tokens.len(), 1);

        let key = state.join(crate::signer::SIGNING_KEY_FILE);
        std::fs::remove_file(&key).unwrap();
        let error = attach().await.unwrap_err();
        assert!(matches!(error, OpenError::Signer(SignerError::Missing(_))), "{error}");
        assert!(!key.exists());
    }
}
