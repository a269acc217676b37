//! Which handshakes an executor reads at all (WIRE.md, section 4): decided
//! before any cryptography, so that a flood costs little.
//!
//! After [`HANDSHAKE_FAILURES`] failures every handshake is turned away for
//! [`HANDSHAKE_COOLDOWN`]; then the count starts again. Successes and the
//! passing of time do not lower it.

use std::time::Instant;

use rendez_proto::limits::{HANDSHAKE_COOLDOWN, HANDSHAKE_FAILURES};

use crate::Limits;

/// Counts failures.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    failures: u32,
    cooling_until: Option<Instant>,
}

/// The handshake is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TurnedAway;

impl Admission {
    /// Whether a new handshake is read, given how many streams there are and
    /// how many of them wait for a verdict.
    pub(crate) fn admit(
        &mut self,
        now: Instant,
        limits: &Limits,
        streams: usize,
        pending: usize,
    ) -> Result<(), TurnedAway> {
        if self.cooling_until.is_some_and(|until| now < until) {
            return Err(TurnedAway);
        }
        self.cooling_until = None;
        if streams >= limits.streams || pending >= limits.pending_handshakes {
            return Err(TurnedAway);
        }
        Ok(())
    }

    /// Notes a failed handshake.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures += 1;
        if self.failures >= HANDSHAKE_FAILURES {
            self.failures = 0;
            self.cooling_until = Some(now + HANDSHAKE_COOLDOWN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn eight_failures_cool_down_for_ten_seconds() {
        let (mut admission, limits) = (Admission::default(), Limits::default());
        let start = crate::test_origin();
        let admit = |admission: &mut Admission, ms| {
            admission.admit(start + Duration::from_millis(ms), &limits, 0, 0)
        };
        for _ in 0..7 {
            admission.failed(start);
        }
        assert_eq!(admit(&mut admission, 0), Ok(()));
        admission.failed(start);
        assert_eq!(admit(&mut admission, 1), Err(TurnedAway));
        assert_eq!(admit(&mut admission, 9_999), Err(TurnedAway));
        assert_eq!(admit(&mut admission, 10_000), Ok(()));
        admission.failed(start);
        assert_eq!(admit(&mut admission, 10_000), Ok(()), "the count starts again");
    }

    #[test]
    fn the_limits_turn_away() {
        let (mut admission, limits) = (Admission::default(), Limits::default());
        let now = crate::test_origin();
        assert_eq!(admission.admit(now, &limits, 127, 31), Ok(()));
        assert_eq!(admission.admit(now, &limits, 128, 0), Err(TurnedAway));
        assert_eq!(admission.admit(now, &limits, 0, 32), Err(TurnedAway));
    }
}
