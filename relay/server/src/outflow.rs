//! A connection that tells for how long its peer has left what it was sent.
//!
//! HTTP has a time limit for every request that comes in; this is what an answer
//! that nobody takes is noticed by. It begins when the connection takes no more
//! and ends when all that was written is out, so a peer that takes a little now
//! and then is not spared.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// See the module.
pub(crate) struct Outflow<T> {
    inner: T,
    stuck: bool,
    since: Stuck,
}

/// Since when an [`Outflow`] is stuck.
#[derive(Clone, Default)]
pub(crate) struct Stuck(Arc<Mutex<Option<Instant>>>);

impl Stuck {
    /// For how long; zero if it is not.
    pub(crate) fn for_how_long(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Duration::ZERO, |i| i.elapsed())
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl<T> Outflow<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self { inner, stuck: false, since: Stuck::default() }
    }

    pub(crate) fn stuck(&self) -> Stuck {
        self.since.clone()
    }

    /// The lock is taken only when something changes, which on a connection
    /// that flows is never.
    fn note(&mut self, stuck: bool) {
        if self.stuck != stuck {
            self.stuck = stuck;
            self.since.set(stuck.then(Instant::now));
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Outflow<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Outflow<T> {
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
