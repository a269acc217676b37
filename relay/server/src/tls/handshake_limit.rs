//! Limits the number of TLS handshakes that compute at once. A handshake is the
//! most work that an unauthenticated client can cause with few bytes.
//!
//! * A handshake holds a permit only while it computes, not while it waits for its
//!   peer: a client that sends nothing, or stops halfway, delays no other client.
//! * A handshake with a permit yields to all other tasks first. So a websocket waits
//!   for at most as many handshakes as there are permits, however many clients
//!   connect at once.
//! * Permits are granted in the order of arrival. A client that has closed its
//!   connection meanwhile costs no handshake: it will retry, and computing for closed
//!   connections would delay every retry further.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt as _;
use rendez_transport::tcp::LimitedTcp;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A connection that can notice that its peer has closed it.
pub(crate) trait PeerClosed: AsyncRead + AsyncWrite + Unpin {
    /// Whether the peer is known to have closed the connection.
    fn peer_closed(&self) -> bool;
}

impl PeerClosed for TcpStream {
    fn peer_closed(&self) -> bool {
        // Unread bytes hide the end of the stream; then it is unknown.
        matches!(self.peek(&mut [0]).now_or_never(), Some(Ok(0) | Err(_)))
    }
}

impl PeerClosed for LimitedTcp {
    fn peer_closed(&self) -> bool {
        self.get_ref().peer_closed()
    }
}

/// The permits of a listener.
pub(super) struct HandshakeLimit(Semaphore);

impl HandshakeLimit {
    /// A limit of `max` handshakes, at least one.
    pub(super) fn new(max: usize) -> Self {
        Self(Semaphore::new(max.clamp(1, Semaphore::MAX_PERMITS)))
    }

    /// Accepts a TLS connection; `config` chooses by the ClientHello. The caller
    /// applies a timeout.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] if the client had closed the connection
    /// before its turn; otherwise an error of the peer or of the network.
    pub(super) async fn accept<T: PeerClosed>(
        &self,
        io: T,
        config: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
    ) -> io::Result<TlsStream<T>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let permit = self.0.acquire().await.map_err(io::Error::other)?;
        yield_now().await;
        if start.io.peer_closed() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let config = config(&start.client_hello());
        // Agrees on keys and signs in this call; the rest only checks a MAC.
        let rest = start.into_stream(config);
        drop(permit);
        rest.await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server without a certificate: its handshakes end with an error.
    fn config() -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        Arc::new(
            builder.with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new())),
        )
    }

    fn hello() -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = "relay.example".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(dialled, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    /// When this returns, the runtime has seen all earlier events of the system.
    async fn noticed() {
        let (mut near, mut far) = pair().await;
        near.write_all(&[0]).await.unwrap();
        far.read_u8().await.unwrap();
    }

    #[tokio::test]
    async fn closed_connection_costs_no_handshake() {
        let handshakes = Arc::new(HandshakeLimit::new(1));
        let computed = Arc::new(AtomicUsize::new(0));
        let start = |io| {
            let (handshakes, computed) = (handshakes.clone(), computed.clone());
            tokio::spawn(async move {
                let config = |_: &ClientHello<'_>| {
                    computed.fetch_add(1, Ordering::SeqCst);
                    config()
                };
                handshakes.accept(io, config).await.map(drop).unwrap_err()
            })
        };
        let permit = handshakes.0.acquire().await.unwrap();
        let (mut leaving, io) = pair().await;
        let left = start(io);
        let (mut staying, io) = pair().await;
        let stayed = start(io);
        for client in [&mut leaving, &mut staying] {
            client.write_all(&hello()).await.unwrap();
        }
        drop(leaving);
        noticed().await;
        drop(permit);
        assert_eq!(left.await.unwrap().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(stayed.await.unwrap().kind(), io::ErrorKind::InvalidData);
        assert_eq!(computed.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn waiting_for_a_peer_holds_no_permit() {
        let handshakes = Arc::new(HandshakeLimit::new(1));
        let begin = |io| {
            let handshakes = handshakes.clone();
            tokio::spawn(async move { handshakes.accept(io, |_| config()).await.map(drop) })
        };
        let (_silent, io) = pair().await;
        let waiting = begin(io);
        noticed().await;
        assert_eq!(handshakes.0.available_permits(), 1);
        let (mut client, io) = pair().await;
        let ended = begin(io);
        client.write_all(&hello()).await.unwrap();
        ended.await.unwrap().unwrap_err();
        assert!(!waiting.is_finished());
    }
}
