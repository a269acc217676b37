//! Keep-alive: whether the peer is still there. Pure, except for the two clocks
//! that the caller passes in.
//!
//! * A ping is sent every [`limits::PING_INTERVAL`], when the core requests one,
//!   and after the machine slept.
//! * A request sends no ping while the newest one may still be answered
//!   ([`PING_ANSWER_TIMEOUT`]): its answer serves both. So repeated requests do not
//!   delay the detection of a dead peer.
//! * The pong of the newest ping, or of the oldest unanswered one, proves a round
//!   trip. Otherwise a path slower than the ping interval would never prove one.
//! * A peer that made no progress for [`limits::PONG_TIMEOUT`] is gone. Progress is
//!   a finished message, or the pong of a ping that is unanswered. Pings and
//!   unsolicited pongs cost a peer nothing, so they are not. Time during which we
//!   chose not to read does not count.
//! * A peer that reads nothing is gone, whatever it sends: after
//!   [`limits::PONG_TIMEOUT`] with unsent bytes of which the connection takes none.
//! * A core that can resume gives up earlier: after one ping that is unanswered for
//!   [`PING_ANSWER_TIMEOUT`], unless so much was written since the peer was last heard
//!   that the ping may still wait behind it.

use std::time::{Duration, Instant, SystemTime};

use rendez_proto::limits;

/// How long our own endpoints wait for the answer to a ping: they can resume,
/// so a path that is merely slow costs them a pause.
pub const PING_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes behind which a ping may wait so long that its missing answer proves
/// nothing: 400 kbit/s for [`PING_ANSWER_TIMEOUT`].
const PING_BEHIND_BYTES: usize = 256 * 1024;
/// How often our own endpoints check whether the machine slept.
const SLEEP_CHECK: Duration = Duration::from_secs(5);
/// The advance of the wall clock over the monotonic clock that counts as sleep.
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
    /// Bytes that the connection has taken, and since when it takes no more although
    /// some are unsent.
    unsent: Option<(u64, Instant)>,
    /// Whether one unanswered ping ends the connection.
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
            unsent: None,
            short_timeout: false,
            clocks: (now, wall),
        }
    }

    /// The peer made progress, or reading begins again.
    pub(super) fn heard(&mut self, now: Instant) {
        self.last_heard = now;
        self.written = 0;
    }

    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
    }

    /// Some bytes are unsent, and the connection has taken `taken` so far; `None` if all
    /// are sent.
    pub(super) fn note_unsent(&mut self, now: Instant, taken: Option<u64>) {
        let stuck = |(before, _): &(u64, Instant)| Some(*before) == taken;
        self.unsent = self.unsent.filter(stuck).or_else(|| Some((taken?, now)));
    }

    /// When the peer counts as gone if the connection takes no bytes.
    pub(super) fn unsent_deadline(&self) -> Option<Instant> {
        self.unsent.map(|(_, since)| since + limits::PONG_TIMEOUT)
    }

    /// Detects sleep: the wall clock advanced further than the monotonic one. The path
    /// may then be gone without a close.
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

    /// The round trip, if this answers a ping; `None` for an unsolicited pong.
    pub(super) fn pong(&mut self, now: Instant, number: Option<u64>) -> Option<Duration> {
        let (oldest, newest) = self.unanswered?;
        let answered = [newest, oldest].into_iter().find(|ping| number == Some(ping.number))?;
        let is_newest = answered.number == newest.number;
        self.unanswered = (!is_newest).then_some((newest, newest));
        Some(now.saturating_duration_since(answered.sent))
    }

    /// When the peer counts as gone if nothing arrives.
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
    fn one_late_pong_ends_a_resumable_connection() {
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
    fn pong_may_wait_behind_written_bytes() {
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
    fn sleep_causes_an_immediate_ping() {
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
    fn only_outstanding_pings_match_pongs() {
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
    fn slow_paths_prove_their_round_trips() {
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
    fn requested_pings_do_not_delay_the_timeout() {
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
    fn only_taken_bytes_delay_the_end_of_a_stuck_peer() {
        let (mut liveness, now, _) = start();
        liveness.note_unsent(now, Some(7));
        liveness.note_unsent(now + SECOND, Some(7));
        liveness.heard(now + SECOND);
        assert_eq!(liveness.unsent_deadline(), Some(now + limits::PONG_TIMEOUT));
        liveness.note_unsent(now + 2 * SECOND, Some(8));
        assert_eq!(liveness.unsent_deadline(), Some(now + 2 * SECOND + limits::PONG_TIMEOUT));
        liveness.note_unsent(now + 3 * SECOND, None);
        assert_eq!(liveness.unsent_deadline(), None);
        liveness.note_unsent(now + 4 * SECOND, Some(8));
        assert_eq!(liveness.unsent_deadline(), Some(now + 4 * SECOND + limits::PONG_TIMEOUT));
    }

    #[test]
    fn full_socket_delays_the_next_check() {
        let (mut liveness, now, _) = start();
        assert_eq!(liveness.next_look(false), Some(now + SLEEP_CHECK));
        liveness.short_timeout = false;
        assert_eq!(liveness.next_look(false), None);
        assert_eq!(liveness.next_look(true), Some(now + limits::PING_INTERVAL));
    }
}
