//! The trait of a core that the [pump](crate::pump()) drives.

use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::close::CloseFrame;

/// A core, behind a lock of its owner's choice. Calls return quickly and never
/// block.
pub trait Protocol: Send {
    /// One binary message arrived.
    ///
    /// # Errors
    /// [`Violation`] ends the connection with its close frame.
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation>;

    /// A text message arrived, with any contents. A relay closes the connection
    /// for it.
    ///
    /// # Errors
    /// [`Violation`] ends the connection with its close frame.
    fn handle_text(&mut self) -> Result<(), Violation> {
        Err(Violation(CloseFrame::TEXT))
    }

    /// Whether the core has room for more input. If not, the pump stops reading, and
    /// TCP slows the peer down. The core wakes its waker when that changes.
    fn wants_read(&self) -> bool;

    /// The next message to send; asked only when the socket has room. The path takes
    /// `budget` bytes in a few milliseconds: a core that chooses the size of its
    /// messages does not make larger ones, so that others wait no longer.
    fn poll_transmit(&mut self, now: Instant, budget: usize) -> Option<Bytes>;

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    fn poll_timeout(&self) -> Option<Instant>;

    /// A deadline of [`poll_timeout`](Self::poll_timeout) has passed.
    fn handle_timeout(&mut self, now: Instant);

    /// Stores the waker of the pump's task. The core wakes it when there is something
    /// to send, when it has room to read again, or when the connection should close.
    fn register(&mut self, waker: &Waker);

    /// The close frame, once the connection should close. Messages that
    /// [`poll_transmit`](Self::poll_transmit) still has are sent first.
    fn closing(&self) -> Option<CloseFrame>;

    /// Whether to ping the peer now, without waiting for
    /// [`PING_INTERVAL`](rendez_proto::limits::PING_INTERVAL). Asked whenever
    /// the pump may write; the call clears the request. A ping that is in flight and may
    /// still be answered in time serves the request, too.
    fn wants_ping(&mut self) -> bool {
        false
    }

    /// Whether one ping that is not answered within
    /// [`PING_ANSWER_TIMEOUT`](crate::pump::PING_ANSWER_TIMEOUT) is enough to give
    /// the socket up, because the core can go on over another one.
    fn wants_short_ping_timeout(&self) -> bool {
        false
    }

    /// The peer has answered the newest ping: its websocket layer is alive, not
    /// only its TCP. `round_trip` includes the wait in both ends' buffers.
    fn handle_pong(&mut self, _now: Instant, _round_trip: Duration) {}
}

/// The peer broke the protocol in a way that ends its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub CloseFrame);
