//! Composes registry, rendezvous, listeners and metrics.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rendez_program::logging::LogHandle;
use rendez_program::settings::Loaded;
use rendez_program::signals::Stop;
use rendez_registry::seam::{FetchKeys, NoFetching};
use rendez_registry::store::StoreError;
use rendez_registry::{OpenError, Options, PublicUrl, Registry};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, MaybeListen};
use crate::connections::{ConnectionTable, QuotaAccounts, RevocationWatcher};
use crate::drain::{Pace, send_away};
use crate::issuers::{self, IssuersError, OverHttps};
use crate::listen::Listener;
use crate::metrics::{self, Metrics, StoreTimes};
use crate::reload::{Reload, hangups};
use crate::rendezvous::Rendezvous;
use crate::routes;
use crate::tenure::Tenure;
use crate::tls::Tls;
pub use crate::tls::TlsError;

/// How long an answer to an operator may take when the relay stops.
const OPERATORS_TIMEOUT: Duration = Duration::from_secs(1);
/// Most connections to the admin listener at once: scrapers, balancers and a
/// few people.
const ADMIN_CONNECTIONS_MAX: usize = 256;

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory is the trouble.
    #[error("cannot open the relay's state: {0}")]
    State(#[from] OpenError),
    /// The file of issuers is the trouble.
    #[error("cannot use the issuers: {0}")]
    Issuers(#[from] IssuersError),
    /// HTTPS cannot be set up on this machine.
    #[error("cannot set up HTTPS for the keys of issuers: {0}")]
    Fetch(String),
    /// The database is the trouble.
    #[error("cannot use the relay's database: {0}")]
    Store(#[from] StoreError),
    /// The certificate is the trouble.
    #[error("cannot serve TLS: {0}")]
    Tls(#[from] TlsError),
    /// The address is the trouble.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's words.
        source: std::io::Error,
    },
}

/// A relay that listens and does not serve yet.
pub struct Relay {
    settings: Loaded<Config>,
    public: Listener,
    admin: Option<Listener>,
    rendezvous: Rendezvous,
    metrics: Arc<Metrics>,
    tls: Option<Arc<Tls>>,
    log: LogHandle,
    /// What was revoked before anybody could connect.
    last_withdrawal: u64,
    tenure: Tenure,
}

impl Relay {
    /// Opens the state and the listeners.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(settings: impl Into<Loaded<Config>>) -> Result<Self, StartError> {
        let settings = settings.into();
        let config = &settings.config;
        metrics::started();
        let accounts = QuotaAccounts::new(config.quotas());
        let connections = Arc::new(ConnectionTable::new(accounts));
        let tls = Tls::open(config)?;
        let public_url = match &config.public_url.0 {
            PublicUrl::FromHost if tls.is_some() => PublicUrl::FromHostByTls,
            configured => configured.clone(),
        };
        let issuers = issuers::read(config.auth_issuers.as_deref())?;
        // the system's trust store is read only where it is needed
        let fetch_keys: Arc<dyn FetchKeys> = match issuers.is_empty() {
            true => Arc::new(NoFetching),
            false => OverHttps::new().map_err(StartError::Fetch)?,
        };
        issuers::warn_of_keys(&issuers);
        let store = Arc::<StoreTimes>::default();
        let options = Options {
            timing: store.clone(),
            public_url,
            connect_wait: config.connect_wait,
            audit_keep: config.audit_keep(),
            history_keep: config.history_keep(),
            trusted_proxies: config.auth_trusted_proxies.0.networks().to_vec(),
            issuers,
            fetch_keys,
            presence: connections.clone(),
            ..Options::default()
        };
        let registry = match Registry::open(&config.state, options).await {
            Err(OpenError::Issuer(why)) => {
                let file = config.auth_issuers.as_deref().unwrap_or(Path::new(""));
                return Err(IssuersError::new(file, why).into());
            }
            opened => opened?,
        };
        let last_withdrawal = registry.revocations().last().await?;
        let public = bind(config.listen, config.connections_max).await?.with_tls(tls.clone());
        let public = public.reading(config.websocket_read_buffer.bytes());
        let admin = match config.admin_listen {
            MaybeListen::Off => None,
            MaybeListen::On(address) => Some(bind(address, ADMIN_CONNECTIONS_MAX).await?),
        };
        // Not before the ports are ours: if another relay has them, or the state
        // alone, what is open in the history is open there.
        let lock = |source| OpenError::Directory { path: config.state.clone(), source };
        let tenure = Tenure::begin(&config.state).map_err(lock)?;
        if tenure.is_ours() {
            registry.history().end_open().await?;
        } else {
            let state = config.state.display().to_string();
            tracing::warn!(
                state,
                "another relay runs on this state directory, so the history of connections is \
                 left to it; orchestrators here do not reach the executors there"
            );
        }
        let rendezvous = Rendezvous { registry, connections };
        let metrics = Arc::new(Metrics::new(&rendezvous, public.limit(), tls.clone(), store));
        let log = LogHandle::default();
        Ok(Self { settings, public, admin, rendezvous, metrics, tls, log, last_withdrawal, tenure })
    }

    /// Lets SIGHUP change the level of this log.
    #[must_use]
    pub fn logging(self, log: LogHandle) -> Self {
        Self { log, ..self }
    }

    /// Where the relay listens for clients.
    pub fn local_addr(&self) -> SocketAddr {
        self.public.local_addr()
    }

    /// Where it listens for operators, if it does.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(Listener::local_addr)
    }

    /// The settings in force at the start.
    pub fn config(&self) -> &Config {
        &self.settings.config
    }

    /// The relay's registry, for creating the first tokens and for counters.
    pub fn registry(&self) -> &Registry {
        &self.rendezvous.registry
    }

    /// The open websockets and their counters.
    pub fn connections(&self) -> &Arc<ConnectionTable> {
        &self.rendezvous.connections
    }

    /// Serves until told to stop, then sends everybody away and returns.
    pub async fn serve(self, stop: impl Into<Stop>) {
        let stop = stop.into();
        let Self {
            settings,
            public,
            admin,
            rendezvous,
            metrics,
            tls,
            log,
            last_withdrawal,
            tenure,
        } = self;
        let Rendezvous { registry, connections } = rendezvous.clone();
        // Before anybody can know that there is something to signal.
        let hangups = hangups();
        tracing::info!(address = %public.local_addr(), "listening");
        hint_at_tokens(&registry).await;
        let tasks = CancellationToken::new();
        let writer = tokio::spawn(registry.clone().write_behind());
        let sweeper = tokio::spawn(connections.clone().sweep(tasks.child_token()));
        let watcher =
            RevocationWatcher::new(connections.clone(), registry.clone(), last_withdrawal);
        let watcher = tokio::spawn(watcher.run(tasks.child_token()));
        let succession = tokio::spawn({
            let (mut tenure, cancel) = (tenure, tasks.child_token());
            async move {
                let _ = cancel.run_until_cancelled(tenure.succeed()).await;
                tenure
            }
        });
        let operators = TaskTracker::new();
        if let Some(listener) = admin {
            let address = listener.local_addr();
            tracing::info!(%address, "listening for operators");
            if !address.ip().is_loopback() {
                tracing::warn!(%address, "metrics are served to whoever reaches this address");
            }
            let app = routes::admin(&rendezvous, &metrics);
            // Its requests are not counted as those of clients.
            let uncounted = Arc::default();
            operators.spawn(listener.serve(app, uncounted, operators.clone(), tasks.child_token()));
        }
        let pace = Pace::of(&settings.config);
        let whole_v1 = settings.config.admin_on_public;
        if let Some(tls) = &tls {
            tokio::spawn(tls.clone().watch(tasks.child_token()));
            tokio::spawn(tls.clone().renew(tasks.child_token()));
        }
        let reload = Reload::new(settings, log, tls, connections.clone(), registry.clone());
        if let Some(hangups) = hangups {
            let cancel = tasks.child_token();
            tokio::spawn(async move { reload.at(hangups, cancel).await });
        }

        let requests = TaskTracker::new();
        let app = routes::public(&rendezvous, &metrics, whole_v1);
        let closed = CancellationToken::new();
        let serving = public.serve(app, connections.clone(), requests.clone(), closed.clone());
        let serving = tokio::spawn(serving);
        stop.gently.cancelled().await;
        let deadline = Instant::now() + pace.deadline;
        connections.start_draining();
        if !pace.announce.is_zero() {
            let seconds = pace.announce.as_secs_f64();
            tracing::info!(
                seconds,
                "asked to stop; not ready any more, serving until balancers know"
            );
        }
        let _ = stop.at_once.run_until_cancelled(tokio::time::sleep(pace.announce)).await;
        // The listener is closed first, so that nobody who is sent away comes
        // back to a relay that accepts and answers nothing any more.
        connections.close();
        closed.cancel();
        let _ = serving.await;
        send_away(pace, deadline, &connections, &requests, &stop.at_once).await;
        tasks.cancel();
        operators.close();
        let operators = tokio::time::timeout(OPERATORS_TIMEOUT, operators.wait());
        let _ = stop.at_once.run_until_cancelled(operators).await;
        let _ = (sweeper.await, watcher.await);
        // In this order: whoever writes now finishes first.
        registry.write_the_rest().await;
        writer.abort();
        // All that was open here is written as ended.
        drop(succession.await);
        tracing::info!("stopped");
    }
}

async fn bind(address: SocketAddr, connections_max: usize) -> Result<Listener, StartError> {
    let bound = Listener::bind(address, connections_max).await;
    bound.map_err(|source| StartError::Listen { address, source })
}

/// Nobody can do anything with a relay that has no token.
async fn hint_at_tokens(registry: &Registry) {
    if registry.tokens().list(None).await.is_ok_and(|list| list.tokens.is_empty()) {
        tracing::warn!(
            "there is no token yet; make the first one with \
             `rendez token create --role admin --state` and this relay's state directory"
        );
    }
}
