//! The TCP connection below every websocket: its options, and its limit of unsent
//! bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

#[cfg(target_os = "linux")]
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Bytes that the kernel may hold and has not sent yet. A socket takes more only when
/// fewer wait, so a frame that is due before others does not stand behind them in the
/// kernel. Bytes that were sent and are not acknowledged are not limited, so a path
/// with long round trips stays as fast.
pub const UNSENT_MAX_BYTES: u32 = 4 * 1024;

/// Smaller writes wait until the kernel reports that it has room. Linux appends such a
/// write to its last segment of up to 64 KiB without looking at the limit; a larger one
/// needs a new segment, and is checked.
const CHECKED_BELOW_BYTES: usize = 32 * 1024;
/// Checks after the last one that found no room. A path that takes everything at once
/// costs no check, which is a system call.
const CHECKS: u32 = 1024;

/// Sets the options of a connection.
///
/// * `TCP_NODELAY`: with Nagle's algorithm the Noise handshake takes 45 ms instead of 2.
/// * `TCP_NOTSENT_LOWAT` (Linux): [`UNSENT_MAX_BYTES`].
///
/// # Errors
/// The system's.
pub fn configure(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    SockRef::from(tcp).set_tcp_notsent_lowat(UNSENT_MAX_BYTES)?;
    Ok(())
}

/// A [configured](configure) connection on which small writes respect
/// [`UNSENT_MAX_BYTES`], too. A flush ends when there is room again, so that its owner
/// can choose as late as possible what comes next.
#[derive(Debug)]
pub struct LimitedTcp {
    tcp: TcpStream,
    /// Checks that are due; none while there was always room.
    checks: u32,
}

impl LimitedTcp {
    /// Limits the unsent bytes of a connection.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, checks: 0 }
    }

    /// The connection.
    pub fn get_ref(&self) -> &TcpStream {
        &self.tcp
    }

    /// Ready when the kernel has room, or when no check is due.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.checks {
            0 => Poll::Ready(Ok(())),
            _ => self.check_room(cx),
        }
    }

    #[cfg(target_os = "linux")]
    fn check_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};

        let check = || {
            let mut fds = [PollFd::new(&self.tcp, PollFlags::OUT)];
            match poll(&mut fds, Some(&Timespec::default()))? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        };
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tcp.try_io(tokio::io::Interest::WRITABLE, check) {
                // The kernel will wake the task; `check` has requested it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.checks = CHECKS,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                checked => {
                    self.checks -= 1;
                    return Poll::Ready(checked);
                }
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn check_room(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Writes by `write`, which gets the connection.
    fn poll_write_by(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if bytes < CHECKED_BELOW_BYTES {
            ready!(self.poll_room(cx))?;
        }
        let written = write(Pin::new(&mut self.tcp), cx);
        if !matches!(written, Poll::Ready(Ok(length)) if length == bytes) {
            self.checks = CHECKS;
        }
        written
    }
}

impl AsyncRead for LimitedTcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for LimitedTcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, buf.len(), |tcp, cx| tcp.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = bufs.iter().map(|buf| buf.len()).sum();
        self.poll_write_by(cx, bytes, |tcp, cx| tcp.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_room(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// Two ends of a connection; the kernel of the second one takes twice `bytes`.
    async fn pair(bytes: usize) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_recv_buffer_size(bytes).unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        (tcp, peer)
    }

    /// Bytes that a connection takes whose peer reads nothing.
    fn taken(tcp: &TcpStream) -> usize {
        let mut taken = 0;
        loop {
            match tcp.try_write(&[0; 1024]) {
                Ok(length) => taken += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return taken,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The same in writes of 1 KiB, as a task does it, until the peer's window is closed.
    async fn taken_by_writes(tcp: &mut LimitedTcp) -> usize {
        let mut taken = 0;
        // The peer acknowledges within 40 ms.
        while let Ok(written) = timeout(5 * Duration::from_millis(40), tcp.write(&[0; 1024])).await
        {
            taken += written.unwrap();
        }
        taken
    }

    #[tokio::test]
    async fn unsent_bytes_are_limited() {
        let mut sizes = [0, 0];
        for (size, limited) in sizes.iter_mut().zip([true, false]) {
            let (tcp, _peer) = pair(4096).await;
            if limited {
                configure(&tcp).unwrap();
                assert!(tcp.nodelay().unwrap());
                assert_eq!(SockRef::from(&tcp).tcp_notsent_lowat().unwrap(), UNSENT_MAX_BYTES);
            }
            tcp.writable().await.unwrap();
            *size = taken(&tcp);
        }
        let [limited, unlimited] = sizes;
        // One segment of loopback above the limit.
        assert!(limited <= 3 * UNSENT_MAX_BYTES as usize + 64 * 1024, "{limited}");
        assert!(unlimited > 2 * limited, "{unlimited}, limited {limited}");
    }

    #[tokio::test]
    async fn small_writes_respect_the_limit() {
        let (tcp, mut peer) = pair(64 * 1024).await;
        configure(&tcp).unwrap();
        let port = tcp.local_addr().unwrap().port();
        let mut tcp = LimitedTcp::new(tcp);
        for round in 0..3 {
            let taken = taken_by_writes(&mut tcp).await;
            // Everything that the window allows was sent and acknowledged.
            let unsent = send_queue_bytes(port);
            let is_limited = unsent <= UNSENT_MAX_BYTES as usize + 1024;
            assert!(is_limited || round == 0, "{unsent} of {taken} in round {round}");
            // The writer is woken when there is room again.
            let mut buf = vec![0; taken];
            let (flushed, read) = tokio::join!(tcp.flush(), peer.read_exact(&mut buf));
            flushed.unwrap();
            read.unwrap();
        }
    }

    /// Bytes that the peer of the socket with this local port has not acknowledged.
    fn send_queue_bytes(port: u16) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let port = format!(":{port:04X}");
        let socket = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, queues) = (fields.next()?, fields.nth(2)?);
            local.ends_with(&port).then(|| queues.split_once(':').unwrap().0.to_owned())
        };
        let sent = table.lines().find_map(socket).unwrap();
        usize::from_str_radix(&sent, 16).unwrap()
    }
}
