//! Exponential back-off with full jitter: the first retry after a working
//! connection is immediate, and a stable connection resets the delay.
//!
//! The delay before try `n` is uniform in `0..=min(cap, base * 2^n)`, so that
//! thousands of endpoints that lost the same relay do not return together
//! again and again. Their first, immediate retries do coincide: a relay that still
//! runs serves them, and one that does not costs each of them one packet.

use std::time::Duration;

/// The longest wait before the first retry that waits.
pub const BASE: Duration = Duration::from_millis(500);
/// The longest wait ever.
pub const CAP: Duration = Duration::from_secs(30);
/// The longest wait while streams are held for a resume: users wait for them,
/// and `rendez_proto::limits::STREAM_GRACE` bounds how long that lasts.
pub const RESUME_CAP: Duration = Duration::from_secs(1);
/// A connection that lived this long worked: its loss does not predict that of the
/// next one. Shorter lives are failures, so that a relay that takes
/// connections only to drop them is not tried in a tight loop.
pub const WORKED_AFTER: Duration = Duration::from_secs(1);
/// A connection that lived this long proves that the path is good again.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failures: u32,
    immediate: bool,
    spread: Option<Duration>,
}

impl Backoff {
    /// The wait before the next try, at most `cap`, which is [`CAP`] or
    /// [`RESUME_CAP`]. `random` is uniform in `0..=u32::MAX`.
    pub fn next_delay(&mut self, cap: Duration, random: u32) -> Duration {
        let share = f64::from(random) / f64::from(u32::MAX);
        if let Some(span) = self.spread.take() {
            return span.mul_f64(share);
        }
        if std::mem::take(&mut self.immediate) {
            return Duration::ZERO;
        }
        let ceiling = BASE.saturating_mul(1 << self.failures.min(16)).min(cap);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(share)
    }

    /// Records how long the last connection lived.
    pub fn connected_for(&mut self, lifetime: Duration) {
        self.immediate = lifetime >= WORKED_AFTER;
        if lifetime >= STABLE_AFTER {
            self.failures = 0;
        }
    }

    /// Makes the next attempt at a random moment within `span`, once: the reconnect
    /// window of a draining relay.
    pub fn reconnect_within(&mut self, span: Duration) {
        self.immediate = false;
        self.failures = 0;
        self.spread = Some(span);
    }

    /// Delays the next attempt, however long the last connection lived: another
    /// executor has taken over.
    pub fn delay_next(&mut self) {
        self.immediate = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_doubles_up_to_the_cap() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<_> =
            (0..9).map(|_| backoff.next_delay(CAP, u32::MAX).as_millis()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff.next_delay(CAP, 0), Duration::ZERO);
    }

    #[test]
    fn resume_cap_bounds_the_delay() {
        let mut backoff = Backoff::default();
        let mut ceiling = || backoff.next_delay(RESUME_CAP, u32::MAX).as_millis();
        assert_eq!([ceiling(), ceiling(), ceiling()], [500, 1000, 1000]);
    }

    #[test]
    fn working_connection_is_retried_immediately_once() {
        let mut backoff = Backoff::default();
        backoff.connected_for(WORKED_AFTER);
        assert_eq!(backoff.next_delay(CAP, u32::MAX), Duration::ZERO);
        assert_eq!(backoff.next_delay(CAP, u32::MAX), BASE);
        backoff.connected_for(WORKED_AFTER - Duration::from_millis(1));
        assert_eq!(backoff.next_delay(CAP, u32::MAX), BASE * 2, "that was a failure");
        backoff.connected_for(WORKED_AFTER);
        backoff.delay_next();
        assert_eq!(backoff.next_delay(CAP, u32::MAX), BASE * 4);
    }

    #[test]
    fn reconnect_window_spreads_the_next_attempt() {
        let span = Duration::from_secs(5);
        for (random, delay) in [(0, Duration::ZERO), (u32::MAX, span)] {
            let mut backoff = Backoff::default();
            backoff.connected_for(STABLE_AFTER);
            backoff.reconnect_within(span);
            assert_eq!(backoff.next_delay(RESUME_CAP, random), delay);
            assert_eq!(backoff.next_delay(CAP, u32::MAX), BASE, "once");
        }
    }

    #[test]
    fn only_a_stable_connection_resets_the_delay() {
        let mut backoff = Backoff::default();
        let waited = |backoff: &mut Backoff, lifetime| {
            backoff.connected_for(lifetime);
            backoff.delay_next();
            backoff.next_delay(CAP, u32::MAX)
        };
        assert_eq!(waited(&mut backoff, Duration::ZERO), BASE);
        assert_eq!(waited(&mut backoff, STABLE_AFTER / 2), BASE * 2);
        assert_eq!(waited(&mut backoff, STABLE_AFTER), BASE);
    }
}
