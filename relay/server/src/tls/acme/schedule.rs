//! Computes when certificates are ordered.

use std::time::Duration;

/// The number of consecutive failures with a short retry: the first cause is often a
/// name or a port that the operator is about to correct. Let's Encrypt accepts five
/// failures per name and hour.
const QUICK_RETRIES: u32 = 3;
/// Shortest wait after a failed order beyond [`QUICK_RETRIES`].
const RETRY_MIN: Duration = Duration::from_secs(3600);
/// Longest wait after an order that did not reach its server. The server has not
/// counted it, so the relay may retry soon after the network is back.
const UNREACHED_RETRY_MAX: Duration = Duration::from_secs(600);
/// Longest wait after a failed order, unless the server asks for more: a third of
/// the shortest usual lifetime (six days) has room for eight tries.
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);
/// Longest wait that a server may ask for with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a certificate is renewed: after two thirds of its lifetime, which leaves a
/// third for failures. All in seconds since 1970.
pub(super) fn renewal(not_before: i64, not_after: i64) -> i64 {
    let life = not_after.saturating_sub(not_before).max(0);
    not_before.saturating_add(life - life / 3)
}

/// Failures since the last certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct FailureCount {
    /// Orders that the server refused. It allows a few per hour.
    refused: u32,
    /// The orders since then that did not reach the server.
    unreached: u32,
}

impl FailureCount {
    /// Counts an order that the server refused.
    pub(super) fn refused(&mut self) {
        *self = Self { refused: self.refused.saturating_add(1), unreached: 0 };
    }

    /// Counts an order that did not reach the server.
    pub(super) fn unreached(&mut self) {
        self.unreached = self.unreached.saturating_add(1);
    }

    /// The number of failures.
    pub(super) fn count(self) -> u32 {
        self.refused.saturating_add(self.unreached)
    }

    fn wait(self, first: Duration) -> Duration {
        if let Some(doublings) = self.unreached.checked_sub(1) {
            let wait = first.saturating_mul(1 << doublings.min(16));
            return wait.min(UNREACHED_RETRY_MAX.max(first));
        }
        let Some(doublings) = self.refused.checked_sub(1) else { return Duration::ZERO };
        match self.refused.checked_sub(QUICK_RETRIES + 1) {
            None => first.saturating_mul(1 << doublings),
            Some(further) => {
                RETRY_MIN.saturating_mul(1 << further.min(8)).max(first.min(RETRY_MAX))
            }
        }
    }
}

/// The back-off before the next order. After refusals: `first`, twice that, four
/// times that; then an hour, doubling up to six. While the server is unreachable:
/// `first`, doubling up to ten minutes. The server's `retry_after` is honoured up to
/// a day. A `jitter` of `0.0..=1.0` adds up to half of the wait, so that relays that
/// failed together do not retry together.
pub(super) fn pause(
    failures: FailureCount,
    first: Duration,
    retry_after: Option<Duration>,
    jitter: f64,
) -> Duration {
    if failures.count() == 0 {
        return Duration::ZERO;
    }
    let pause = failures.wait(first);
    let retry_after = retry_after.unwrap_or_default().min(RETRY_AFTER_MAX);
    let pause = pause.min(RETRY_MAX).max(retry_after);
    pause + (pause / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn renewal_leaves_a_third_of_the_lifetime() {
        let day = 24 * 3600;
        assert_eq!(renewal(0, 90 * day), 60 * day);
        assert_eq!(renewal(10 * day, 16 * day), 14 * day);
        assert_eq!(renewal(100, 102), 102, "rounded to the end, never past it");
        assert_eq!(renewal(100, 50), 100, "a lifetime that ends before it begins is over");
        assert_eq!(renewal(i64::MIN, i64::MAX), i64::MIN + (i64::MAX - i64::MAX / 3));
    }

    fn refused(times: u32) -> FailureCount {
        FailureCount { refused: times, unreached: 0 }
    }

    #[test]
    fn refusals_back_off_from_minutes_to_hours() {
        let minutes = |n| pause(refused(n), MINUTE, None, 0.0).as_secs() / 60;
        let pauses: Vec<_> = (0..9).map(minutes).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 60, 120, 240, 360, 360]);
        let never = refused(u32::MAX);
        assert_eq!(pause(never, MINUTE, None, 0.0), RETRY_MAX);
        assert_eq!(pause(never, Duration::MAX, None, 0.0), RETRY_MAX);
        assert_eq!(pause(refused(4), 3 * HOUR, None, 0.0), 3 * HOUR, "never sooner than set");
        assert_eq!(pause(refused(4), Duration::ZERO, None, 0.0), HOUR, "whatever is set");
    }

    #[test]
    fn unreachable_server_is_retried_soon() {
        let mut failures = FailureCount::default();
        let mut minutes = || {
            failures.unreached();
            pause(failures, MINUTE, None, 0.0).as_secs() / 60
        };
        let pauses: Vec<_> = (0..7).map(|_| minutes()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10]);
        // Refusals still count.
        (0..4).for_each(|_| failures.refused());
        assert_eq!(pause(failures, MINUTE, None, 0.0), HOUR);
        failures.unreached();
        assert_eq!(pause(failures, MINUTE, None, 0.0), MINUTE);
        failures.refused();
        assert_eq!(pause(failures, MINUTE, None, 0.0), 2 * HOUR);
        let never = FailureCount { refused: u32::MAX, unreached: u32::MAX };
        assert_eq!(pause(never, HOUR, None, 0.0), HOUR, "never sooner than set");
        assert_eq!(never.count(), u32::MAX);
    }

    #[test]
    fn jitter_only_adds() {
        assert_eq!(pause(refused(2), MINUTE, None, 1.0), 3 * MINUTE);
        assert_eq!(pause(refused(4), MINUTE, None, 0.5), HOUR + HOUR / 4);
        assert_eq!(pause(refused(4), MINUTE, None, 7.0), HOUR + HOUR / 2);
    }

    #[test]
    fn retry_after_is_honoured_up_to_a_day() {
        assert_eq!(pause(refused(1), MINUTE, Some(HOUR), 0.0), HOUR);
        assert_eq!(pause(refused(1), MINUTE, Some(Duration::ZERO), 0.0), MINUTE);
        let never = pause(refused(1), MINUTE, Some(Duration::MAX), 0.0);
        assert_eq!(never, RETRY_AFTER_MAX);
    }
}
