//! Whether the peer is still there. Pure but for the two clocks that it is told.
//!
//! * A ping goes out every [`limits::PING_INTERVAL`], and when the core misses
//!   answers, and after the machine slept.
//! * A peer that was silent for [`limits::PONG_TIMEOUT`] is gone. Time during
//!   which we chose not to read does not count.
//! * A core may be less patient: then a ping that nothing answers for
//!   [`limits::ANSWER_TIMEOUT`] is enough, unless so much was written since the
//!   peer was heard that the ping may still wait behind it.

use std::time::{Duration, Instant, SystemTime};

use rendez_proto::limits;

/// See the module.
pub(super) struct Liveness {
    last_heard: Instant,
    next_ping: Instant,
    /// Pings sent so far: the number of the newest.
    pings: u64,
    /// When the newest ping was sent, until its pong comes.
    unanswered: Option<Instant>,
    /// Bytes written since the peer was heard.
    written: usize,
    /// Whether a ping that is not answered soon is enough.
    pub(super) impatient: bool,
    /// Both clocks when they were last compared.
    clocks: (Instant, SystemTime),
}

impl Liveness {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        Self {
            last_heard: now,
            next_ping: now + limits::PING_INTERVAL,
            pings: 0,
            unanswered: None,
            written: 0,
            impatient: false,
            clocks: (now, wall),
        }
    }

    /// Something arrived, or reading begins again.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.written = 0;
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
    }

    /// The machine slept if the wall clock went further than ours: then the
    /// path may be gone without a word.
    pub(super) fn compare_clocks(&mut self, now: Instant, wall: SystemTime) {
        let (then, wall_then) = std::mem::replace(&mut self.clocks, (now, wall));
        let ran = now.saturating_duration_since(then);
        let passed = wall.duration_since(wall_then).unwrap_or_default();
        if self.impatient && passed > ran + limits::SLEEP_MIN {
            self.next_ping = now;
        }
    }

    /// Whether a ping is due.
    pub(super) fn wants_ping(&self, now: Instant) -> bool {
        self.next_ping <= now
    }

    /// The number of the ping that goes out now.
    pub(super) fn ping(&mut self, now: Instant) -> u64 {
        self.pings += 1;
        self.unanswered = Some(now);
        self.next_ping = now + limits::PING_INTERVAL;
        self.pings
    }

    /// The round trip, if this is the answer to the newest ping: a peer may
    /// send pongs that nobody asked for.
    pub(super) fn pong(&mut self, now: Instant, number: Option<u64>) -> Option<Duration> {
        let sent = (number == Some(self.pings)).then(|| self.unanswered.take())??;
        Some(now.saturating_duration_since(sent))
    }

    /// When the peer counts as gone, if it is not heard.
    pub(super) fn deadline(&self) -> Instant {
        let patient = self.last_heard + limits::PONG_TIMEOUT;
        match self.unanswered {
            Some(sent)
                if self.impatient
                    && sent >= self.last_heard
                    && self.written <= limits::ANSWER_BEHIND_BYTES =>
            {
                patient.min(sent + limits::ANSWER_TIMEOUT)
            }
            _ => patient,
        }
    }

    /// When to look again, at the latest.
    pub(super) fn next_look(&self) -> Instant {
        if self.impatient {
            // Our clock stood still while the machine slept, and so did timers.
            self.next_ping.min(self.clocks.0 + limits::SLEEP_CHECK)
        } else {
            self.next_ping
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> (Liveness, Instant, SystemTime) {
        let (now, wall) = (tokio::time::Instant::now().into_std(), SystemTime::UNIX_EPOCH);
        (Liveness { impatient: true, ..Liveness::new(now, wall) }, now, wall)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_impatient_core_waits_for_one_answer_only() {
        let (mut liveness, now, _) = start();
        assert_eq!(liveness.deadline(), now + limits::PONG_TIMEOUT);
        liveness.ping(now + SECOND);
        assert_eq!(liveness.deadline(), now + SECOND + limits::ANSWER_TIMEOUT);
        liveness.heard(now + 2 * SECOND);
        assert_eq!(liveness.deadline(), now + 2 * SECOND + limits::PONG_TIMEOUT);
        liveness.impatient = false;
        liveness.ping(now + 3 * SECOND);
        assert_eq!(liveness.deadline(), now + 2 * SECOND + limits::PONG_TIMEOUT);
    }

    #[test]
    fn an_answer_may_wait_behind_what_was_written() {
        let (mut liveness, now, _) = start();
        liveness.wrote(limits::ANSWER_BEHIND_BYTES + 1);
        liveness.ping(now);
        assert_eq!(liveness.deadline(), now + limits::PONG_TIMEOUT);
        liveness.heard(now);
        liveness.wrote(100);
        liveness.ping(now);
        assert_eq!(liveness.deadline(), now + limits::ANSWER_TIMEOUT);
    }

    #[test]
    fn after_sleep_it_asks_at_once() {
        let (mut liveness, now, wall) = start();
        let later = now + limits::SLEEP_CHECK;
        liveness.compare_clocks(later, wall + limits::SLEEP_CHECK + SECOND);
        assert!(!liveness.wants_ping(later), "clocks differ a little");
        liveness.compare_clocks(later + SECOND, wall + Duration::from_secs(3600));
        assert!(liveness.wants_ping(later + SECOND));
        liveness.ping(later + SECOND);
        // set back
        liveness.compare_clocks(later + 2 * SECOND, wall);
        assert!(!liveness.wants_ping(later + 2 * SECOND));
    }

    #[test]
    fn only_the_newest_pings_own_pong_counts() {
        let (mut liveness, now, _) = start();
        assert_eq!((liveness.ping(now), liveness.ping(now)), (1, 2));
        for foreign in [None, Some(1), Some(3)] {
            assert_eq!(liveness.pong(now + SECOND, foreign), None);
        }
        assert_eq!(liveness.pong(now + SECOND, Some(2)), Some(SECOND));
        assert_eq!(liveness.pong(now + SECOND, Some(2)), None);
    }
}
