//! Composes registry and rendezvous behind one listener.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rendez_registry::{OpenError, Options, PublicUrl, RENDEZVOUS_PATH, Registry};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::directory::Directory;
use crate::edge::stats::EdgeStats;
use crate::edge::{Edge, rendezvous};
use crate::ledger::{Ledger, Quotas};

/// How long a client may take to send a request's head: a slow sender holds a
/// connection no longer than this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request in bytes; a ticket has under 2 KiB.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// How long open websockets get to close when the relay stops.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long accepting pauses when the system has no descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a relay needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where database and signing key live. Created with mode 0700.
    pub state_dir: PathBuf,
    /// How clients reach this relay.
    pub public_url: PublicUrl,
    /// Most TCP connections at once; further ones wait in the kernel.
    pub connections_max: usize,
    /// What everybody may use.
    pub quotas: Quotas,
}

/// Why a relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory is the trouble.
    #[error("cannot open the relay's state: {0}")]
    State(#[from] OpenError),
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
    listener: TcpListener,
    local: SocketAddr,
    edge: Edge,
    connections: Arc<Semaphore>,
}

impl Relay {
    /// Opens the state and the listener.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let directory = Arc::new(Directory::new(Ledger::new(config.quotas)));
        let options = Options {
            public_url: config.public_url,
            presence: directory.clone(),
            ..Options::default()
        };
        let registry = Registry::open(&config.state_dir, options).await?;
        let address = config.listen;
        let listen = |source| StartError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let edge = Edge {
            registry,
            directory,
            sockets: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            stats: Arc::default(),
        };
        let connections = Arc::new(Semaphore::new(config.connections_max));
        Ok(Self { listener, local, edge, connections })
    }

    /// Where the relay listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The relay's registry, for creating the first tokens and for counters.
    pub fn registry(&self) -> &Registry {
        &self.edge.registry
    }

    /// What is connected, for counters.
    pub fn directory(&self) -> &Arc<Directory> {
        &self.edge.directory
    }

    /// How websockets ended.
    pub fn edge_stats(&self) -> &Arc<EdgeStats> {
        &self.edge.stats
    }

    /// Serves until cancelled, then closes every websocket and returns.
    pub async fn serve(self, cancel: CancellationToken) {
        tracing::info!(address = %self.local, "listening");
        self.hint_at_tokens().await;
        let app = self.router();
        let sweeper = tokio::spawn(self.edge.directory.clone().sweep(cancel.child_token()));
        let requests = TaskTracker::new();
        let Self { listener, edge, connections, .. } = self;
        while let Some((tcp, permit)) =
            cancel.run_until_cancelled(accept(&listener, &connections)).await
        {
            let stats = edge.stats.clone();
            requests.spawn(serve_connection(tcp, permit, app.clone(), stats, cancel.child_token()));
        }
        // First, so that nobody who is sent away comes back to a relay that
        // still accepts and answers nothing any more.
        drop(listener);
        edge.shutdown.cancel();
        edge.directory.restart();
        edge.sockets.close();
        requests.close();
        let closed = async {
            edge.sockets.wait().await;
            requests.wait().await;
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, closed).await.is_err() {
            let open = edge.sockets.len();
            tracing::warn!(open, "websockets did not close in time and are dropped");
        }
        let _ = sweeper.await;
        tracing::info!("stopped");
    }

    /// Nobody can do anything with a relay that has no token.
    async fn hint_at_tokens(&self) {
        if self.edge.registry.list_tokens(None).await.is_ok_and(|list| list.tokens.is_empty()) {
            tracing::warn!(
                "there is no token yet; make the first one with \
                 `rendez token create --role admin --state` and this relay's state directory"
            );
        }
    }

    fn router(&self) -> Router {
        let edge = Router::new()
            .route(RENDEZVOUS_PATH, get(rendezvous))
            .route("/livez", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(self.edge.clone());
        self.edge.registry.router().merge(edge)
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let permit = connections.clone().acquire_owned().await;
        match (listener.accept().await, permit) {
            (Ok((tcp, _)), Ok(permit)) => return (tcp, permit),
            (accepted, _) => {
                tracing::warn!(error = ?accepted.err(), "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A TCP connection's place among [`Config::connections_max`]. Requests carry a
/// clone of it, so that an upgraded connection, which HTTP is done with, keeps
/// its place.
#[derive(Clone)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

async fn serve_connection(
    tcp: TcpStream,
    permit: OwnedSemaphorePermit,
    app: Router,
    stats: Arc<EdgeStats>,
    cancel: CancellationToken,
) {
    // Without it the handshake takes 45 ms instead of 2 (WIRE.md, section 2).
    let _ = tcp.set_nodelay(true);
    let place = Place(Arc::new(permit));
    let service = app.map_request(move |mut request: Request<_>| {
        request.extensions_mut().insert(place.clone());
        request
    });
    let service = TowerToHyperService::new(service);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(tcp), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = match cancel.run_until_cancelled(connection.as_mut()).await {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        if error.is_timeout() {
            stats.count_head_timeout();
        } else if error.is_parse() {
            stats.count_bad_head();
        }
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

/// 200 while new websockets are welcome and the store answers.
async fn readyz(State(edge): State<Edge>) -> (StatusCode, &'static str) {
    if edge.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match edge.registry.ping().await {
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(error) => {
            tracing::warn!(%error, "the store does not answer");
            (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n")
        }
    }
}

/// A token that SIGTERM or Ctrl-C cancels. Must be called within a tokio
/// runtime.
pub fn until_signal() -> CancellationToken {
    let cancel = CancellationToken::new();
    let on_signal = cancel.clone();
    tokio::spawn(async move {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            },
            Err(error) => {
                tracing::warn!(%error, "SIGTERM cannot be caught");
                let _ = tokio::signal::ctrl_c().await;
            }
        }
        on_signal.cancel();
    });
    cancel
}
