//! Opens a websocket to a relay.
//!
//! The URL carries a ticket, so no error and no log line of this module holds
//! more of it than scheme, host and port.

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error as WsError;
use url::Url;

use crate::{cause, socket, tcp, tls};

/// How long name look-up, TCP, TLS and upgrade may take together.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long name look-up and TCP may take of that: long round trips and one lost
/// packet. The system retransmits at growing intervals (1, 2, 4, 8 s), so after an
/// outage a new attempt connects sooner.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A dialled websocket over TCP or TLS.
pub type DialledSocket = WebSocketStream<Box<dyn Io>>;

/// The byte stream below a websocket.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// The failure to open a websocket.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The URL is not `ws://` or `wss://` with a host.
    #[error("the relay's websocket URL is not usable: {0}")]
    Url(String),
    /// The system's certificates cannot be read.
    #[error("the system's trust store cannot be read: {0}")]
    TrustStore(String),
    /// The relay could not be reached.
    #[error("cannot reach the relay at {at}: {why}")]
    Unreachable {
        /// Host and port.
        at: String,
        /// The error of the operating system or of the TLS library.
        why: String,
    },
    /// It took longer than [`CONNECT_TIMEOUT`] or [`DIAL_TIMEOUT`].
    #[error("the relay at {0} did not answer in time")]
    Timeout(String),
    /// The relay answered the upgrade with 4xx: the ticket is not valid any more.
    #[error("the relay refused the ticket (HTTP {0})")]
    Refused(u16),
    /// The relay answered the upgrade with another status: try again later.
    #[error("the relay is not available (HTTP {0})")]
    Unavailable(u16),
}

/// Dials `url`, with the options of [`tcp::configure`].
///
/// # Errors
/// [`DialError`] distinguishes a refused ticket from a temporary failure.
pub async fn dial(url: &str) -> Result<DialledSocket, DialError> {
    let target = Target::parse(url)?;
    let at = target.address();
    tokio::time::timeout(DIAL_TIMEOUT, target.open()).await.unwrap_or(Err(DialError::Timeout(at)))
}

struct Target {
    url: Url,
    host: String,
    port: u16,
    secure: bool,
}

impl Target {
    fn parse(text: &str) -> Result<Self, DialError> {
        let url = Url::parse(text).map_err(|error| DialError::Url(error.to_string()))?;
        let secure = match url.scheme() {
            "ws" => false,
            "wss" => true,
            other => return Err(DialError::Url(format!("scheme {other:?}, not ws or wss"))),
        };
        let host = url.host_str().ok_or_else(|| DialError::Url("no host".into()))?;
        // Only URLs write IPv6 literals in brackets.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(if secure { 443 } else { 80 });
        Ok(Self { url, host, port, secure })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    async fn open(self) -> Result<DialledSocket, DialError> {
        let unreachable = |why: &dyn std::fmt::Display| DialError::Unreachable {
            at: self.address(),
            why: why.to_string(),
        };
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| DialError::Timeout(self.address()))?
            .map_err(|error| unreachable(&error))?;
        tcp::configure(&tcp).map_err(|error| unreachable(&error))?;
        let tcp = tcp::LimitedTcp::new(tcp);
        let io: Box<dyn Io> = if self.secure {
            let name =
                ServerName::try_from(self.host.clone()).map_err(|error| unreachable(&error))?;
            let config = tls::for_url(self.url.as_str())
                .map_err(|error| DialError::TrustStore(error.to_string()))?;
            let tls = TlsConnector::from(config).connect(name, tcp).await;
            Box::new(tls.map_err(|error| unreachable(&cause::describe(&error)))?)
        } else {
            Box::new(tcp)
        };
        let upgrade = tokio_tungstenite::client_async_with_config(
            self.url.as_str(),
            io,
            Some(socket::config()),
        );
        match upgrade.await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(answer)) => Err(match answer.status() {
                status if status.is_client_error() => DialError::Refused(status.as_u16()),
                status => DialError::Unavailable(status.as_u16()),
            }),
            Err(error) => Err(unreachable(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn url_errors_do_not_contain_the_ticket() {
        for url in ["http://h/?ticket=secret", "nonsense?ticket=secret", "ws://"] {
            let error = dial(url).await.err().unwrap();
            assert!(matches!(error, DialError::Url(_)));
            assert!(!error.to_string().contains("secret"));
        }
    }

    async fn answer_upgrade_with(status: &'static str) -> DialError {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}/?ticket=secret", listener.local_addr().unwrap());
        let server = async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = tcp.read(&mut request).await.unwrap();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            tcp.write_all(answer.as_bytes()).await.unwrap();
        };
        let (error, ()) = tokio::join!(dial(&url), server);
        error.err().unwrap()
    }

    #[tokio::test]
    async fn refused_ticket_differs_from_unavailable_relay() {
        assert!(matches!(answer_upgrade_with("401 No").await, DialError::Refused(401)));
        assert!(matches!(answer_upgrade_with("503 No").await, DialError::Unavailable(503)));
    }

    #[tokio::test]
    async fn unreachable_error_does_not_contain_the_ticket() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        drop(listener);
        let error = dial(&format!("ws://{at}/?ticket=secret")).await.err().unwrap();
        assert!(matches!(error, DialError::Unreachable { .. }));
        assert!(!format!("{error} {error:?}").contains("secret"));
    }

    #[tokio::test(start_paused = true)]
    async fn lost_packets_end_the_attempt_early() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(1).unwrap();
        let at = listener.local_addr().unwrap();
        // When the accept queue is full, the system drops connection requests.
        let connect = || std::net::TcpStream::connect_timeout(&at, Duration::from_millis(100));
        let _queued: Vec<_> = std::iter::from_fn(|| connect().ok()).take(100).collect();
        let began = tokio::time::Instant::now();
        let error = dial(&format!("ws://{at}/?ticket=secret")).await.err().unwrap();
        assert!(matches!(error, DialError::Timeout(_)), "{error}");
        assert_eq!(began.elapsed().as_secs(), CONNECT_TIMEOUT.as_secs());
    }
}
