//! Large reads without a large buffer per connection.
//!
//! All connections of a thread read into one shared buffer, so a busy connection
//! empties the kernel's buffer in few calls and an idle one holds no memory here.
//! A connection keeps the buffer only while its reader has not taken all bytes; the
//! thread then allocates another. So a connection under backpressure costs at most
//! one buffer.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tls::PeerClosed;

thread_local! {
    /// The thread's buffer, unless a connection keeps it.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection that reads into the thread's shared buffer.
pub(crate) struct SharedReadBuffer<T> {
    inner: T,
    /// Bytes that one read takes from the kernel.
    size: usize,
    /// `held[taken..end]` was read and not taken yet; empty otherwise.
    held: Vec<u8>,
    taken: usize,
    end: usize,
}

impl<T> SharedReadBuffer<T> {
    /// Reads at most `size` bytes at once, at least one.
    pub(crate) fn new(inner: T, size: usize) -> Self {
        Self { inner, size: size.max(1), held: Vec::new(), taken: 0, end: 0 }
    }

    /// The connection below.
    #[cfg(test)]
    fn get_ref(&self) -> &T {
        &self.inner
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let length = buf.remaining().min(self.end - self.taken);
        buf.put_slice(&self.held[self.taken..self.taken + length]);
        self.taken += length;
        if self.taken == self.end {
            SPARE.set(std::mem::take(&mut self.held));
        }
    }
}

impl<T: PeerClosed> PeerClosed for SharedReadBuffer<T> {
    fn peer_closed(&self) -> bool {
        self.inner.peer_closed()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for SharedReadBuffer<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            if buf.remaining() >= this.size {
                return Pin::new(&mut this.inner).poll_read(cx, buf);
            }
            let mut buffer = SPARE.take();
            buffer.resize(this.size, 0);
            let mut read = ReadBuf::new(&mut buffer);
            let result = Pin::new(&mut this.inner).poll_read(cx, &mut read);
            let length = read.filled().len();
            if length == 0 {
                SPARE.set(buffer);
                return result;
            }
            ready!(result)?;
            (this.held, this.taken, this.end) = (buffer, 0, length);
        }
        this.take(buf);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for SharedReadBuffer<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Counts reads that returned bytes.
    struct Counting(tokio::io::DuplexStream, usize);

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let before = buf.filled().len();
            let result = Pin::new(&mut self.0).poll_read(cx, buf);
            self.1 += usize::from(buf.filled().len() > before);
            result
        }
    }

    async fn pair(
        size: usize,
        text: &[u8],
    ) -> (tokio::io::DuplexStream, SharedReadBuffer<Counting>) {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(text).await.unwrap();
        (near, SharedReadBuffer::new(Counting(far, 0), size))
    }

    #[tokio::test]
    async fn small_reads_share_one_large_read() {
        let text: Vec<u8> = (0..100).collect();
        let (mut near, mut buffer) = pair(64, &text).await;
        let mut got = Vec::new();
        for length in [1, 7, 30, 3] {
            let mut piece = vec![0; length];
            buffer.read_exact(&mut piece).await.unwrap();
            got.append(&mut piece);
        }
        assert_eq!(buffer.get_ref().1, 1);
        let mut rest = vec![0; 59];
        buffer.read_exact(&mut rest).await.unwrap();
        got.append(&mut rest);
        assert_eq!((got, buffer.get_ref().1), (text, 2));
        // The end of the stream is passed on.
        near.shutdown().await.unwrap();
        assert_eq!(buffer.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn large_read_bypasses_the_buffer() {
        let (_near, mut buffer) = pair(16, &[5; 40]).await;
        let mut large = [0; 64];
        assert_eq!(buffer.read(&mut large).await.unwrap(), 40);
        assert_eq!((buffer.get_ref().1, buffer.held.capacity()), (1, 0));
    }

    #[tokio::test]
    async fn only_untaken_bytes_keep_a_buffer() {
        let (mut near, mut idle) = pair(64, b"").await;
        let mut cx = Context::from_waker(Waker::noop());
        let nothing = Pin::new(&mut idle).poll_read(&mut cx, &mut ReadBuf::new(&mut [0; 8]));
        assert!(nothing.is_pending());
        assert_eq!(idle.held.capacity(), 0, "idle");
        near.write_all(b"twelve bytes").await.unwrap();
        idle.read_exact(&mut [0; 8]).await.unwrap();
        assert!(idle.held.capacity() >= 64, "half taken");
        // The thread allocates another buffer.
        let (_near, mut other) = pair(64, b"other").await;
        let mut word = [0; 5];
        other.read_exact(&mut word).await.unwrap();
        assert_eq!((&word, other.held.capacity()), (b"other", 0));
        let mut rest = [0; 4];
        idle.read_exact(&mut rest).await.unwrap();
        assert_eq!((&rest, idle.held.capacity()), (b"ytes", 0));
    }
}
