//! What a core must offer to be driven by the [pump](crate::pump()).

use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;

/// A core behind whatever lock its owner likes. All calls are quick, none
/// blocks.
pub trait Protocol: Send {
    /// One binary message arrived.
    ///
    /// # Errors
    /// [`Violation`] ends the connection with its close frame.
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation>;

    /// Whether the core has room for more input. While it says no, TCP holds
    /// the peer back. When that changes, the core wakes its waker.
    fn wants_read(&self) -> bool;

    /// The next message to send; asked only when the socket has room.
    fn poll_transmit(&mut self, now: Instant) -> Option<Bytes>;

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    fn poll_timeout(&self) -> Option<Instant>;

    /// A deadline of [`poll_timeout`](Self::poll_timeout) has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// Leaves the waker of the pump's task: to be woken when there is
    /// something to send, when reading is welcome again or when the connection
    /// should close.
    fn register(&mut self, waker: &Waker);

    /// Set once the connection should close; what
    /// [`poll_transmit`](Self::poll_transmit) still has goes out first.
    fn closing(&self) -> Option<CloseFrame>;
}

/// The code and reason of a websocket close (RFC 6455, section 7.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame {
    /// A registered code, such as 1012 for a restart.
    pub code: u16,
    /// A short word for people and logs, at most 123 bytes.
    pub reason: &'static str,
}

impl CloseFrame {
    /// 1000: done.
    pub const NORMAL: CloseFrame = CloseFrame { code: 1000, reason: "done" };
    /// 1003: a text message where only binary ones are spoken.
    pub const TEXT: CloseFrame = CloseFrame { code: 1003, reason: "binary_messages_only" };
    /// 1009: a message above the limit.
    pub const TOO_BIG: CloseFrame = CloseFrame { code: 1009, reason: "message_too_big" };
}

/// The peer broke the protocol in a way that ends its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub CloseFrame);
