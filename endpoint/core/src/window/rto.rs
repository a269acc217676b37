//! The retransmission timeout (after RFC 6298).
//!
//! It is never less than two round trips: TCP below repairs network losses one
//! round trip later, and a timeout that does not wait for that is always
//! spurious.

use std::time::Duration;

use rendez_proto::limits::RTO_INITIAL;

/// Shortest retransmission timeout; TCP below repairs losses faster.
pub const RTO_MIN: Duration = Duration::from_millis(250);
/// Longest retransmission timeout, and the longest gap between probes.
pub const RTO_MAX: Duration = Duration::from_secs(10);

const _: () = {
    assert!(RTO_INITIAL.as_millis() >= RTO_MIN.as_millis());
    assert!(RTO_MAX.as_millis() >= RTO_INITIAL.as_millis());
};

/// The round-trip estimate and the timeout derived from it.
#[derive(Debug, Clone)]
pub struct Rto {
    smoothed: Option<(Duration, Duration)>, // (mean, deviation)
    shortest: Option<Duration>,
    doublings: u32,
}

impl Rto {
    /// An estimate without measurements: the timeout is [`RTO_INITIAL`].
    pub fn new() -> Self {
        Self { smoothed: None, shortest: None, doublings: 0 }
    }

    /// The current timeout, between [`RTO_MIN`] and [`RTO_MAX`].
    pub fn current(&self) -> Duration {
        let base = match self.smoothed {
            None => RTO_INITIAL,
            Some((mean, deviation)) => mean + mean.max(deviation * 4),
        };
        let factor = 1u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
        base.max(RTO_MIN).saturating_mul(factor).min(RTO_MAX)
    }

    /// Adds the round trip of a record that was sent only once.
    pub fn sample(&mut self, rtt: Duration) {
        self.smoothed = Some(match self.smoothed {
            None => (rtt, rtt / 2),
            Some((mean, deviation)) => {
                (mean * 7 / 8 + rtt / 8, deviation * 3 / 4 + mean.abs_diff(rtt) / 4)
            }
        });
        self.shortest = Some(self.shortest.map_or(rtt, |shortest| shortest.min(rtt)));
        self.doublings = 0;
    }

    /// The shortest round trip on this path: roughly that of empty queues.
    pub fn shortest(&self) -> Option<Duration> {
        self.shortest
    }

    /// Forgets what depends on the path, since it was replaced.
    pub fn path_replaced(&mut self) {
        self.shortest = None;
        self.doublings = 0;
    }

    /// The number of timeouts since the peer last made progress.
    pub fn timeouts(&self) -> u32 {
        self.doublings
    }

    /// Doubles the timeout after it expired.
    pub fn back_off(&mut self) {
        self.doublings = (self.doublings + 1).min(16);
    }

    /// Resets the back-off because the peer made progress.
    pub fn progress(&mut self) {
        self.doublings = 0;
    }
}

impl Default for Rto {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rto_follows_round_trip_within_bounds() {
        let mut rto = Rto::new();
        assert_eq!(rto.current(), RTO_INITIAL);
        rto.sample(Duration::from_millis(1));
        assert_eq!(rto.current(), RTO_MIN);
        for _ in 0..100 {
            rto.sample(Duration::from_millis(400));
        }
        let settled = rto.current();
        assert!((Duration::from_millis(790)..Duration::from_millis(850)).contains(&settled));
        rto.sample(Duration::from_secs(2));
        assert!(rto.current() > settled, "a late answer widens the timeout");
    }

    #[test]
    fn rto_doubles_until_progress() {
        let mut rto = Rto::new();
        rto.back_off();
        assert_eq!(rto.current(), RTO_INITIAL * 2);
        for _ in 0..1000 {
            rto.back_off();
        }
        assert_eq!(rto.current(), RTO_MAX);
        rto.progress();
        assert_eq!(rto.current(), RTO_INITIAL);
    }
}
