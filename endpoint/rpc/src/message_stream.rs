//! The stream that services and callers use: whole application messages, both
//! ways.

use std::future::Future;

use bytes::Bytes;

/// One stream's application messages.
///
/// Implemented by [`Channel`](crate::channel::Channel) over a real stream and
/// by [`duplex`](crate::duplex::duplex) for tests.
pub trait MessageStream: Send + Sync + 'static {
    /// Returns the next message of the peer; `None` once the stream has ended
    /// and everything received was returned. One task reads at a time.
    fn recv(&self) -> impl Future<Output = Option<Bytes>> + Send;

    /// Waits until the stream has ended: nothing more is received or sent.
    /// Messages received before may still be unread.
    fn ended(&self) -> impl Future<Output = ()> + Send;

    /// Sends a message, and waits while the stream has no room: a peer that
    /// stops reading blocks its senders here. Cancelling the future before it
    /// is ready sends nothing.
    ///
    /// # Errors
    /// [`StreamClosed`] if the stream has ended; the message was not sent.
    fn send(&self, message: Bytes) -> impl Future<Output = Result<(), StreamClosed>> + Send;
}

/// The stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream is closed")]
pub struct StreamClosed;
