//! The bytes that one websocket has carried, and its last pong.
//!
//! Only its pump writes, so the counters need no read-modify-write on the frame
//! path.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rendez_proto::registry::environments::RoundTrip;
use tokio::sync::Notify;

/// The counters of one websocket.
#[derive(Debug)]
pub(crate) struct Traffic {
    created: Instant,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// When the last pong arrived, in milliseconds after `created`, plus one; 0
    /// before the first.
    pong_at_ms: AtomicU64,
    round_trip_us: AtomicU64,
    /// A ping was requested. Set from the start: a new websocket is pinged at
    /// once.
    ping_requested: AtomicBool,
    pong: Notify,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            created: now(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            pong_at_ms: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
            ping_requested: AtomicBool::new(true),
            pong: Notify::new(),
        }
    }
}

impl Traffic {
    /// Bytes of messages received from the peer.
    pub(crate) fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of messages written to the peer's socket.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// The last measured round trip.
    pub(crate) fn verified(&self) -> Option<RoundTrip> {
        let at = self.pong_at_ms.load(Ordering::Acquire).checked_sub(1)?;
        let since_created = self.since_created(now());
        let round_trip_us = self.round_trip_us.load(Ordering::Relaxed);
        Some(RoundTrip { age_ms: since_created.saturating_sub(at), round_trip_us })
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        add(&self.received_bytes, bytes);
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        add(&self.sent_bytes, bytes);
    }

    pub(crate) fn note_pong(&self, at: Instant, round_trip: Duration) {
        let round_trip = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
        self.round_trip_us.store(round_trip, Ordering::Relaxed);
        self.pong_at_ms.store(self.since_created(at) + 1, Ordering::Release);
        self.pong.notify_waiters();
    }

    pub(crate) fn request_ping(&self) {
        self.ping_requested.store(true, Ordering::Release);
    }

    /// Whether a ping is requested; clears the request.
    pub(crate) fn take_ping_request(&self) -> bool {
        // A plain read is the only cost per frame.
        self.ping_requested.load(Ordering::Relaxed)
            && self.ping_requested.swap(false, Ordering::AcqRel)
    }

    /// Notified by the next pong.
    pub(crate) fn pong(&self) -> &Notify {
        &self.pong
    }

    fn since_created(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.created).as_millis())
            .unwrap_or(u64::MAX - 1)
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
    async fn ping_request_is_taken_once_and_pong_ages() {
        let traffic = Traffic::default();
        assert!(traffic.take_ping_request(), "a new websocket is pinged");
        assert!(!traffic.take_ping_request());
        assert_eq!(traffic.verified(), None);
        traffic.note_pong(now(), Duration::from_micros(1500));
        assert_eq!(traffic.verified(), Some(RoundTrip { age_ms: 0, round_trip_us: 1500 }));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert_eq!(traffic.verified(), Some(RoundTrip { age_ms: 30_000, round_trip_us: 1500 }));
        traffic.request_ping();
        assert!(traffic.take_ping_request() && !traffic.take_ping_request());
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
