//! When to try again: exponential with full jitter, reset after stability.
//!
//! The delay before try `n` is uniform in `0..=min(cap, base * 2^n)`, so that
//! thousands of endpoints that lost the same relay do not return at once.

use std::time::Duration;

/// The longest wait before the first retry.
pub const BASE: Duration = Duration::from_millis(500);
/// The longest wait ever.
pub const CAP: Duration = Duration::from_secs(30);
/// A connection that lived this long proves that the path is good again.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait before the next try. `random` is uniform in `0..=u32::MAX`.
    pub fn next_delay(&mut self, random: u32) -> Duration {
        let ceiling = BASE.saturating_mul(1 << self.failures.min(16)).min(CAP);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    /// Tells how long the last connection lived.
    pub fn connected_for(&mut self, lifetime: Duration) {
        if lifetime >= STABLE_AFTER {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_jitters_down_to_zero() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<_> = (0..9).map(|_| backoff.next_delay(u32::MAX).as_millis()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(backoff.next_delay(0), Duration::ZERO);
    }

    #[test]
    fn only_a_stable_connection_resets() {
        let mut backoff = Backoff::default();
        backoff.next_delay(0);
        backoff.connected_for(Duration::from_secs(1));
        assert_eq!(backoff.next_delay(u32::MAX), BASE * 2);
        backoff.connected_for(STABLE_AFTER);
        assert_eq!(backoff.next_delay(u32::MAX), BASE);
    }
}
