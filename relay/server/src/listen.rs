//! Listeners: TCP connections become HTTP connections, through TLS where it is
//! on, bounded in number and in the time that their heads and the taking of their
//! answers may take.

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
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::connections::{ConnectionLimit, ConnectionTable};
use crate::gulp::Gulp;
use crate::outflow::{Outflow, Stuck};
use crate::rendezvous::Peer;
use crate::tls::Tls;

/// How long a client may take to send a request's head: a slow sender holds a
/// connection no longer than this.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read an answer: a slow reader holds a
/// connection no longer than this. The largest answers have some 100 KiB.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same while the relay stops, which must not wait for such a client.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often is looked for such clients.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest head of a request in bytes; a ticket has under 2 KiB.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Bytes that one read takes from the kernel, unless a setting says otherwise.
const READ_BYTES: usize = 32 * 1024;
/// How long accepting pauses when the system has no descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound listener and the limit of its connections.
pub(crate) struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    limit: ConnectionLimit,
    tls: Option<Arc<Tls>>,
    read_bytes: usize,
}

impl Listener {
    pub(crate) async fn bind(address: SocketAddr, max: usize) -> std::io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        let local = tcp.local_addr()?;
        let limit = ConnectionLimit::new(max);
        Ok(Self { tcp, local, limit, tls: None, read_bytes: READ_BYTES })
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

    pub(crate) fn limit(&self) -> ConnectionLimit {
        self.limit.clone()
    }

    /// Serves `app` until cancelled. Then the listener is closed and `requests`
    /// has the connections that are still there; they end after the request
    /// that they are at.
    pub(crate) async fn serve(
        self,
        app: Router,
        connections: Arc<ConnectionTable>,
        requests: TaskTracker,
        cancel: CancellationToken,
    ) {
        while let Some((tcp, peer)) = cancel.run_until_cancelled(self.accept()).await {
            let (app, tls, table) = (app.clone(), self.tls.clone(), connections.clone());
            // Without it the handshake takes 45 ms instead of 2 (WIRE.md, section 2).
            let _ = tcp.set_nodelay(true);
            let io = Gulp::new(tcp, self.read_bytes);
            requests.spawn(serve_connection(io, peer, tls, app, table, cancel.child_token()));
        }
    }

    async fn accept(&self) -> (TcpStream, Peer) {
        loop {
            let permit = self.limit.acquire().await;
            match (self.tcp.accept().await, permit) {
                (Ok((tcp, peer)), Ok(permit)) => {
                    let address = PeerAddr(peer.ip());
                    return (tcp, Peer { permit, address, certificate: None });
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
    mut peer: Peer,
    tls: Option<Arc<Tls>>,
    app: Router,
    connections: Arc<ConnectionTable>,
    cancel: CancellationToken,
) {
    let Some(tls) = tls else { return serve_http(io, peer, app, &connections, cancel).await };
    if let Some(Some((io, certificate))) = cancel.run_until_cancelled(tls.accept(io)).await {
        peer.certificate = certificate.map(Arc::new);
        serve_http(io, peer, app, &connections, cancel).await;
    }
}

async fn serve_http(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    peer: Peer,
    app: Router,
    connections: &ConnectionTable,
    cancel: CancellationToken,
) {
    let service = app.map_request(move |mut request: Request<_>| {
        request.extensions_mut().insert(peer.address);
        request.extensions_mut().insert(peer.clone());
        request
    });
    let service = TowerToHyperService::new(service);
    let io = Outflow::new(io);
    let stuck = io.stuck();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = unless_stuck(&stuck, ANSWER_TIMEOUT, connection.as_mut());
    let result = match cancel.run_until_cancelled(served).await {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            unless_stuck(&stuck, LAST_ANSWER_TIMEOUT, connection).await
        }
    };
    let Some(result) = result else {
        connections.connection_stats().count_answer_timeout();
        return tracing::debug!("a client does not read its answer");
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

/// What comes of `work`, unless the connection under it is stuck for too long.
async fn unless_stuck<T>(
    stuck: &Stuck,
    patience: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match timeout(LOOK_EVERY, work.as_mut()).await {
            Ok(done) => return Some(done),
            Err(_) if stuck.for_how_long() >= patience => return None,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, advance};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    const ANSWER_BYTES: usize = 100_000;

    struct Served {
        client: DuplexStream,
        connections: Arc<ConnectionTable>,
        cancel: CancellationToken,
        ended: JoinHandle<Instant>,
    }

    /// A client that has asked so often, of a connection that takes little.
    async fn served(requests: usize) -> Served {
        let (mut client, io) = duplex(4096);
        let app = Router::new().route("/", get(async || "x".repeat(ANSWER_BYTES)));
        let permit = ConnectionLimit::new(1).acquire().await.unwrap();
        let address = PeerAddr([127, 0, 0, 1].into());
        let peer = Peer { permit, address, certificate: None };
        let (connections, cancel) = (Arc::<ConnectionTable>::default(), CancellationToken::new());
        let ended = tokio::spawn({
            let (connections, cancel) = (connections.clone(), cancel.clone());
            async move {
                serve_http(io, peer, app, &connections, cancel).await;
                Instant::now()
            }
        });
        client.write_all(&REQUEST.repeat(requests)).await.unwrap();
        Served { client, connections, cancel, ended }
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_the_answers_is_left() {
        let began = Instant::now();
        let served = served(3).await;
        let took = served.ended.await.unwrap() - began;
        assert!(took >= ANSWER_TIMEOUT && took <= ANSWER_TIMEOUT + 2 * LOOK_EVERY, "{took:?}");
        assert_eq!(served.connections.connection_stats().answer_timeouts(), 1);
        drop(served.client);
    }

    #[tokio::test(start_paused = true)]
    async fn nor_is_who_reads_a_little_now_and_then_spared() {
        let mut served = served(3).await;
        let mut bytes = [0; 16];
        for _ in 0..10 {
            advance(ANSWER_TIMEOUT / 8).await;
            let _ = served.client.read(&mut bytes).await.unwrap();
        }
        assert!(served.ended.is_finished());
        assert_eq!(served.connections.connection_stats().answer_timeouts(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_stops_has_less_patience() {
        let mut served = served(1).await;
        // it is at its answer
        served.client.read_u8().await.unwrap();
        advance(Duration::from_secs(5)).await;
        let began = Instant::now();
        served.cancel.cancel();
        let took = served.ended.await.unwrap() - began;
        assert!(took <= 2 * LOOK_EVERY, "{took:?}");
        drop(served.client);
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_has_its_own_time() {
        let began = Instant::now();
        let mut served = served(0).await;
        let mut bytes = [0; 1000];
        for _ in 0..2 {
            served.client.write_all(REQUEST).await.unwrap();
            let mut read = 0;
            while read < ANSWER_BYTES {
                advance(ANSWER_TIMEOUT / 150).await;
                let length = served.client.read(&mut bytes).await.unwrap();
                assert!(length > 0, "cut after {read} bytes");
                read += length;
            }
        }
        assert!(began.elapsed() > ANSWER_TIMEOUT);
        assert_eq!(served.connections.connection_stats().answer_timeouts(), 0);
    }
}
