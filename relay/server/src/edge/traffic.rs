//! What one websocket has carried, and when it last proved that it is alive.
//!
//! Its pump writes, anybody reads. There is one writer, so the counters need
//! no read-modify-write on the frame path.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rendez_proto::registry::environments::RoundTrip;
use tokio::sync::Notify;

/// The counters of one websocket.
#[derive(Debug)]
pub struct Traffic {
    made: Instant,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// When the last pong came, in milliseconds after `made`, plus one; 0:
    /// none came yet.
    pong_at_ms: AtomicU64,
    round_trip_us: AtomicU64,
    /// Somebody wants to know now. Set from the start: a websocket that has
    /// just opened proves itself at once.
    ping_wanted: AtomicBool,
    pong: Notify,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            made: now(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            pong_at_ms: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
            ping_wanted: AtomicBool::new(true),
            pong: Notify::new(),
        }
    }
}

impl Traffic {
    /// Bytes of messages that came from the peer.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of messages that went to the peer's socket.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The last round trip that was proved.
    pub fn verified(&self) -> Option<RoundTrip> {
        let at = self.pong_at_ms.load(Ordering::Acquire).checked_sub(1)?;
        let since_made = self.since_made(now());
        let round_trip_us = self.round_trip_us.load(Ordering::Relaxed);
        Some(RoundTrip { age_ms: since_made.saturating_sub(at), round_trip_us })
    }

    pub(super) fn count_received(&self, bytes: usize) {
        add(&self.received_bytes, bytes);
    }

    pub(super) fn count_sent(&self, bytes: usize) {
        add(&self.sent_bytes, bytes);
    }

    pub(super) fn note_pong(&self, at: Instant, round_trip: Duration) {
        let round_trip = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        self.round_trip_us.store(round_trip, Ordering::Relaxed);
        self.pong_at_ms.store(self.since_made(at) + 1, Ordering::Release);
        self.pong.notify_waiters();
    }

    pub(super) fn want_ping(&self) {
        self.ping_wanted.store(true, Ordering::Release);
    }

    /// Whether a ping is wanted; from then on, it is not.
    pub(super) fn take_wish(&self) -> bool {
        // a plain read is all that a frame costs
        self.ping_wanted.load(Ordering::Relaxed) && self.ping_wanted.swap(false, Ordering::AcqRel)
    }

    /// Woken by the next pong.
    pub(crate) fn pong(&self) -> &Notify {
        &self.pong
    }

    fn since_made(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.made).as_millis()).unwrap_or(u64::MAX - 1)
    }
}

fn add(counter: &AtomicU64, bytes: usize) {
    counter.store(counter.load(Ordering::Relaxed) + bytes as u64, Ordering::Relaxed);
}

/// The pump's clock.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_pong_grows_and_a_wish_is_granted_once() {
        let traffic = Traffic::default();
        assert!(traffic.take_wish(), "a new websocket proves itself");
        assert!(!traffic.take_wish());
        assert_eq!(traffic.verified(), None);
        traffic.note_pong(now(), Duration::from_micros(1500));
        assert_eq!(traffic.verified(), Some(RoundTrip { age_ms: 0, round_trip_us: 1500 }));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(traffic.verified(), Some(RoundTrip { age_ms: 30_000, round_trip_us: 1500 }));
        traffic.want_ping();
        assert!(traffic.take_wish() && !traffic.take_wish());
    }

    #[test]
    fn bytes_are_counted_by_direction() {
        let traffic = Traffic::default();
        traffic.count_received(3);
        traffic.count_received(4);
        traffic.count_sent(5);
        assert_eq!((traffic.received_bytes(), traffic.sent_bytes()), (7, 5));
    }
}
