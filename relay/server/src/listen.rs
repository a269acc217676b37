//! Listeners: TCP connections become HTTP connections, through TLS where it is
//! on, bounded in number and in the time that their heads may take.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rendez_registry::PeerAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::edge::stats::EdgeStats;
use crate::gulp::Gulp;
use crate::tls::{ClientCertificate, Tls};

/// How long a client may take to send a request's head: a slow sender holds a
/// connection no longer than this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request in bytes; a ticket has under 2 KiB.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Bytes that one read takes from the kernel, unless a setting says otherwise.
const READ_BYTES: usize = 32 * 1024;
/// How long accepting pauses when the system has no descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener and the places for its connections.
pub(crate) struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    places: Arc<Semaphore>,
    places_max: usize,
    tls: Option<Arc<Tls>>,
    read_bytes: usize,
}

/// How many of a listener's places are taken.
#[derive(Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    pub(crate) max: usize,
}

impl Places {
    pub(crate) fn taken(&self) -> usize {
        self.max.saturating_sub(self.free.available_permits())
    }
}

/// A TCP connection's place among its listener's, and who is at its other end.
/// Requests carry a clone of it, so that an upgraded connection, which HTTP is
/// done with, keeps its place.
#[derive(Clone)]
pub(crate) struct Place {
    _held: Arc<OwnedSemaphorePermit>,
    /// The address at the other end of TCP.
    pub(crate) peer: PeerAddr,
    /// The certificate that the client showed.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

impl Listener {
    pub(crate) async fn bind(address: SocketAddr, max: usize) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let local = tcp.local_addr()?;
        let max = max.min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(max));
        Ok(Self { tcp, local, places, places_max: max, tls: None, read_bytes: READ_BYTES })
    }

    /// With TLS on every connection.
    pub(crate) fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// With reads of at most so many bytes.
    pub(crate) fn reading(self, read_bytes: usize) -> Self {
        Self { read_bytes, ..self }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn places(&self) -> Places {
        Places { free: self.places.clone(), max: self.places_max }
    }

    /// Serves `app` until cancelled. Then the listener is closed and `requests`
    /// has the connections that are still there; they end after the request
    /// that they are at.
    pub(crate) async fn serve(
        self,
        app: Router,
        stats: Arc<EdgeStats>,
        requests: TaskTracker,
        cancel: CancellationToken,
    ) {
        while let Some((tcp, place)) = cancel.run_until_cancelled(self.accept()).await {
            let (app, stats, tls) = (app.clone(), stats.clone(), self.tls.clone());
            // Without it the handshake takes 45 ms instead of 2 (WIRE.md, section 2).
            let _ = tcp.set_nodelay(true);
            let io = Gulp::new(tcp, self.read_bytes);
            requests.spawn(serve_connection(io, place, tls, app, stats, cancel.child_token()));
        }
    }

    async fn accept(&self) -> (TcpStream, Place) {
        loop {
            let permit = self.places.clone().acquire_owned().await;
            match (self.tcp.accept().await, permit) {
                (Ok((tcp, peer)), Ok(permit)) => {
                    let (held, peer) = (Arc::new(permit), PeerAddr(peer.ip()));
                    return (tcp, Place { _held: held, peer, certificate: None });
                }
                (accepted, _) => {
                    tracing::warn!(error = ?accepted.err(), "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn serve_connection(
    io: Gulp<TcpStream>,
    mut place: Place,
    tls: Option<Arc<Tls>>,
    app: Router,
    stats: Arc<EdgeStats>,
    cancel: CancellationToken,
) {
    let Some(tls) = tls else { return serve_http(io, place, app, &stats, cancel).await };
    if let Some(Some((io, certificate))) = cancel.run_until_cancelled(tls.accept(io)).await {
        place.certificate = certificate.map(Arc::new);
        serve_http(io, place, app, &stats, cancel).await;
    }
}

async fn serve_http(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    place: Place,
    app: Router,
    stats: &EdgeStats,
    cancel: CancellationToken,
) {
    let service = app.map_request(move |mut request: Request<_>| {
        request.extensions_mut().insert(place.peer);
        request.extensions_mut().insert(place.clone());
        request
    });
    let service = TowerToHyperService::new(service);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(io), service)
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
