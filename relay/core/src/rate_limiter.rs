//! A rate limiter by the generic cell rate algorithm (ITU-T I.371). Like a token
//! bucket, but its only state is one moment, at which everything taken so far is
//! paid off.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A rate limiter, shared by all that are subject to the same rate.
#[derive(Debug, Default)]
pub(crate) struct RateLimiter {
    paid_off: Mutex<Option<Instant>>,
}

impl RateLimiter {
    /// Takes an amount that costs `cost` of time. Returns how long to wait before
    /// more is taken: as long as the limiter is ahead of the clock by more than
    /// `burst`.
    pub(crate) fn take(&self, now: Instant, cost: Duration, burst: Duration) -> Duration {
        let mut paid_off = self.paid_off.lock();
        let until = paid_off.map_or(now, |at| at.max(now)) + cost;
        *paid_off = Some(until);
        until.saturating_duration_since(now).saturating_sub(burst)
    }

    /// Takes an amount only if the limiter stays within `burst`.
    pub(crate) fn try_take(&self, now: Instant, cost: Duration, burst: Duration) -> bool {
        let mut paid_off = self.paid_off.lock();
        let until = paid_off.map_or(now, |at| at.max(now)) + cost;
        let fits = until.saturating_duration_since(now) <= burst;
        if fits {
            *paid_off = Some(until);
        }
        fits
    }

    /// How far ahead of the clock the limiter is.
    pub(crate) fn ahead(&self, now: Instant) -> Duration {
        self.paid_off.lock().map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::t0;

    #[test]
    fn long_term_throughput_equals_the_rate() {
        let (limiter, cost) = (RateLimiter::default(), Duration::from_millis(10));
        let (mut now, mut taken) = (t0(), 0);
        let end = now + Duration::from_secs(60);
        while now < end {
            let wait = limiter.take(now, cost, Duration::from_secs(1));
            taken += 1;
            now += wait;
        }
        // a second's worth at once, then a hundred a second
        assert!((6090..=6110).contains(&taken), "{taken}");
    }

    #[test]
    fn try_take_refuses_beyond_the_burst() {
        let (limiter, now) = (RateLimiter::default(), t0());
        let (cost, burst) = (Duration::from_secs(20), Duration::from_secs(60));
        let took = (0..10).filter(|_| limiter.try_take(now, cost, burst)).count();
        assert_eq!(took, 3);
        assert_eq!(limiter.ahead(now), burst);
        assert!(!limiter.try_take(now + Duration::from_secs(19), cost, burst));
        assert!(limiter.try_take(now + Duration::from_secs(20), cost, burst));
        assert_eq!(limiter.ahead(now + Duration::from_secs(200)), Duration::ZERO);
    }
}
