//! Large reads without a large buffer per connection.
//!
//! A connection that is idle holds no buffer here, and one that is busy empties
//! the kernel's in few calls: what is read goes into a buffer that all
//! connections of a thread share. Only while a reader has not taken all of what
//! was read does the buffer belong to its connection, so one that is held back
//! costs at most one of them.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::tls::Wire;

thread_local! {
    /// The thread's buffer, unless a connection has it.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection that is read in gulps.
pub(crate) struct Gulp<T> {
    inner: T,
    /// Bytes that one read takes from the kernel.
    size: usize,
    /// What was read and not taken yet is `held[taken..end]`; empty otherwise.
    held: Vec<u8>,
    taken: usize,
    end: usize,
}

impl<T> Gulp<T> {
    /// Reads at most `size` bytes at once, at least one.
    pub(crate) fn new(inner: T, size: usize) -> Self {
        Self { inner, size: size.max(1), held: Vec::new(), taken: 0, end: 0 }
    }

    /// What is below.
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

impl Wire for Gulp<TcpStream> {
    fn has_hung_up(&self) -> bool {
        // Bytes that wait for their turn are in the way of the end: then it is
        // not known.
        matches!(self.inner.peek(&mut [0]).now_or_never(), Some(Ok(0) | Err(_)))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gulp<T> {
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
            let mut gulp = SPARE.take();
            gulp.resize(this.size, 0);
            let mut read = ReadBuf::new(&mut gulp);
            let result = Pin::new(&mut this.inner).poll_read(cx, &mut read);
            let length = read.filled().len();
            if length == 0 {
                SPARE.set(gulp);
                return result;
            }
            ready!(result)?;
            (this.held, this.taken, this.end) = (gulp, 0, length);
        }
        this.take(buf);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gulp<T> {
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

    /// Counts reads that found something.
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

    async fn pair(size: usize, text: &[u8]) -> (tokio::io::DuplexStream, Gulp<Counting>) {
        let (mut near, far) = tokio::io::duplex(1024);
        near.write_all(text).await.unwrap();
        (near, Gulp::new(Counting(far, 0), size))
    }

    #[tokio::test]
    async fn small_reads_share_one_large_one_and_no_byte_is_lost() {
        let text: Vec<u8> = (0..100).collect();
        let (mut near, mut gulp) = pair(64, &text).await;
        let mut got = Vec::new();
        for length in [1, 7, 30, 3] {
            let mut piece = vec![0; length];
            gulp.read_exact(&mut piece).await.unwrap();
            got.append(&mut piece);
        }
        assert_eq!(gulp.get_ref().1, 1);
        let mut rest = vec![0; 59];
        gulp.read_exact(&mut rest).await.unwrap();
        got.append(&mut rest);
        assert_eq!((got, gulp.get_ref().1), (text, 2));
        // and the end is the end
        near.shutdown().await.unwrap();
        assert_eq!(gulp.read(&mut [0; 8]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_with_room_needs_no_buffer_of_ours() {
        let (_near, mut gulp) = pair(16, &[5; 40]).await;
        let mut large = [0; 64];
        assert_eq!(gulp.read(&mut large).await.unwrap(), 40);
        assert_eq!((gulp.get_ref().1, gulp.held.capacity()), (1, 0));
    }

    #[tokio::test]
    async fn only_what_is_not_taken_keeps_a_buffer() {
        let (mut near, mut idle) = pair(64, b"").await;
        let mut cx = Context::from_waker(Waker::noop());
        let nothing = Pin::new(&mut idle).poll_read(&mut cx, &mut ReadBuf::new(&mut [0; 8]));
        assert!(nothing.is_pending());
        assert_eq!(idle.held.capacity(), 0, "idle");
        near.write_all(b"twelve bytes").await.unwrap();
        idle.read_exact(&mut [0; 8]).await.unwrap();
        assert!(idle.held.capacity() >= 64, "half taken");
        // the thread has another one for the next
        let (_near, mut other) = pair(64, b"other").await;
        let mut word = [0; 5];
        other.read_exact(&mut word).await.unwrap();
        assert_eq!((&word, other.held.capacity()), (b"other", 0));
        let mut rest = [0; 4];
        idle.read_exact(&mut rest).await.unwrap();
        assert_eq!((&rest, idle.held.capacity()), (b"ytes", 0));
    }
}
