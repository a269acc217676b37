//! Keep-alive: whether the peer is still there. Pure, except for the two clocks
//! that the caller passes in.
//!
//! * A ping goes out every [`limits::PING_INTERVAL`], and when the core wishes,
//!   and after the machine slept.
//! * A wish sends none while the newest ping may still be answered
//!   ([`PING_ANSWER_TIMEOUT`]): that answer serves both. So no number of wishes
//!   puts off what a ping is to find out.
//! * A round trip is proved by the pong of the newest ping or of the oldest one
//!   that is unanswered, or a path slower than the pings would prove none.
//! * A peer that was silent for [`limits::PONG_TIMEOUT`] is gone. Time during
//!   which we chose not to read does not count.
//! * A core may be less patient: then a ping that nothing answers for
//!   [`PING_ANSWER_TIMEOUT`] is enough, unless so much was written since the
//!   peer was heard that the ping may still wait behind it.

use std::time::{Duration, Instant, SystemTime};

use rendez_proto::limits;

/// How long our own endpoints wait for the answer to a ping: they can resume,
/// so a path that is merely slow costs them a pause.
pub const PING_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes behind which a ping may wait so long that its missing answer proves
/// nothing: 400 kbit/s for [`PING_ANSWER_TIMEOUT`].
const PING_BEHIND_BYTES: usize = 256 * 1024;
/// How often our own endpoints look whether the machine slept.
const SLEEP_CHECK: Duration = Duration::from_secs(5);
/// How far the wall clock must have gone beyond ours to call that sleep.
const SLEEP_MIN: Duration = Duration::from_secs(3);

/// The state of the keep-alive of one websocket.
pub(super) struct Liveness {
    last_heard: Instant,
    next_ping: Instant,
    /// Pings sent so far: the number of the newest.
    pings: u64,
    /// The oldest ping whose pong is still to come, and the newest one.
    unanswered: Option<(Ping, Ping)>,
    /// Bytes written since the peer was heard.
    written: usize,
    /// Whether a ping that is not answered soon is enough.
    pub(super) short_timeout: bool,
    /// Both clocks when they were last compared.
    clocks: (Instant, SystemTime),
}

#[derive(Debug, Clone, Copy)]
struct Ping {
    number: u64,
    sent: Instant,
}

impl Liveness {
    pub(super) fn new(now: Instant, wall: SystemTime) -> Self {
        Self {
            last_heard: now,
            next_ping: now + limits::PING_INTERVAL,
            pings: 0,
            unanswered: None,
            written: 0,
            short_timeout: false,
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
        if self.short_timeout && passed > ran + SLEEP_MIN {
            self.next_ping = now;
        }
    }

    /// Whether a ping is due, or `requested` for and none is on its way.
    pub(super) fn wants_ping(&self, now: Instant, requested: bool) -> bool {
        let under_way =
            self.unanswered.is_some_and(|(_, newest)| now < newest.sent + PING_ANSWER_TIMEOUT);
        self.next_ping <= now || (requested && !under_way)
    }

    /// The number of the ping that goes out now.
    pub(super) fn ping(&mut self, now: Instant) -> u64 {
        self.pings += 1;
        let ping = Ping { number: self.pings, sent: now };
        let oldest = self.unanswered.map_or(ping, |(oldest, _)| oldest);
        self.unanswered = Some((oldest, ping));
        self.next_ping = now + limits::PING_INTERVAL;
        self.pings
    }

    /// The round trip, if this answers a ping: a peer may send unsolicited pongs.
    pub(super) fn pong(&mut self, now: Instant, number: Option<u64>) -> Option<Duration> {
        let (oldest, newest) = self.unanswered?;
        let answered = [newest, oldest].into_iter().find(|ping| number == Some(ping.number))?;
        let is_newest = answered.number == newest.number;
        self.unanswered = (!is_newest).then_some((newest, newest));
        Some(now.saturating_duration_since(answered.sent))
    }

    /// When the peer counts as gone, if it is not heard.
    pub(super) fn deadline(&self) -> Instant {
        let patient = self.last_heard + limits::PONG_TIMEOUT;
        let asked = self.unanswered.and_then(|(oldest, newest)| {
            [oldest.sent, newest.sent].into_iter().find(|sent| *sent >= self.last_heard)
        });
        match asked {
            Some(asked) if self.short_timeout && self.written <= PING_BEHIND_BYTES => {
                patient.min(asked + PING_ANSWER_TIMEOUT)
            }
            _ => patient,
        }
    }

    /// The latest moment of the next check; `can_ping` is whether the socket would
    /// take a ping that is due.
    pub(super) fn next_look(&self, can_ping: bool) -> Option<Instant> {
        let ping = can_ping.then_some(self.next_ping);
        // Our clock stood still while the machine slept, and so did timers.
        let awake = self.short_timeout.then(|| self.clocks.0 + SLEEP_CHECK);
        [ping, awake].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> (Liveness, Instant, SystemTime) {
        let (now, wall) = (tokio::time::Instant::now().into_std(), SystemTime::UNIX_EPOCH);
        (Liveness { short_timeout: true, ..Liveness::new(now, wall) }, now, wall)
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_impatient_core_waits_for_one_answer_only() {
        let (mut liveness, now, _) = start();
        assert_eq!(liveness.deadline(), now + limits::PONG_TIMEOUT);
        liveness.ping(now + SECOND);
        assert_eq!(liveness.deadline(), now + SECOND + PING_ANSWER_TIMEOUT);
        liveness.heard(now + 2 * SECOND);
        assert_eq!(liveness.deadline(), now + 2 * SECOND + limits::PONG_TIMEOUT);
        liveness.short_timeout = false;
        liveness.ping(now + 3 * SECOND);
        assert_eq!(liveness.deadline(), now + 2 * SECOND + limits::PONG_TIMEOUT);
    }

    #[test]
    fn an_answer_may_wait_behind_what_was_written() {
        let (mut liveness, now, _) = start();
        liveness.wrote(PING_BEHIND_BYTES + 1);
        liveness.ping(now);
        assert_eq!(liveness.deadline(), now + limits::PONG_TIMEOUT);
        liveness.heard(now);
        liveness.wrote(100);
        liveness.ping(now);
        assert_eq!(liveness.deadline(), now + PING_ANSWER_TIMEOUT);
    }

    #[test]
    fn after_sleep_it_asks_at_once() {
        let (mut liveness, now, wall) = start();
        let later = now + SLEEP_CHECK;
        liveness.compare_clocks(later, wall + SLEEP_CHECK + SECOND);
        assert!(!liveness.wants_ping(later, false), "clocks differ a little");
        liveness.compare_clocks(later + SECOND, wall + Duration::from_secs(3600));
        assert!(liveness.wants_ping(later + SECOND, false));
        liveness.ping(later + SECOND);
        // set back
        liveness.compare_clocks(later + 2 * SECOND, wall);
        assert!(!liveness.wants_ping(later + 2 * SECOND, false));
    }

    #[test]
    fn only_pings_that_are_unanswered_have_pongs() {
        let (mut liveness, now, _) = start();
        assert_eq!(liveness.pong(now, Some(0)), None);
        assert_eq!([0; 3].map(|_| liveness.ping(now)), [1, 2, 3]);
        for foreign in [None, Some(0), Some(2), Some(4)] {
            assert_eq!(liveness.pong(now + SECOND, foreign), None);
        }
        assert_eq!(liveness.pong(now + SECOND, Some(3)), Some(SECOND));
        for answered in [1, 3] {
            assert_eq!(liveness.pong(now + SECOND, Some(answered)), None);
        }
    }

    #[test]
    fn a_path_slower_than_the_pings_proves_its_round_trips() {
        let (mut liveness, now, _) = start();
        let round_trip = 3 * SECOND;
        // one a second, each answered three seconds later
        let proved: Vec<_> = (0u32..10)
            .filter_map(|n| {
                let pong = n.checked_sub(3).map(|n| u64::from(n) + 1);
                liveness.ping(now + n * SECOND);
                liveness.pong(now + n * SECOND, pong)
            })
            .collect();
        assert!(proved.len() > 1 && proved.iter().all(|proved| *proved == round_trip));
    }

    #[test]
    fn wishes_put_nothing_off() {
        let (mut liveness, now, _) = start();
        assert!(liveness.wants_ping(now, true) && !liveness.wants_ping(now, false));
        liveness.ping(now);
        let late = now + PING_ANSWER_TIMEOUT;
        assert!(!liveness.wants_ping(late - SECOND, true), "its answer serves both");
        assert!(liveness.wants_ping(late, true));
        liveness.ping(late);
        assert_eq!(liveness.deadline(), late, "the first one is not answered");
        // heard of, but not the answer
        liveness.heard(now + SECOND);
        assert_eq!(liveness.deadline(), late + PING_ANSWER_TIMEOUT);
        liveness.pong(late, Some(2));
        assert!(liveness.wants_ping(late, true));
    }

    #[test]
    fn a_socket_that_takes_no_ping_needs_no_look() {
        let (mut liveness, now, _) = start();
        assert_eq!(liveness.next_look(false), Some(now + SLEEP_CHECK));
        liveness.short_timeout = false;
        assert_eq!(liveness.next_look(false), None);
        assert_eq!(liveness.next_look(true), Some(now + limits::PING_INTERVAL));
    }
}
