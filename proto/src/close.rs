//! The close frames of a rendezvous websocket (RFC 6455, section 7.4): their
//! codes, their reasons, and the reconnect window in a reason.

use std::time::Duration;

/// The code and reason of a websocket close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseFrame {
    /// A registered code, such as 1012 for a restart.
    pub code: u16,
    /// A short text for people and logs, at most 123 bytes.
    pub reason: &'static str,
}

impl CloseFrame {
    /// 1000: the endpoint shuts down.
    pub const NORMAL: CloseFrame = CloseFrame { code: 1000, reason: "done" };
    /// 1002: an orchestrator sent a message that is not a valid frame.
    pub const MALFORMED: CloseFrame = CloseFrame { code: 1002, reason: "malformed_frame" };
    /// 1003: the peer sent a text message; only binary ones are valid.
    pub const TEXT: CloseFrame = CloseFrame { code: 1003, reason: "binary_messages_only" };
    /// 1008: the peer began a message and did not finish it in time.
    pub const MESSAGE_TIMEOUT: CloseFrame = CloseFrame { code: 1008, reason: "message_timeout" };
    /// 1009: the peer sent a message above the limit.
    pub const TOO_BIG: CloseFrame = CloseFrame { code: 1009, reason: "message_too_big" };
    /// 1012: the relay shuts down; the peer reconnects.
    pub const RESTARTING: CloseFrame = CloseFrame { code: 1012, reason: "relay_restarting" };
    /// 4001: a newer websocket of the executor replaced this one.
    pub const SUPERSEDED: CloseFrame = CloseFrame { code: 4001, reason: "superseded" };
    /// 4002: the token behind the websocket was revoked.
    pub const TOKEN_REVOKED: CloseFrame = CloseFrame { code: 4002, reason: "token_revoked" };
    /// 4003: the token behind the websocket has expired.
    pub const TOKEN_EXPIRED: CloseFrame = CloseFrame { code: 4003, reason: "token_expired" };
    /// 4004: the environment was revoked, or its registration was ended.
    pub const REGISTRATION_ENDED: CloseFrame =
        CloseFrame { code: 4004, reason: "registration_ended" };

    /// All close frames that a relay sends; `docs/operating.md` lists them.
    pub const BY_RELAY: [CloseFrame; 9] = [
        CloseFrame::TEXT,
        CloseFrame::MESSAGE_TIMEOUT,
        CloseFrame::TOO_BIG,
        CloseFrame::RESTARTING,
        CloseFrame::MALFORMED,
        CloseFrame::SUPERSEDED,
        CloseFrame::TOKEN_REVOKED,
        CloseFrame::TOKEN_EXPIRED,
        CloseFrame::REGISTRATION_ENDED,
    ];
}

/// The reason of [`CloseFrame::RESTARTING`] with a reconnect window, up to its
/// number of seconds.
const RESTARTING_WITHIN: &str = "relay_restarting within ";
/// The longest reconnect window that a relay announces and an endpoint accepts.
pub const RECONNECT_WINDOW_MAX: Duration = Duration::from_secs(30);

/// The reconnect windows that a relay announces, in seconds, and their reasons.
const RECONNECT_WINDOWS: [(u64, &str); 6] = [
    (1, "relay_restarting within 1s"),
    (2, "relay_restarting within 2s"),
    (5, "relay_restarting within 5s"),
    (10, "relay_restarting within 10s"),
    (20, "relay_restarting within 20s"),
    (30, "relay_restarting within 30s"),
];

impl CloseFrame {
    /// [`RESTARTING`](Self::RESTARTING) with a reconnect window: the peer
    /// reconnects at a random moment within it. The window is rounded up, and is
    /// at most [`RECONNECT_WINDOW_MAX`]; a window of zero is left out.
    pub fn restarting_within(window: Duration) -> Self {
        if window.is_zero() {
            return Self::RESTARTING;
        }
        let long_enough =
            RECONNECT_WINDOWS.iter().find(|(secs, _)| Duration::from_secs(*secs) >= window);
        let (_, reason) = long_enough.unwrap_or(&RECONNECT_WINDOWS[RECONNECT_WINDOWS.len() - 1]);
        Self { reason, ..Self::RESTARTING }
    }
}

/// Returns the reconnect window of a close frame
/// ([`CloseFrame::restarting_within`]), if it has one.
pub fn reconnect_window(code: u16, reason: &str) -> Option<Duration> {
    let secs = reason.strip_prefix(RESTARTING_WITHIN)?.strip_suffix('s')?.parse().ok()?;
    let window = Duration::from_secs(secs);
    (code == CloseFrame::RESTARTING.code && window <= RECONNECT_WINDOW_MAX).then_some(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_reconnect_windows_are_parsed() {
        for (wanted, announced) in [(1, 1), (2, 2), (3, 5), (11, 20), (30, 30), (3600, 30)] {
            let frame = CloseFrame::restarting_within(Duration::from_secs(wanted));
            let window = reconnect_window(frame.code, frame.reason);
            assert_eq!(window, Some(Duration::from_secs(announced)));
            assert!(frame.reason.len() <= 123);
        }
        assert_eq!(CloseFrame::restarting_within(Duration::ZERO), CloseFrame::RESTARTING);
        let longest = RECONNECT_WINDOWS.last().map(|(secs, _)| *secs);
        assert_eq!(longest, Some(RECONNECT_WINDOW_MAX.as_secs()));
        for (code, reason) in [
            (1012, "relay_restarting"),
            (1012, "relay_restarting within 31s"),
            (1012, "relay_restarting within -1s"),
            (1012, "relay_restarting within 5"),
            (1000, "relay_restarting within 5s"),
        ] {
            assert_eq!(reconnect_window(code, reason), None, "{code} {reason}");
        }
    }
}
