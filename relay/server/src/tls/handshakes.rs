//! When handshakes compute: the most work that a stranger can ask for with few
//! bytes.
//!
//! * Places are for computing, and nobody has one while a peer is waited for:
//!   who says nothing, or stops halfway, keeps nobody else out.
//! * Who has a place lets all other tasks of the relay go first. So at most as
//!   many handshakes as there are places stand between a websocket and its turn
//!   on a processor, however many clients come at once.
//! * Places are given in the order in which clients came. Who has hung up by
//!   then costs no handshake: that client comes again, and would be served ever
//!   later if the relay worked for those who have left.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt as _;
use rustls::ServerConfig;
use rustls::server::{Acceptor, ClientHello};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// What TLS runs over.
pub(crate) trait Wire: AsyncRead + AsyncWrite + Unpin {
    /// Whether the other end is known to have left.
    fn has_hung_up(&self) -> bool;
}

impl Wire for TcpStream {
    fn has_hung_up(&self) -> bool {
        // Unread bytes hide the end of the stream; then it is unknown.
        matches!(self.peek(&mut [0]).now_or_never(), Some(Ok(0) | Err(_)))
    }
}

/// The places of a listener.
pub(super) struct Handshakes(Semaphore);

impl Handshakes {
    /// So many places, at least one.
    pub(super) fn new(places: usize) -> Self {
        Self(Semaphore::new(places.clamp(1, Semaphore::MAX_PERMITS)))
    }

    /// A whole handshake; `config` chooses by what the client says first. How
    /// long it may take is for the caller to say.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] if the client had left when it was
    /// its turn; otherwise the peer's or the network's.
    pub(super) async fn accept<T: Wire>(
        &self,
        io: T,
        config: impl FnOnce(&ClientHello<'_>) -> Arc<ServerConfig>,
    ) -> io::Result<TlsStream<T>> {
        let start = LazyConfigAcceptor::new(Acceptor::default(), io).await?;
        let place = self.0.acquire().await.map_err(io::Error::other)?;
        yield_now().await;
        if start.io.has_hung_up() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let config = config(&start.client_hello());
        // Agrees on keys and signs, here and now; what is left is a MAC.
        let rest = start.into_stream(config);
        drop(place);
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

    /// What the system had to say before has been noticed when this returns.
    async fn noticed() {
        let (mut near, mut far) = pair().await;
        near.write_all(&[0]).await.unwrap();
        far.read_u8().await.unwrap();
    }

    #[tokio::test]
    async fn who_has_left_costs_no_handshake() {
        let handshakes = Arc::new(Handshakes::new(1));
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
        let place = handshakes.0.acquire().await.unwrap();
        let (mut leaving, io) = pair().await;
        let left = start(io);
        let (mut staying, io) = pair().await;
        let stayed = start(io);
        for client in [&mut leaving, &mut staying] {
            client.write_all(&hello()).await.unwrap();
        }
        drop(leaving);
        noticed().await;
        drop(place);
        assert_eq!(left.await.unwrap().kind(), io::ErrorKind::ConnectionAborted);
        assert_eq!(stayed.await.unwrap().kind(), io::ErrorKind::InvalidData);
        assert_eq!(computed.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn nobody_has_a_place_while_a_peer_is_waited_for() {
        let handshakes = Arc::new(Handshakes::new(1));
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
