//! Measures for how long a peer has not read the bytes it was sent.
//!
//! The HTTP server has a timeout for requests but none for responses. A stall
//! begins when the connection accepts no more bytes and ends when all of them are
//! flushed, so a peer that reads a little now and then stays stalled.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A connection that measures its write stalls.
pub(crate) struct StallMonitor<T> {
    inner: T,
    stalled: bool,
    since: WriteStall,
}

/// The current write stall of a [`StallMonitor`].
#[derive(Clone, Default)]
pub(crate) struct WriteStall(Arc<Mutex<Option<Instant>>>);

impl WriteStall {
    /// How long it has lasted; zero if there is none.
    pub(crate) fn duration(&self) -> Duration {
        self.0.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock() = since;
    }
}

impl<T> StallMonitor<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, stalled: false, since: WriteStall::default() }
    }

    pub(crate) fn stall(&self) -> WriteStall {
        self.since.clone()
    }

    /// Takes the lock only on a change, so never on a connection without stalls.
    fn note(&mut self, stalled: bool) {
        if self.stalled != stalled {
            self.stalled = stalled;
            self.since.set(stalled.then(Instant::now));
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StallMonitor<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StallMonitor<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        if written.is_pending() {
            this.note(true);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        if written.is_pending() {
            this.note(true);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.note(flushed.is_pending());
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.note(done.is_pending());
        done
    }
}
