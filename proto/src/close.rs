//! The close frames of a rendezvous websocket (RFC 6455, section 7.4): their
//! codes, their reasons, and the reconnect window in a reason.

use std::time::Duration;

/// The code and reason of a websocket close.
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
    /// 1002: an orchestrator sent what cannot be routed.
    pub const MALFORMED: CloseFrame = CloseFrame { code: 1002, reason: "malformed_frame" };
    /// 1003: a text message where only binary ones are spoken.
    pub const TEXT: CloseFrame = CloseFrame { code: 1003, reason: "binary_messages_only" };
    /// 1009: a message above the limit.
    pub const TOO_BIG: CloseFrame = CloseFrame { code: 1009, reason: "message_too_big" };
    /// 1012: the relay goes away; come back.
    pub const RESTARTING: CloseFrame = CloseFrame { code: 1012, reason: "relay_restarting" };
    /// 4001: another websocket took the executor's place.
    pub const SUPERSEDED: CloseFrame = CloseFrame { code: 4001, reason: "superseded" };
    /// 4002: the token behind the websocket was revoked.
    pub const TOKEN_REVOKED: CloseFrame = CloseFrame { code: 4002, reason: "token_revoked" };
    /// 4003: the token behind the websocket has expired.
    pub const TOKEN_EXPIRED: CloseFrame = CloseFrame { code: 4003, reason: "token_expired" };
    /// 4004: the environment was revoked, or its registration was ended.
    pub const REGISTRATION_ENDED: CloseFrame =
        CloseFrame { code: 4004, reason: "registration_ended" };

    /// All close frames that a relay sends, for documentation.
    pub const BY_RELAY: [CloseFrame; 8] = [
        CloseFrame::TEXT,
        CloseFrame::TOO_BIG,
        CloseFrame::RESTARTING,
        CloseFrame::MALFORMED,
        CloseFrame::SUPERSEDED,
        CloseFrame::TOKEN_REVOKED,
        CloseFrame::TOKEN_EXPIRED,
        CloseFrame::REGISTRATION_ENDED,
    ];
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
    /// [`RESTARTING`](Self::RESTARTING) to many at once: come back at a random
    /// moment within this span, or a little more, at most [`AWAY_MAX`].
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
