//! When certificates are ordered: pure arithmetic.

use std::time::Duration;

/// Failed orders in a row that are soon tried again: what is wrong at first is
/// often a name or a port that somebody corrects at that moment. Let's Encrypt
/// takes five failures per name and hour.
const QUICK_RETRIES: u32 = 3;
/// Shortest wait after a failed order beyond [`QUICK_RETRIES`].
const RETRY_MIN: Duration = Duration::from_secs(3600);
/// Longest wait after an order that did not reach its server, which therefore
/// has nothing to count: a network that is back is used soon.
const UNREACHED_RETRY_MAX: Duration = Duration::from_secs(600);
/// Longest wait after a failed order, unless the server asks for more: a third
/// of the shortest life that is usual (six days) has room for eight tries.
const RETRY_MAX: Duration = Duration::from_secs(6 * 3600);
/// Longest wait that a server may ask for with `Retry-After`.
const RETRY_TOLD_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a certificate is replaced: when two thirds of its life are over, which
/// leaves a third for what may go wrong. All in seconds since 1970.
pub(super) fn renewal(not_before: i64, not_after: i64) -> i64 {
    let life = not_after.saturating_sub(not_before).max(0);
    not_before.saturating_add(life - life / 3)
}

/// Failures since the last certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// Those that the server knows of. It allows a few an hour.
    refused: u32,
    /// The last ones, of which it does not know: it was not reached.
    unreached: u32,
}

impl Failures {
    /// The server said no.
    pub(super) fn refused(&mut self) {
        *self = Self { refused: self.refused.saturating_add(1), unreached: 0 };
    }

    /// The server was not reached.
    pub(super) fn unreached(&mut self) {
        self.unreached = self.unreached.saturating_add(1);
    }

    /// How many.
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

/// The wait before the next order. After refusals: `first`, twice that, four
/// times that; then an hour, doubling up to six. While the server is not
/// reached: `first`, doubling up to ten minutes. `told` is what the server asked
/// for and is honoured up to a day. `share` of half the wait, in `0.0..=1.0`,
/// comes on top, so that relays which failed together do not return together.
pub(super) fn pause(
    failures: Failures,
    first: Duration,
    told: Option<Duration>,
    share: f64,
) -> Duration {
    if failures.count() == 0 {
        return Duration::ZERO;
    }
    let pause = failures.wait(first);
    let told = told.unwrap_or_default().min(RETRY_TOLD_MAX);
    let pause = pause.min(RETRY_MAX).max(told);
    pause + (pause / 2).mul_f64(share.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_third_of_a_life_is_left_for_failures() {
        let day = 24 * 3600;
        assert_eq!(renewal(0, 90 * day), 60 * day);
        assert_eq!(renewal(10 * day, 16 * day), 14 * day);
        assert_eq!(renewal(100, 102), 102, "rounded to the end, never past it");
        assert_eq!(renewal(100, 50), 100, "a life that ends before it begins is over");
        assert_eq!(renewal(i64::MIN, i64::MAX), i64::MIN + (i64::MAX - i64::MAX / 3));
    }

    fn refused(times: u32) -> Failures {
        Failures { refused: times, unreached: 0 }
    }

    #[test]
    fn a_few_quick_tries_and_then_hours() {
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
    fn who_was_not_reached_has_nothing_to_forget() {
        let mut failures = Failures::default();
        let mut minutes = || {
            failures.unreached();
            pause(failures, MINUTE, None, 0.0).as_secs() / 60
        };
        let pauses: Vec<_> = (0..7).map(|_| minutes()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10, 10]);
        // but what it has refused, it remembers
        (0..4).for_each(|_| failures.refused());
        assert_eq!(pause(failures, MINUTE, None, 0.0), HOUR);
        failures.unreached();
        assert_eq!(pause(failures, MINUTE, None, 0.0), MINUTE);
        failures.refused();
        assert_eq!(pause(failures, MINUTE, None, 0.0), 2 * HOUR);
        let never = Failures { refused: u32::MAX, unreached: u32::MAX };
        assert_eq!(pause(never, HOUR, None, 0.0), HOUR, "never sooner than set");
        assert_eq!(never.count(), u32::MAX);
    }

    #[test]
    fn chance_only_ever_adds() {
        assert_eq!(pause(refused(2), MINUTE, None, 1.0), 3 * MINUTE);
        assert_eq!(pause(refused(4), MINUTE, None, 0.5), HOUR + HOUR / 4);
        assert_eq!(pause(refused(4), MINUTE, None, 7.0), HOUR + HOUR / 2);
    }

    #[test]
    fn what_the_server_asks_for_is_honoured_within_a_day() {
        assert_eq!(pause(refused(1), MINUTE, Some(HOUR), 0.0), HOUR);
        assert_eq!(pause(refused(1), MINUTE, Some(Duration::ZERO), 0.0), MINUTE);
        let never = pause(refused(1), MINUTE, Some(Duration::MAX), 0.0);
        assert_eq!(never, RETRY_TOLD_MAX);
    }
}
