//! Limits the handshakes that an executor processes
//! (docs/codex-wire.md#handshake-limits). The limiter decides before any
//! cryptography, so a flood costs little.
//!
//! After [`HANDSHAKE_FAILURES`] failures it refuses every handshake for
//! [`HANDSHAKE_COOLDOWN`]; then the count restarts. Neither successes nor time
//! lower the count.

use std::time::Instant;

use rendez_proto::limits::{HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES};

use crate::config::Limits;

/// Counts failed handshakes and holds the cooldown.
#[derive(Debug, Default)]
pub(super) struct HandshakeLimiter {
    failures: u32,
    cooldown_until: Option<Instant>,
}

/// The handshake is refused because of a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Throttled;

impl HandshakeLimiter {
    /// Decides whether to process a new handshake, given the number of streams
    /// and how many of them wait for a verdict.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        limits: &Limits,
        streams: usize,
        pending: usize,
    ) -> Result<(), Throttled> {
        if self.cooldown_until.is_some_and(|until| now < until) {
            return Err(Throttled);
        }
        self.cooldown_until = None;
        if streams >= limits.streams || pending >= limits.pending_handshakes {
            return Err(Throttled);
        }
        Ok(())
    }

    /// Counts a failed handshake.
    pub(super) fn record_failure(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= HANDSHAKE_FAILURES {
            self.failures = 0;
            self.cooldown_until = Some(now + HANDSHAKE_COOLDOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn eight_failures_cool_down_for_ten_seconds() {
        let (mut limiter, limits) = (HandshakeLimiter::default(), Limits::default());
        let start = crate::test_origin();
        let admit = |limiter: &mut HandshakeLimiter, ms| {
            limiter.admit(start + Duration::from_millis(ms), &limits, 0, 0)
        };
        for _ in 0..7 {
            limiter.record_failure(start);
        }
        assert_eq!(admit(&mut limiter, 0), Ok(()));
        limiter.record_failure(start);
        assert_eq!(admit(&mut limiter, 1), Err(Throttled));
        assert_eq!(admit(&mut limiter, 9_999), Err(Throttled));
        assert_eq!(admit(&mut limiter, 10_000), Ok(()));
        limiter.record_failure(start);
        assert_eq!(admit(&mut limiter, 10_000), Ok(()), "the count starts again");
    }

    #[test]
    fn stream_and_pending_limits_refuse_handshakes() {
        let (mut limiter, limits) = (HandshakeLimiter::default(), Limits::default());
        let now = crate::test_origin();
        assert_eq!(limiter.admit(now, &limits, 127, 31), Ok(()));
        assert_eq!(limiter.admit(now, &limits, 128, 0), Err(Throttled));
        assert_eq!(limiter.admit(now, &limits, 0, 32), Err(Throttled));
    }
}
