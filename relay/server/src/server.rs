//! Composes a relay and runs it until it is asked to stop.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rendez_program::logging::LogHandle;
use rendez_program::settings::Loaded;
use rendez_program::signals::Shutdown;
use rendez_registry::store::StoreError;
use rendez_registry::traits::{FetchKeys, NoFetch};
use rendez_registry::{OpenError, Options, PublicUrl, Registry};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, MaybeListen};
use crate::connections::{
    ConnectionLimit, ConnectionTable, QuotaAccounts, RevocationWatcher, StrangerBounds,
};
use crate::drain::{self, DrainSchedule};
use crate::http::{Listener, routes};
use crate::issuers::{self, HttpsKeyFetcher, IssuersError};
use crate::metrics::{self, Metrics, StoreTimes};
use crate::reload::Reload;
use crate::rendezvous::Rendezvous;
use crate::state_lock::StateLock;
use crate::sys::Hangups;
use crate::tls::Tls;
pub use crate::tls::TlsError;

/// How long a shutdown waits for requests to the admin listener.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The limit of connections to the admin listener: scrapers, balancers and a few
/// people.
const ADMIN_CONNECTIONS_MAX: usize = 256;

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be opened.
    #[error("cannot open the relay's state: {0}")]
    State(#[from] OpenError),
    /// The file of issuers cannot be used.
    #[error("cannot use the issuers: {0}")]
    Issuers(#[from] IssuersError),
    /// HTTPS cannot be set up on this machine.
    #[error("cannot set up HTTPS for the keys of issuers: {0}")]
    Fetch(String),
    /// The database cannot be used.
    #[error("cannot use the relay's database: {0}")]
    Store(#[from] StoreError),
    /// TLS cannot be served.
    #[error("cannot serve TLS: {0}")]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
}

/// A relay that is bound to its addresses and does not serve yet.
pub struct Relay {
    settings: Loaded<Config>,
    public: Listener,
    admin: Option<Listener>,
    rendezvous: Rendezvous,
    metrics: Arc<Metrics>,
    tls: Option<Arc<Tls>>,
    log: LogHandle,
    /// The newest withdrawal before any websocket could open.
    last_revocation: u64,
    state_lock: StateLock,
}

impl Relay {
    /// Opens the state and binds the listeners.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(settings: impl Into<Loaded<Config>>) -> Result<Self, StartError> {
        let settings = settings.into();
        let config = &settings.config;
        metrics::started();
        let connections = ConnectionTable::new(QuotaAccounts::new(config.quotas()));
        let connections = Arc::new(connections);
        let tls = Tls::open(config)?;
        let store_times = Arc::<StoreTimes>::default();
        let registry = open_registry(config, tls.is_some(), &connections, &store_times).await?;
        let last_revocation = registry.revocations().last().await?;
        let public = bind(config.listen, config.connections_max, config.strangers()).await?;
        let public = public.with_tls(tls.clone()).behind_proxies_of(registry.clone());
        let public = public.reading(config.websocket_read_buffer.bytes());
        let admin = match config.admin_listen {
            MaybeListen::Off => None,
            MaybeListen::On(address) => {
                Some(bind(address, ADMIN_CONNECTIONS_MAX, StrangerBounds::NONE).await?)
            }
        };
        let state_lock = lock_state(&config.state, &registry).await?;
        let rendezvous = Rendezvous { registry, connections };
        let metrics = Metrics::new(&rendezvous, public.limit(), tls.clone(), store_times);
        let (metrics, log) = (Arc::new(metrics), LogHandle::default());
        Ok(Self {
            settings,
            public,
            admin,
            rendezvous,
            metrics,
            tls,
            log,
            last_revocation,
            state_lock,
        })
    }

    /// Lets SIGHUP change the level of this log.
    #[must_use]
    pub fn logging(self, log: LogHandle) -> Self {
        Self { log, ..self }
    }

    /// The address of the public listener.
    pub fn local_addr(&self) -> SocketAddr {
        self.public.local_addr()
    }

    /// The address of the admin listener, if there is one.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Listener::local_addr)
    }

    /// The settings at the start.
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    /// The relay's registry, for creating the first tokens and for counters.
    pub fn registry(&self) -> &Registry {
        &self.rendezvous.registry
    }

    /// The open connections of the public listener.
    pub fn connection_limit(&self) -> ConnectionLimit {
        self.public.limit()
    }

    /// The open websockets and their counters.
    pub fn connections(&self) -> &Arc<ConnectionTable> {
        &self.rendezvous.connections
    }

    /// Serves until `stop`, then drains and returns.
    pub async fn serve(self, stop: impl Into<Shutdown>) {
        let stop = stop.into();
        // Caught before the log shows a relay that can be signalled.
        let hangups = Hangups::catch();
        tracing::info!(address = %self.public.local_addr(), "listening");
        let Rendezvous { registry, connections } = self.rendezvous.clone();
        warn_without_tokens(&registry).await;
        let background = Background::start(&self.rendezvous, self.last_revocation, self.state_lock);
        if let Some(listener) = self.admin {
            background.serve_admin(listener, routes::admin(&self.rendezvous, &self.metrics));
        }
        let schedule = DrainSchedule::of(&self.settings.config);
        let admin_on_public = self.settings.config.admin_on_public;
        if let Some(tls) = &self.tls {
            background.spawn(|cancel| tls.clone().watch(cancel));
            background.spawn(|cancel| tls.clone().renew(cancel));
        }
        if let Some(hangups) = hangups {
            let (connections, registry) = (connections.clone(), registry.clone());
            let reload = Reload::new(self.settings, self.log, self.tls, connections, registry);
            background.spawn(|cancel| reload.at(hangups, cancel));
        }

        let (requests, closing) = (TaskTracker::new(), CancellationToken::new());
        let app = routes::public(&self.rendezvous, &self.metrics, admin_on_public);
        let (table, cancel) = (connections.clone(), closing.clone());
        let accepting = tokio::spawn(self.public.serve(app, table, requests.clone(), cancel));
        stop.graceful.cancelled().await;
        let deadline = Instant::now() + schedule.deadline;
        drain::announce(schedule, &connections, &stop.immediate).await;
        connections.close();
        // The listener closes before the websockets, so that no client reconnects to a
        // relay that accepts connections and does not answer.
        closing.cancel();
        let _ = accepting.await;
        let at_once = &stop.immediate;
        drain::close_websockets(schedule, deadline, &connections, &requests, at_once).await;
        background.stop(&registry, at_once).await;
        tracing::info!("stopped");
    }
}

/// The tasks beside the public listener.
struct Background {
    cancel: CancellationToken,
    writer: JoinHandle<()>,
    sweeper: JoinHandle<()>,
    watcher: JoinHandle<()>,
    /// Returns the lock when it is cancelled.
    locking: JoinHandle<StateLock>,
    admin_requests: TaskTracker,
}

impl Background {
    fn start(rendezvous: &Rendezvous, last_revocation: u64, mut state_lock: StateLock) -> Self {
        let Rendezvous { registry, connections } = rendezvous.clone();
        let cancel = CancellationToken::new();
        let writer = tokio::spawn(registry.clone().write_behind());
        let sweeper = tokio::spawn(connections.clone().sweep(cancel.child_token()));
        let watcher = RevocationWatcher::new(connections, registry, last_revocation);
        let watcher = tokio::spawn(watcher.run(cancel.child_token()));
        let locking = tokio::spawn({
            let cancel = cancel.child_token();
            async move {
                let _ = cancel.run_until_cancelled(state_lock.acquire()).await;
                state_lock
            }
        });
        Self { cancel, writer, sweeper, watcher, locking, admin_requests: TaskTracker::new() }
    }

    /// Starts a task that ends when its token is cancelled. A shutdown does not wait
    /// for it.
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(CancellationToken) -> F,
    ) {
        tokio::spawn(task(self.cancel.child_token()));
    }

    fn serve_admin(&self, listener: Listener, app: Router) {
        let address = listener.local_addr();
        tracing::info!(%address, "listening for operators");
        if !address.ip().is_loopback() {
            tracing::warn!(
                %address,
                "any client that reaches this address can read the metrics"
            );
        }
        // A table of its own: its requests are not counted with those of clients.
        let (requests, cancel) = (self.admin_requests.clone(), self.cancel.child_token());
        self.admin_requests.spawn(listener.serve(app, Arc::default(), requests, cancel));
    }

    async fn stop(self, registry: &Registry, at_once: &CancellationToken) {
        self.cancel.cancel();
        self.admin_requests.close();
        let admin_requests = timeout(ADMIN_TIMEOUT, self.admin_requests.wait());
        let _ = at_once.run_until_cancelled(admin_requests).await;
        let _ = (self.sweeper.await, self.watcher.await);
        // The writer may be in the middle of a write: that one finishes first.
        registry.flush_on_shutdown().await;
        self.writer.abort();
        // Released last: the history shows the end of every connection of this relay.
        drop(self.locking.await);
    }
}

async fn open_registry(
    config: &Config,
    tls: bool,
    connections: &Arc<ConnectionTable>,
    store_times: &Arc<StoreTimes>,
) -> Result<Registry, StartError> {
    let public_url = match &config.public_url.0 {
        PublicUrl::FromHost if tls => PublicUrl::FromHostByTls,
        configured => configured.clone(),
    };
    let issuers = issuers::read(config.auth_issuers.as_deref())?;
    // The system's trust store is read only if it is needed.
    let fetch_keys: Arc<dyn FetchKeys> = match issuers.is_empty() {
        true => Arc::new(NoFetch),
        false => HttpsKeyFetcher::new().map_err(StartError::Fetch)?,
    };
    issuers::warn_about_unreadable_keys(&issuers);
    let options = Options {
        store_metrics: store_times.clone(),
        public_url,
        connect_wait: config.connect_wait,
        audit_retention: config.audit_keep(),
        history_retention: config.history_keep(),
        trusted_proxies: config.auth_trusted_proxies.0.networks().to_vec(),
        issuers,
        fetch_keys,
        presence: connections.clone(),
        ..Options::default()
    };
    match Registry::open(&config.state, options).await {
        Err(OpenError::Issuer(why)) => {
            let file = config.auth_issuers.as_deref().unwrap_or(Path::new(""));
            Err(IssuersError::new(file, why).into())
        }
        opened => Ok(opened?),
    }
}

/// Takes the state's lock and then the history over, if no other relay holds the
/// lock. Called after the listeners are bound: a relay that cannot start must not
/// end the connections of one that runs.
async fn lock_state(state: &Path, registry: &Registry) -> Result<StateLock, StartError> {
    let failed = |source| OpenError::Directory { path: state.to_owned(), source };
    let state_lock = StateLock::open(state).map_err(failed)?;
    if state_lock.is_held() {
        registry.history().end_open().await?;
    } else {
        let state = state.display().to_string();
        tracing::warn!(
            state,
            "another relay runs on this state directory, so the history of connections is \
             left to it; orchestrators here do not reach the executors there"
        );
    }
    Ok(state_lock)
}

async fn bind(
    address: SocketAddr,
    connections_max: usize,
    strangers: StrangerBounds,
) -> Result<Listener, StartError> {
    let bound = Listener::bind(address, connections_max, strangers).await;
    bound.map_err(|source| StartError::Listen { address, source })
}

/// Without a token, no client can use the relay.
async fn warn_without_tokens(registry: &Registry) {
    if registry.tokens().list(None).await.is_ok_and(|list| list.tokens.is_empty()) {
        tracing::warn!(
            "this relay has no tokens yet: create the first one with \
             `rendez token create --role admin --state` and its state directory"
        );
    }
}
