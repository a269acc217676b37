//! What services speak over: whole application messages, both ways.

use std::future::Future;

use bytes::Bytes;

/// One stream's application messages.
///
/// Implemented by [`Channel`](crate::channel::Channel) over a real stream and
/// by [`duplex`](crate::duplex::duplex) for tests.
pub trait MessageStream: Send + Sync + 'static {
    /// The next message of the peer; `None` once the stream is over and
    /// everything that arrived has been taken. One task reads at a time.
    fn recv(&self) -> impl Future<Output = Option<Bytes>> + Send;

    /// Waits until the stream is over: nothing more arrives, and nothing that is
    /// sent does. What had arrived may still be waiting to be taken.
    fn ended(&self) -> impl Future<Output = ()> + Send;

    /// Hands a message to the stream, and waits while it has no room: a peer
    /// that stops reading stops its senders here. Cancelling the future before
    /// it is ready sends nothing.
    ///
    /// # Errors
    /// [`StreamClosed`] if the stream is over; the message was not sent.
    fn send(&self, message: Bytes) -> impl Future<Output = Result<(), StreamClosed>> + Send;
}

/// The stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct StreamClosed;
