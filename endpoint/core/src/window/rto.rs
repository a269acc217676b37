//! The retransmission timeout (RFC 6298, in a few lines).
//!
//! Never less than two round trips: what the network loses, TCP below sends
//! again one round trip later, and a timeout that does not wait for that is
//! always wrong.

use std::time::Duration;

use rendez_proto::limits::RTO_INITIAL;

/// Shortest retransmission timeout: below us is TCP, which repairs faster.
pub const RTO_MIN: Duration = Duration::from_millis(250);
/// Longest retransmission timeout, and the longest gap between probes.
pub const RTO_MAX: Duration = Duration::from_secs(10);

const _: () = {
    assert!(RTO_INITIAL.as_millis() >= RTO_MIN.as_millis());
    assert!(RTO_MAX.as_millis() >= RTO_INITIAL.as_millis());
};

/// Round-trip estimate and the timeout that follows from it.
#[derive(Debug, Clone)]
pub struct Rto {
    smoothed: Option<(Duration, Duration)>, // (mean, deviation)
    shortest: Option<Duration>,
    doublings: u32,
}

impl Rto {
    /// No measurement yet: [`RTO_INITIAL`].
    pub fn new() -> Self {
        Self { smoothed: None, shortest: None, doublings: 0 }
    }

    /// The present timeout, within [`RTO_MIN`] and [`RTO_MAX`].
    pub fn current(&self) -> Duration {
        let base = match self.smoothed {
            None => RTO_INITIAL,
            Some((mean, deviation)) => mean + mean.max(deviation * 4),
        };
        let factor = 1u32.checked_shl(self.doublings).unwrap_or(u32::MAX);
        base.max(RTO_MIN).saturating_mul(factor).min(RTO_MAX)
    }

    /// A round trip of something that was sent once only.
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

    /// The shortest round trip on this path: that of empty queues, more or
    /// less.
    pub fn shortest(&self) -> Option<Duration> {
        self.shortest
    }

    /// The path was replaced: the next round trips may be others.
    pub fn path_replaced(&mut self) {
        self.shortest = None;
        self.doublings = 0;
    }

    /// How often the timeout struck since the peer made progress.
    pub fn timeouts(&self) -> u32 {
        self.doublings
    }

    /// The timeout struck.
    pub fn back_off(&mut self) {
        self.doublings = (self.doublings + 1).min(16);
    }

    /// The peer made progress.
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
