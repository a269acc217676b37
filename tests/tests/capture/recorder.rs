//! A TCP proxy that records every byte, and parses the recording.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Bytes per read.
const READ_BYTES: usize = 64 * 1024;
/// The end of the head of a request or response.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Forwards connections to a relay, until it is dropped.
pub(crate) struct Recorder {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<Arc<Mutex<Connection>>>>>,
    accepting: JoinHandle<()>,
}

/// One connection's bytes, as they were on the wire.
#[derive(Debug, Default, Clone)]
struct Connection {
    up: Vec<u8>,
    down: Vec<u8>,
}

/// All recorded bytes, by protocol.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// HTTP requests and responses, with those that opened websockets.
    pub(crate) http: Vec<u8>,
    /// All bytes after an upgrade, as on the wire, where an endpoint's bytes are
    /// masked.
    pub(crate) websocket: Vec<u8>,
    /// The messages' payloads without masks, in the order of each direction.
    pub(crate) messages: Vec<Vec<u8>>,
}

impl Recorder {
    /// Listens on a free port in front of `relay`.
    pub(crate) async fn start(relay: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let connections = Arc::<Mutex<Vec<_>>>::default();
        let accepting = tokio::spawn({
            let connections = connections.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let connection = Arc::<Mutex<Connection>>::default();
                    connections.lock().push(connection.clone());
                    tokio::spawn(pass(client, relay, connection));
                }
            }
        });
        Ok(Self { address, connections, accepting })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The recording so far.
    pub(crate) fn recording(&self) -> Recording {
        let mut recording = Recording::default();
        for connection in self.connections.lock().iter() {
            let Connection { up, down } = connection.lock().clone();
            for bytes in [&up, &down] {
                let head = if down.starts_with(b"HTTP/1.1 101 ") {
                    find(bytes, HEAD_END).map_or(bytes.len(), |at| at + HEAD_END.len())
                } else {
                    bytes.len()
                };
                recording.http.extend(&bytes[..head]);
                recording.websocket.extend(&bytes[head..]);
                recording.messages.extend(payloads(&bytes[head..]));
            }
        }
        recording
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(client: TcpStream, relay: SocketAddr, connection: Arc<Mutex<Connection>>) {
    let Ok(server) = TcpStream::connect(relay).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(
        copy(client_read, server_write, |bytes| connection.lock().up.extend(bytes)),
        copy(server_read, client_write, |bytes| connection.lock().down.extend(bytes)),
    );
}

/// Records bytes before it forwards them, so that no byte is received unrecorded.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    keep: impl Fn(&[u8]),
) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        keep(&buffer[..length]);
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    // the other way may go on; an error means that it is over as well
    let _ = to.shutdown().await;
}

/// The unmasked payloads of websocket frames (RFC 6455, section 5.2). A truncated
/// frame at the end is included.
fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    while let Some((payload, rest)) = payload(bytes) {
        payloads.push(payload);
        bytes = rest;
    }
    payloads
}

fn payload(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let (&[_, length], mut rest) = bytes.split_first_chunk::<2>()?;
    let masked = length & 0x80 != 0;
    let length = match length & 0x7f {
        126 => {
            let (length, after) = rest.split_first_chunk::<2>()?;
            rest = after;
            usize::from(u16::from_be_bytes(*length))
        }
        127 => {
            let (length, after) = rest.split_first_chunk::<8>()?;
            rest = after;
            usize::try_from(u64::from_be_bytes(*length)).ok()?
        }
        short => usize::from(short),
    };
    let mut mask = [0; 4];
    if masked {
        let (bytes, after) = rest.split_first_chunk::<4>()?;
        (mask, rest) = (*bytes, after);
    }
    let (payload, rest) = rest.split_at(length.min(rest.len()));
    let unmasked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    Some((unmasked.collect(), rest))
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}
