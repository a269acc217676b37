//! Congestion control: slow start and halving (RFC 5681), counted in records.
//!
//! TCP below adapts to the network. This window adapts to the relay, which
//! takes a smallest window of every stream, and sheds the rest when its memory
//! runs short.

use rendez_proto::limits::WINDOW_MAX_RECORDS;

use super::WINDOW_MIN_RECORDS;

/// The congestion window of one direction.
#[derive(Debug, Clone)]
pub struct Congestion {
    window: u32,
    /// Below it the window doubles per round trip, above it grows by one.
    threshold: u32,
    /// Records acknowledged since the window last grew by one.
    acknowledged: u32,
    /// Losses of numbers below it belong to a loss that was already answered.
    recovery_end: u64,
    /// The window and the threshold before a timeout that may prove spurious.
    before_timeout: Option<(u32, u32)>,
}

impl Congestion {
    /// The window of an unknown path.
    pub fn new() -> Self {
        Self {
            window: WINDOW_MIN_RECORDS,
            threshold: WINDOW_MAX_RECORDS,
            acknowledged: 0,
            recovery_end: 0,
            before_timeout: None,
        }
    }

    /// Records that may be in flight, 1 to [`WINDOW_MAX_RECORDS`].
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Notes that `records` were acknowledged while `under_way`, including
    /// these, were in flight.
    pub fn on_ack(&mut self, records: u32, under_way: u32) {
        // An application-limited sender does not validate its window (RFC
        // 7661).
        if under_way <= self.window / 2 {
            return;
        }
        if self.window < self.threshold {
            self.window = (self.window + records).min(self.threshold);
            return;
        }
        self.acknowledged += records;
        if self.acknowledged >= self.window {
            self.acknowledged = 0;
            self.window = (self.window + 1).min(WINDOW_MAX_RECORDS);
        }
    }

    /// Notes that record `lost` did not arrive although later ones did; `next`
    /// is the next number to be sent. All losses of one round trip cause one
    /// reduction.
    pub fn on_loss(&mut self, lost: u64, next: u64) {
        if lost >= self.recovery_end {
            self.recovery_end = next;
            self.threshold = (self.window / 2).max(WINDOW_MIN_RECORDS);
            self.window = self.window.min(self.threshold);
            self.acknowledged = 0;
            self.before_timeout = None;
        }
    }

    /// Notes a retransmission timeout: everything may be lost, so the window
    /// restarts at one.
    pub fn on_timeout(&mut self, next: u64) {
        self.before_timeout.get_or_insert((self.window, self.threshold));
        self.recovery_end = next;
        self.threshold = (self.window / 2).max(WINDOW_MIN_RECORDS);
        self.window = 1;
        self.acknowledged = 0;
    }
}

impl Congestion {
    /// Restores the window after a spurious timeout: a record sent before it,
    /// and not retransmitted, has arrived, so the path was slow and nothing was
    /// lost (RFC 5682). Returns `false` if there was no timeout.
    pub fn undo_timeout(&mut self) -> bool {
        let Some((window, threshold)) = self.before_timeout.take() else { return false };
        self.window = self.window.max(window);
        self.threshold = threshold;
        true
    }

    /// Notes that all numbers below `base` were acknowledged.
    pub fn acked_through(&mut self, base: u64) {
        if base >= self.recovery_end {
            self.before_timeout = None;
        }
    }
}

impl Default for Congestion {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates one round trip of a sender that always fills its window.
    fn round(congestion: &mut Congestion) {
        let under_way = congestion.window();
        for left in (1..=under_way).rev() {
            // the sender fills its window again with each acknowledgement
            congestion.on_ack(1, left.max(under_way));
        }
    }

    #[test]
    fn slow_start_doubles_to_the_maximum() {
        let mut congestion = Congestion::new();
        let mut windows = vec![congestion.window()];
        while congestion.window() < WINDOW_MAX_RECORDS {
            round(&mut congestion);
            windows.push(congestion.window());
        }
        assert_eq!(windows, [32, 64, 128, 256, 448]);
        round(&mut congestion);
        assert_eq!(congestion.window(), WINDOW_MAX_RECORDS);
    }

    #[test]
    fn window_halves_once_per_round_trip() {
        let mut congestion = Congestion::new();
        (0..2).for_each(|_| round(&mut congestion));
        assert_eq!(congestion.window(), 128);
        congestion.on_loss(1000, 1100);
        congestion.on_loss(1001, 1101);
        congestion.on_loss(1099, 1102);
        assert_eq!(congestion.window(), 64);
        round(&mut congestion);
        assert_eq!(congestion.window(), 65);
        congestion.on_loss(1100, 1200);
        assert_eq!(congestion.window(), WINDOW_MIN_RECORDS);
        congestion.on_loss(1200, 1300);
        assert_eq!(congestion.window(), WINDOW_MIN_RECORDS, "a relay always takes that much");
    }

    #[test]
    fn window_restarts_at_one_after_timeout() {
        let mut congestion = Congestion::new();
        (0..3).for_each(|_| round(&mut congestion));
        congestion.on_timeout(50);
        let mut windows = vec![congestion.window()];
        for _ in 0..8 {
            round(&mut congestion);
            windows.push(congestion.window());
        }
        assert_eq!(windows, [1, 2, 4, 8, 16, 32, 64, 128, 129]);
    }

    #[test]
    fn spurious_timeout_is_undone_once() {
        let mut congestion = Congestion::new();
        (0..2).for_each(|_| round(&mut congestion));
        congestion.on_timeout(200);
        congestion.on_timeout(200);
        assert!(congestion.undo_timeout());
        assert_eq!(congestion.window(), 128);
        round(&mut congestion);
        assert_eq!(congestion.window(), 256, "in slow start, as before");
        assert!(!congestion.undo_timeout());
        // a timeout is not undone when it is over, or when a loss followed
        congestion.on_timeout(400);
        congestion.acked_through(400);
        assert!(!congestion.undo_timeout());
        congestion.on_timeout(500);
        congestion.on_loss(510, 520);
        assert!(!congestion.undo_timeout());
    }

    #[test]
    fn idle_sender_does_not_grow_the_window() {
        let mut congestion = Congestion::new();
        for _ in 0..1000 {
            congestion.on_ack(1, WINDOW_MIN_RECORDS / 2);
        }
        assert_eq!(congestion.window(), WINDOW_MIN_RECORDS);
    }
}
