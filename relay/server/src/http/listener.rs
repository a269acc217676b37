//! Listeners: TCP connections become HTTP connections, with TLS where it is on.
//! Their number is bounded, and so is the time in which a client must send a
//! request's head and read its response. A connection is accepted before it is
//! admitted, so that a new client can take the place of a silent one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, Request};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rendez_registry::{OnCredential, PeerAddr, Registry};
use rendez_transport::tcp::LimitedTcp;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::read_buffer::SharedReadBuffer;
use super::write_stall::{StallMonitor, WriteStall};
use crate::connections::{ConnectionLimit, ConnectionTable, StrangerBounds, StrangerClosed};
use crate::rendezvous::Peer;
use crate::tls::{Tls, UNSENT_MAX_BYTES};

/// How long a client may take to send a request's head, so that a slow sender
/// cannot hold a connection for longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read a response, so that a slow reader cannot
/// hold a connection for longer. The largest responses have some 100 KiB.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same during a shutdown, which must not wait for such a client.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a connection is checked for such a client.
const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Largest head of a request in bytes; a ticket has under 2 KiB.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Default for the bytes that one read takes from the kernel.
const READ_BYTES: usize = 32 * 1024;
/// How long accepting pauses when the system has no descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long accepting must succeed until the log calls a shortage over.
const SHORTAGE_OVER: Duration = Duration::from_secs(60);

/// A bound listener and the limit of its connections.
pub(crate) struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    limit: ConnectionLimit,
    /// Names the address behind a trusted proxy.
    registry: Option<Registry>,
    tls: Option<Arc<Tls>>,
    read_bytes: usize,
}

impl Listener {
    pub(crate) async fn bind(
        address: SocketAddr,
        max: usize,
        strangers: StrangerBounds,
    ) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let local = tcp.local_addr()?;
        let limit = ConnectionLimit::new(max, strangers);
        Ok(Self { tcp, local, limit, registry: None, tls: None, read_bytes: READ_BYTES })
    }

    /// Uses TLS on every connection.
    pub(crate) fn with_tls(self, tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..self }
    }

    /// Tells strangers behind trusted proxies apart.
    pub(crate) fn behind_proxies_of(self, registry: Registry) -> Self {
        Self { registry: Some(registry), ..self }
    }

    /// Limits the bytes that one read takes from the kernel.
    pub(crate) fn reading(self, read_bytes: usize) -> Self {
        Self { read_bytes, ..self }
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn limit(&self) -> ConnectionLimit {
        self.limit.clone()
    }

    /// Serves `app` until cancelled, then closes the listener. Connections that are
    /// still open end after their current request; `requests` tracks them.
    pub(crate) async fn serve(
        self,
        app: Router,
        connections: Arc<ConnectionTable>,
        requests: TaskTracker,
        cancel: CancellationToken,
    ) {
        let mut shortage = Shortage::default();
        while let Some((tcp, peer)) = cancel.run_until_cancelled(self.accept(&mut shortage)).await {
            let (app, tls, table) = (app.clone(), self.tls.clone(), connections.clone());
            if let Err(error) = rendez_transport::tcp::configure(&tcp) {
                tracing::debug!(%error, "cannot set the options of a connection");
            }
            let io = SharedReadBuffer::new(LimitedTcp::new(tcp), self.read_bytes);
            let closed = peer.permit.closed();
            let registry = self.registry.clone();
            let serve = serve_connection(io, peer, tls, app, registry, table, cancel.child_token());
            requests.spawn(async move {
                let _ = closed.run_until_cancelled(serve).await;
            });
        }
    }

    async fn accept(&self, shortage: &mut Shortage) -> (TcpStream, Peer) {
        loop {
            let (tcp, peer) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    shortage.failed(&error, Instant::now());
                    self.limit.close_oldest_stranger(StrangerClosed::Descriptors);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            shortage.accepted(Instant::now());
            let address = PeerAddr(peer.ip());
            if let Ok(permit) = self.limit.admit(self.client(address)).await {
                return (tcp, Peer { permit, address, certificate: None, unsent_in_tls: 0 });
            }
        }
    }

    /// The client's address; `None` if a proxy has still to name it.
    fn client(&self, peer: PeerAddr) -> Option<IpAddr> {
        match &self.registry {
            Some(registry) => registry.source(Some(peer), &HeaderMap::new()),
            None => Some(peer.0),
        }
    }
}

/// A time in which the system has no descriptor or memory for new connections: the log
/// tells when it begins and when it is over.
#[derive(Debug, Default)]
struct Shortage {
    failed: Option<Instant>,
}

impl Shortage {
    fn failed(&mut self, error: &std::io::Error, now: Instant) {
        if self.failed.replace(now).is_none() {
            tracing::warn!(
                %error,
                "cannot accept connections; connections that have shown no token or ticket are \
                 closed to make room"
            );
        }
    }

    fn accepted(&mut self, now: Instant) {
        if self.failed.is_some_and(|failed| now.duration_since(failed) >= SHORTAGE_OVER) {
            tracing::info!("connections are accepted again");
            self.failed = None;
        }
    }
}

async fn serve_connection(
    io: SharedReadBuffer<LimitedTcp>,
    mut peer: Peer,
    tls: Option<Arc<Tls>>,
    app: Router,
    registry: Option<Registry>,
    connections: Arc<ConnectionTable>,
    cancel: CancellationToken,
) {
    let Some(tls) = tls else {
        return serve_http(io, peer, app, registry, &connections, cancel).await;
    };
    if let Some(Some((io, certificate))) = cancel.run_until_cancelled(tls.accept(io)).await {
        peer.certificate = certificate.map(Arc::new);
        peer.unsent_in_tls = UNSENT_MAX_BYTES;
        serve_http(io, peer, app, registry, &connections, cancel).await;
    }
}

async fn serve_http(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    app: Router,
    registry: Option<Registry>,
    connections: &ConnectionTable,
    cancel: CancellationToken,
) {
    let permit = peer.permit.clone();
    let on_credential = OnCredential(Arc::new(move || permit.show_credential()));
    let is_proxied = registry
        .as_ref()
        .is_some_and(|registry| registry.source(Some(peer.address), &HeaderMap::new()).is_none());
    let service = app.map_request(move |mut request: Request<_>| {
        if let Some(registry) = registry.as_ref().filter(|_| is_proxied) {
            peer.permit.locate(registry.source(Some(peer.address), request.headers()));
        }
        request.extensions_mut().insert(on_credential.clone());
        request.extensions_mut().insert(peer.address);
        request.extensions_mut().insert(peer.clone());
        request
    });
    let service = TowerToHyperService::new(service);
    let io = StallMonitor::new(io);
    let stall = io.stall();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = unless_stalled(&stall, RESPONSE_TIMEOUT, connection.as_mut());
    let result = match cancel.run_until_cancelled(served).await {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            unless_stalled(&stall, LAST_RESPONSE_TIMEOUT, connection).await
        }
    };
    let Some(result) = result else {
        connections.connection_stats().count_answer_timeout();
        return tracing::debug!("a client does not read its response");
    };
    if let Err(error) = result {
        if error.is_timeout() {
            connections.connection_stats().count_head_timeout();
        } else if error.is_parse() {
            connections.connection_stats().count_bad_head();
        }
        tracing::debug!(%error, "an HTTP connection failed");
    }
}

/// Runs `work` to its end; `None` if writes to its connection stall for `limit`.
async fn unless_stalled<T>(
    stall: &WriteStall,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(STALL_CHECK_INTERVAL, work.as_mut()).await {
            Ok(done) => return Some(done),
            Err(_) if stall.duration() >= limit => return None,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::advance;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const RESPONSE_BYTES: usize = 100_000;

    struct Served {
        client: DuplexStream,
        connections: Arc<ConnectionTable>,
        cancel: CancellationToken,
        ended: JoinHandle<Instant>,
    }

    /// A client that has sent this many requests, over a small buffer.
    async fn served(requests: usize) -> Served {
        let (mut client, io) = duplex(4096);
        let app = Router::new().route("/", get(async || "x".repeat(RESPONSE_BYTES)));
        let permit = ConnectionLimit::new(1, StrangerBounds::NONE).admit(None).await.unwrap();
        let address = PeerAddr([127, 0, 0, 1].into());
        let peer = Peer { permit, address, certificate: None, unsent_in_tls: 0 };
        let (connections, cancel) = (Arc::<ConnectionTable>::default(), CancellationToken::new());
        let ended = tokio::spawn({
            let (connections, cancel) = (connections.clone(), cancel.clone());
            async move {
                serve_http(io, peer, app, None, &connections, cancel).await;
                Instant::now()
            }
        });
        client.write_all(&REQUEST.repeat(requests)).await.unwrap();
        Served { client, connections, cancel, ended }
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_nothing_is_closed() {
        let began = Instant::now();
        let served = served(3).await;
        let took = served.ended.await.unwrap() - began;
        assert!(
            took >= RESPONSE_TIMEOUT && took <= RESPONSE_TIMEOUT + 2 * STALL_CHECK_INTERVAL,
            "{took:?}"
        );
        assert_eq!(served.connections.connection_stats().answer_timeouts(), 1);
        drop(served.client);
    }

    #[tokio::test(start_paused = true)]
    async fn client_that_reads_slowly_is_closed() {
        let mut served = served(3).await;
        let mut bytes = [0; 16];
        for _ in 0..10 {
            advance(RESPONSE_TIMEOUT / 8).await;
            let _ = served.client.read(&mut bytes).await.unwrap();
        }
        assert!(served.ended.is_finished());
        assert_eq!(served.connections.connection_stats().answer_timeouts(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_shortens_the_response_timeout() {
        let mut served = served(1).await;
        // The response has begun.
        served.client.read_u8().await.unwrap();
        advance(Duration::from_secs(5)).await;
        let began = Instant::now();
        served.cancel.cancel();
        let took = served.ended.await.unwrap() - began;
        assert!(took <= 2 * STALL_CHECK_INTERVAL, "{took:?}");
        drop(served.client);
    }

    #[tokio::test(start_paused = true)]
    async fn each_response_has_its_own_timeout() {
        let began = Instant::now();
        let mut served = served(0).await;
        let mut bytes = [0; 1000];
        for _ in 0..2 {
            served.client.write_all(REQUEST).await.unwrap();
            let mut read = 0;
            while read < RESPONSE_BYTES {
                advance(RESPONSE_TIMEOUT / 150).await;
                let length = served.client.read(&mut bytes).await.unwrap();
                assert!(length > 0, "cut after {read} bytes");
                read += length;
            }
        }
        assert!(began.elapsed() > RESPONSE_TIMEOUT);
        assert_eq!(served.connections.connection_stats().answer_timeouts(), 0);
    }
}
