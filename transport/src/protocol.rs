//! What a core must offer to be driven by the [pump](crate::pump()).

use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// A core behind whatever lock its owner likes. All calls are quick, none
/// blocks.
pub trait Protocol: Send {
    /// One binary message arrived.
    ///
    /// # Errors
    /// [`Violation`] ends the connection with its close frame.
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation>;

    /// A text message arrived, whatever it says. A relay closes the connection
    /// for it.
    ///
    /// # Errors
    /// [`Violation`] ends the connection with its close frame.
    fn handle_text(&mut self) -> Result<(), Violation> {
        Err(Violation(CloseFrame::TEXT))
    }

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

    /// Whether to ping the peer now, without waiting for
    /// [`PING_INTERVAL`](rendez_proto::limits::PING_INTERVAL). Asked whenever
    /// the pump may write; the core takes back its wish when it is asked. A ping
    /// that is under way and may still be answered in time serves the wish, too.
    fn wants_ping(&mut self) -> bool {
        false
    }

    /// Whether one ping that is not answered within
    /// [`ANSWER_TIMEOUT`](rendez_proto::limits::ANSWER_TIMEOUT) is enough to give
    /// the socket up, because the core can go on over another one.
    fn is_impatient(&self) -> bool {
        false
    }

    /// The peer has answered the newest ping: its websocket layer is alive, not
    /// only its TCP. `round_trip` includes the wait in both ends' buffers.
    fn handle_pong(&mut self, _now: Instant, _round_trip: Duration) {}
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

/// What precedes the number of seconds in the reason of a close frame that
/// sends a peer away.
const WITHIN: &str = "relay_restarting within ";
/// The longest span that a peer is believed, or told.
pub const AWAY_MAX: Duration = Duration::from_secs(30);

/// Spans in seconds, and how they are said.
const AWAY: [(u64, &str); 6] = [
    (1, "relay_restarting within 1s"),
    (2, "relay_restarting within 2s"),
    (5, "relay_restarting within 5s"),
    (10, "relay_restarting within 10s"),
    (20, "relay_restarting within 20s"),
    (30, "relay_restarting within 30s"),
];

impl CloseFrame {
    /// 1012: the relay goes away; come back.
    pub const RESTARTING: CloseFrame = CloseFrame { code: 1012, reason: "relay_restarting" };

    /// The same to many at once: come back at a random moment within this span,
    /// or a little more, at most [`AWAY_MAX`].
    pub fn away(within: Duration) -> Self {
        if within.is_zero() {
            return Self::RESTARTING;
        }
        let long_enough = AWAY.iter().find(|(secs, _)| Duration::from_secs(*secs) >= within);
        let (_, reason) = long_enough.unwrap_or(&AWAY[AWAY.len() - 1]);
        Self { reason, ..Self::RESTARTING }
    }
}

/// The span of a close frame that [sends away](CloseFrame::away).
pub fn sent_away(code: u16, reason: &str) -> Option<Duration> {
    let secs = reason.strip_prefix(WITHIN)?.strip_suffix('s')?.parse().ok()?;
    let within = Duration::from_secs(secs);
    (code == CloseFrame::RESTARTING.code && within <= AWAY_MAX).then_some(within)
}

/// The peer broke the protocol in a way that ends its connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub CloseFrame);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_understood_as_they_are_said() {
        for (asked, told) in [(1, 1), (2, 2), (3, 5), (11, 20), (30, 30), (3600, 30)] {
            let frame = CloseFrame::away(Duration::from_secs(asked));
            assert_eq!(sent_away(frame.code, frame.reason), Some(Duration::from_secs(told)));
            assert!(frame.reason.len() <= 123);
        }
        assert_eq!(CloseFrame::away(Duration::ZERO), CloseFrame::RESTARTING);
        assert_eq!(AWAY.last().map(|(secs, _)| *secs), Some(AWAY_MAX.as_secs()));
        for (code, reason) in [
            (1012, "relay_restarting"),
            (1012, "relay_restarting within 31s"),
            (1012, "relay_restarting within -1s"),
            (1012, "relay_restarting within 5"),
            (1000, "relay_restarting within 5s"),
        ] {
            assert_eq!(sent_away(code, reason), None, "{code} {reason}");
        }
    }
}
