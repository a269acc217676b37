//! What is in flight: sealed once, kept until acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::frame::Ack;
use rendez_proto::ids::Seq;
use rendez_proto::limits::{
    FAST_RESEND_RECORDS, WINDOW_MAX_RECORDS, WINDOW_MIN_BYTES, WINDOW_MIN_RECORDS,
};

use super::{Budget, Congestion, Rto};

/// An authenticated acknowledgement of something that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("acknowledged what was never sent")]
pub struct AckOfUnsent;

/// The sending side of one direction.
#[derive(Debug)]
pub struct SendWindow {
    /// The number of `slots[0]`, which is never acknowledged itself. Wider
    /// than a sequence number, so that it can lie past the last one.
    base: u64,
    slots: VecDeque<InFlight>,
    bytes: usize,
    budget: Budget,
    /// Bytes that were taken from the budget: what is in flight beyond
    /// [`WINDOW_MIN_BYTES`].
    paid: usize,
    /// The highest number that the peer accepts.
    credit: u32,
    congestion: Congestion,
    /// How many slots wait for their acknowledgement.
    waiting: u32,
    /// How many slots wait to be sent again.
    due: usize,
    /// Since when the peer made no progress, while slots wait (RFC 6298,
    /// section 5).
    timer: Option<Instant>,
    rto: Rto,
}

#[derive(Debug)]
struct InFlight {
    /// The frame with the sealed record; empty once acknowledged.
    wire: Bytes,
    sent: Instant,
    state: SlotState,
    /// Sent more than once: its round trip measures nothing.
    resent: bool,
}

/// A record that was sent once has arrived.
struct Arrived {
    round_trip: Duration,
    /// It was to be sent again.
    given_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    /// Sent, and not acknowledged.
    Waiting,
    /// Waits to be handed out again.
    Due,
    Acked,
}

impl SendWindow {
    /// A window whose first record is `first`, with [`WINDOW_MIN_RECORDS`] of
    /// credit.
    pub fn new(first: Seq, budget: Budget) -> Self {
        Self {
            base: first.0.into(),
            slots: VecDeque::new(),
            bytes: 0,
            budget,
            paid: 0,
            credit: first.0.saturating_add(WINDOW_MIN_RECORDS - 1),
            congestion: Congestion::new(),
            waiting: 0,
            due: 0,
            timer: None,
            rto: Rto::new(),
        }
    }

    /// The number of the next record; `None` when the numbers have run out.
    pub fn next(&self) -> Option<Seq> {
        u32::try_from(self.end()).ok().map(Seq)
    }

    /// Whether a frame of `len` bytes may be sent. Ask before sealing: a
    /// number that was sealed must go out.
    pub fn has_room(&self, len: usize) -> bool {
        self.due == 0
            && self.waiting < self.congestion.window()
            && self.slots.len() < WINDOW_MAX_RECORDS as usize
            && self.has_memory(len)
            && self.has_credit()
    }

    /// Whether the peer accepts the next record.
    pub fn has_credit(&self) -> bool {
        self.next().is_some_and(|next| next.0 <= self.credit)
    }

    fn has_memory(&self, len: usize) -> bool {
        let bytes = self.bytes + len;
        extra(bytes).saturating_sub(self.paid) <= self.budget.free()
    }

    /// Keeps the frame that carries record [`next`](Self::next).
    pub fn push(&mut self, wire: Bytes, now: Instant) {
        self.account(self.bytes + wire.len());
        self.slots.push_back(InFlight {
            wire,
            sent: now,
            state: SlotState::Waiting,
            resent: false,
        });
        self.waiting += 1;
        self.timer.get_or_insert(now);
    }

    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes an authenticated acknowledgement. Old ones do no harm.
    ///
    /// # Errors
    /// [`AckOfUnsent`]: the peer broke the protocol.
    pub fn on_ack(&mut self, ack: Ack, credit: u32, now: Instant) -> Result<(), AckOfUnsent> {
        let newest = match ack.bits {
            0 => u64::from(ack.up_to),
            bits => u64::from(ack.up_to) + 2 + u64::from(bits.ilog2()),
        };
        if newest >= self.end() {
            return Err(AckOfUnsent);
        }
        self.credit = self.credit.max(credit);

        let under_way = self.waiting;
        // the last that was waited for, and the last that was given up
        let (mut sample, mut late) = (None, None);
        let mut settle = |window: &mut Self, index| match window.settle(index, now) {
            Some(arrived) if arrived.given_up => late = Some(arrived.round_trip),
            Some(arrived) => sample = Some(arrived.round_trip),
            None => {}
        };
        let cumulative = (u64::from(ack.up_to) + 1).saturating_sub(self.base) as usize;
        for index in 0..cumulative.min(self.slots.len()) {
            settle(self, index);
        }
        for bit in (0..u32::BITS).filter(|bit| ack.bits >> bit & 1 == 1) {
            let seq = u64::from(ack.up_to) + 2 + u64::from(bit);
            if let Some(index) = seq.checked_sub(self.base) {
                settle(self, index as usize);
            }
        }
        if let Some(rtt) = sample {
            self.rto.sample(rtt);
        }
        self.congestion.arrived(under_way - self.waiting, under_way);
        if let Some(rtt) = late
            && self.congestion.was_only_slow()
        {
            self.rto.sample(rtt);
            self.trust_all(now);
        }

        let mut progress = false;
        while self.slots.front().is_some_and(|slot| slot.state == SlotState::Acked) {
            self.slots.pop_front();
            self.base += 1;
            progress = true;
        }
        self.congestion.arrived_through(self.base);
        if ack.bits != 0 {
            self.resend_gaps();
        }
        if progress {
            self.rto.progress();
            self.timer = Some(now);
        }
        if self.waiting == 0 {
            self.timer = None;
        }
        Ok(())
    }

    /// The next frame to send again, exactly as it was sent.
    pub fn poll_retransmit(&mut self, now: Instant) -> Option<Bytes> {
        if !self.wants_retransmit() {
            return None;
        }
        let index = self.slots.iter().position(|slot| slot.state == SlotState::Due)?;
        let slot = self.slots.get_mut(index)?;
        slot.state = SlotState::Waiting;
        slot.resent = true;
        slot.sent = now;
        self.due -= 1;
        self.waiting += 1;
        // The oldest gap has a whole timeout to be filled.
        if index == 0 || self.timer.is_none() {
            self.timer = Some(now);
        }
        Some(slot.wire.clone())
    }

    /// Whether [`poll_retransmit`](Self::poll_retransmit) has something.
    pub fn wants_retransmit(&self) -> bool {
        self.due > 0 && self.waiting < self.congestion.window()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timer.map(|since| since + self.rto.current())
    }

    /// If the peer made no progress for too long: everything is suspect, and
    /// goes out again in bursts that double as acknowledgements return.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.rto.back_off();
            self.congestion.silent(self.end());
            self.suspect_all();
        }
    }

    /// The path was replaced: everything in flight is lost, and nothing is
    /// known of the new path.
    pub fn path_replaced(&mut self) {
        self.rto.path_replaced();
        self.congestion = Congestion::new();
        self.suspect_all();
    }

    /// The present retransmission timeout, for whoever probes this peer.
    pub fn rto(&self) -> &Rto {
        &self.rto
    }

    /// One past the newest number that was sent.
    fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    fn suspect_all(&mut self) {
        for index in 0..self.slots.len() {
            self.mark(index);
        }
        self.timer = None;
    }

    /// What was to be sent again is under way still.
    fn trust_all(&mut self, now: Instant) {
        for slot in &mut self.slots {
            if slot.state == SlotState::Due && !slot.resent {
                slot.state = SlotState::Waiting;
                self.due -= 1;
                self.waiting += 1;
            }
        }
        if self.waiting > 0 {
            self.timer.get_or_insert(now);
        }
    }

    fn mark(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.state == SlotState::Waiting
        {
            slot.state = SlotState::Due;
            self.waiting -= 1;
            self.due += 1;
        }
    }

    /// Notes that a slot arrived, and how, if it was sent once.
    fn settle(&mut self, index: usize, now: Instant) -> Option<Arrived> {
        let slot = self.slots.get_mut(index)?;
        let given_up = match slot.state {
            SlotState::Acked => return None,
            SlotState::Due => {
                self.due -= 1;
                true
            }
            SlotState::Waiting => {
                self.waiting -= 1;
                false
            }
        };
        slot.state = SlotState::Acked;
        let (sent, sent_once) = (slot.sent, !slot.resent);
        let len = std::mem::take(&mut slot.wire).len();
        self.account(self.bytes - len);
        let round_trip = now.saturating_duration_since(sent);
        sent_once.then_some(Arrived { round_trip, given_up })
    }

    /// Marks records that were overtaken by enough later ones. Once each: what
    /// is lost twice waits for the timeout.
    fn resend_gaps(&mut self) {
        let end = self.end();
        let mut later = 0;
        for index in (0..self.slots.len()).rev() {
            let slot = &self.slots[index];
            match slot.state {
                SlotState::Acked => later += 1,
                SlotState::Waiting if later >= FAST_RESEND_RECORDS && !slot.resent => {
                    self.mark(index);
                    self.congestion.lost(self.base + index as u64, end);
                }
                SlotState::Waiting | SlotState::Due => {}
            }
        }
    }

    /// Notes how many bytes are in flight, and pays for them.
    fn account(&mut self, bytes: usize) {
        self.bytes = bytes;
        let due = extra(bytes);
        if due < self.paid {
            self.budget.give(self.paid - due);
            self.paid = due;
        } else if self.budget.take(due - self.paid) {
            self.paid = due;
        }
    }
}

impl Drop for SendWindow {
    fn drop(&mut self) {
        self.account(0);
    }
}

/// What is paid from the budget.
fn extra(bytes: usize) -> usize {
    bytes.saturating_sub(WINDOW_MIN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rendez_proto::limits::{RTO_INITIAL, RTO_MIN};
    use std::collections::BTreeMap;

    /// Beyond the smallest window.
    const MEMORY: usize = 1024 * 1024;

    fn memory() -> Budget {
        Budget::new(MEMORY)
    }

    fn wire(seq: u32) -> Bytes {
        Bytes::from(seq.to_be_bytes().to_vec())
    }

    /// A window with records 1 to `count` in flight, sent at `now`.
    fn filled(count: u32, now: Instant) -> SendWindow {
        let mut window = SendWindow::new(Seq(1), memory());
        for seq in 1..=count {
            assert_eq!(window.next(), Some(Seq(seq)));
            assert!(window.has_room(4));
            window.push(wire(seq), now);
        }
        window
    }

    fn resent(window: &mut SendWindow, now: Instant) -> Vec<u32> {
        std::iter::from_fn(|| window.poll_retransmit(now))
            .map(|wire| u32::from_be_bytes(wire.as_ref().try_into().unwrap()))
            .collect()
    }

    fn ack(up_to: u32, also: &[u32]) -> Ack {
        Ack { up_to, bits: also.iter().fold(0, |bits, seq| bits | 1 << (seq - up_to - 2)) }
    }

    #[test]
    fn room_ends_with_records_bytes_or_credit() {
        let now = crate::test_origin();
        let mut window = filled(WINDOW_MIN_RECORDS, now);
        assert!(!window.has_room(0), "congestion");
        window.on_ack(ack(1, &[]), 0, now).unwrap();
        assert!(!window.has_room(0), "credit");
        window.on_ack(ack(1, &[]), 1000, now).unwrap();
        assert!(window.has_room(0));
        assert!(window.has_room(WINDOW_MIN_BYTES + MEMORY / 2));
        assert!(!window.has_room(WINDOW_MIN_BYTES + MEMORY), "bytes");
    }

    #[test]
    fn what_is_beyond_the_smallest_window_is_paid_for_and_given_back() {
        let now = crate::test_origin();
        let memory = memory();
        let mut window = SendWindow::new(Seq(1), memory.clone());
        window.push(Bytes::from(vec![0; WINDOW_MIN_BYTES]), now);
        assert_eq!(memory.free(), MEMORY);
        window.push(Bytes::from(vec![0; 1000]), now);
        window.push(Bytes::from(vec![0; 500]), now);
        assert_eq!(memory.free(), MEMORY - 1500);
        window.on_ack(ack(0, &[2]), 0, now).unwrap();
        assert_eq!(memory.free(), MEMORY - 500);
        drop(window);
        assert_eq!(memory.free(), MEMORY);
    }

    #[test]
    fn a_sender_that_uses_its_window_gets_a_larger_one() {
        let mut now = crate::test_origin();
        let mut window = SendWindow::new(Seq(1), memory());
        let mut rounds = 0;
        while window.slots.len() < WINDOW_MAX_RECORDS as usize {
            window.on_ack(ack(window.end() as u32 - 1, &[]), u32::MAX, now).unwrap();
            while window.has_room(4) {
                window.push(wire(0), now);
            }
            now += Duration::from_millis(200);
            rounds += 1;
            assert!(rounds < 10, "{}", window.slots.len());
        }
        assert!(!window.has_room(4));
    }

    #[test]
    fn acks_of_what_was_never_sent_are_an_error() {
        let now = crate::test_origin();
        assert_eq!(filled(3, now).on_ack(ack(3, &[]), 0, now), Ok(()));
        assert_eq!(filled(3, now).on_ack(ack(4, &[]), 0, now), Err(AckOfUnsent));
        assert_eq!(filled(3, now).on_ack(ack(0, &[4]), 0, now), Err(AckOfUnsent));
        let all = Ack { up_to: u32::MAX, bits: u32::MAX };
        assert_eq!(filled(3, now).on_ack(all, 0, now), Err(AckOfUnsent));
        assert_eq!(filled(0, now).on_ack(ack(0, &[]), 0, now), Ok(()));
    }

    #[test]
    fn the_timeout_resends_the_oldest_gap_and_doubles() {
        let start = crate::test_origin();
        let mut window = filled(5, start);
        let first = window.poll_timeout().unwrap();
        assert_eq!(first, start + RTO_INITIAL);
        window.handle_timeout(first - Duration::from_millis(1));
        assert!(!window.wants_retransmit());
        window.handle_timeout(first);
        assert_eq!(window.poll_timeout(), None, "nothing to wait for while one is due");
        assert_eq!(resent(&mut window, first), [1]);
        assert_eq!(window.poll_timeout(), Some(first + RTO_INITIAL * 2));
    }

    #[test]
    fn a_lost_burst_comes_back_in_doubling_bursts() {
        let start = crate::test_origin();
        let mut window = filled(20, start);
        let mut now = window.poll_timeout().unwrap();
        window.handle_timeout(now);
        let mut sent = resent(&mut window, now);
        let mut bursts = vec![sent.len()];
        while !window.is_empty() {
            now += Duration::from_millis(10);
            window.on_ack(ack(*sent.last().unwrap(), &[]), 0, now).unwrap();
            let burst = resent(&mut window, now);
            bursts.push(burst.len());
            assert!(bursts.len() < 20, "no burst follows: {bursts:?}");
            sent.extend(burst);
        }
        assert_eq!(sent, (1..=20).collect::<Vec<_>>());
        assert_eq!(bursts, [1, 2, 4, 8, 5, 0]);
    }

    #[test]
    fn three_later_acks_resend_a_gap_once() {
        let now = crate::test_origin();
        let mut window = filled(6, now);
        window.on_ack(ack(0, &[2, 3]), 0, now).unwrap();
        assert!(resent(&mut window, now).is_empty());
        window.on_ack(ack(0, &[2, 3, 4]), 0, now).unwrap();
        assert_eq!(resent(&mut window, now), [1]);
        window.on_ack(ack(0, &[2, 3, 4, 5]), 0, now).unwrap();
        assert!(resent(&mut window, now).is_empty());
    }

    #[test]
    fn a_new_path_resends_everything_unacknowledged() {
        let now = crate::test_origin();
        let mut window = filled(5, now);
        window.on_ack(ack(1, &[4]), 0, now).unwrap();
        window.path_replaced();
        assert_eq!(resent(&mut window, now), [2, 3, 5]);
    }

    #[test]
    fn a_new_path_is_not_flooded() {
        let now = crate::test_origin();
        let mut window = SendWindow::new(Seq(1), memory());
        window.credit = u32::MAX;
        for _ in 0..100 {
            let seq = window.next().unwrap().0;
            window.push(wire(seq), now);
        }
        window.path_replaced();
        assert_eq!(resent(&mut window, now).len(), WINDOW_MIN_RECORDS as usize);
        window.on_ack(ack(WINDOW_MIN_RECORDS, &[]), 0, now).unwrap();
        assert_eq!(resent(&mut window, now).len(), 2 * WINDOW_MIN_RECORDS as usize);
        window.on_ack(ack(3 * WINDOW_MIN_RECORDS, &[]), 0, now).unwrap();
        assert_eq!(resent(&mut window, now), [97, 98, 99, 100]);
    }

    /// A socket that has to warm up delivers later than the timeout expects.
    #[test]
    fn a_timeout_that_struck_too_early_is_taken_back() {
        let start = crate::test_origin();
        let mut window = filled(WINDOW_MIN_RECORDS, start);
        window.rto.sample(Duration::from_millis(200));
        let late = window.poll_timeout().unwrap();
        window.handle_timeout(late);
        assert_eq!(resent(&mut window, late), [1], "as if all were lost");
        // records 1 and 2 come after all, and 2 was not sent again
        let now = start + Duration::from_millis(900);
        window.on_ack(ack(2, &[]), 100, now).unwrap();
        assert_eq!(resent(&mut window, now), [] as [u32; 0], "the rest is under way still");
        assert!(window.has_room(4));
        assert!(window.rto().current() > Duration::from_millis(900), "and it learns from it");
        assert!(window.poll_timeout().unwrap() > now);
        // if nothing comes any more, it strikes again
        window.handle_timeout(window.poll_timeout().unwrap());
        assert_eq!(resent(&mut window, now + Duration::from_secs(9)), [3]);
    }

    /// One that only the repetition answers was right.
    #[test]
    fn a_timeout_after_a_loss_stays() {
        let start = crate::test_origin();
        let mut window = filled(WINDOW_MIN_RECORDS, start);
        let late = window.poll_timeout().unwrap();
        window.handle_timeout(late);
        assert_eq!(resent(&mut window, late), [1]);
        window.on_ack(ack(1, &[]), 100, late).unwrap();
        assert_eq!(resent(&mut window, late), [2, 3], "slowly");
    }

    #[test]
    fn what_was_given_up_measures_no_round_trip() {
        let start = crate::test_origin();
        let mut window = filled(1, start);
        window.path_replaced();
        window.on_ack(ack(1, &[]), 0, start + Duration::from_secs(60)).unwrap();
        assert_eq!(window.rto().current(), RTO_INITIAL);
        assert_eq!(window.rto().shortest(), None);
    }

    #[test]
    fn what_was_sent_twice_measures_no_round_trip() {
        let start = crate::test_origin();
        let mut window = filled(1, start);
        window.path_replaced();
        resent(&mut window, start);
        window.on_ack(ack(1, &[]), 0, start + Duration::from_millis(1)).unwrap();
        assert_eq!(window.rto().current(), RTO_INITIAL);
        window.push(wire(2), start);
        window.on_ack(ack(2, &[]), 0, start + Duration::from_millis(1)).unwrap();
        assert_eq!(window.rto().current(), RTO_MIN);
    }

    #[test]
    fn numbers_end_and_never_wrap() {
        let now = crate::test_origin();
        let mut window = SendWindow::new(Seq(u32::MAX), memory());
        assert_eq!(window.next(), Some(Seq(u32::MAX)));
        window.push(wire(u32::MAX), now);
        assert_eq!(window.next(), None);
        assert!(!window.has_room(0));
        window.on_ack(ack(u32::MAX, &[]), 0, now).unwrap();
        assert!(window.is_empty());
        assert_eq!(window.next(), None);
    }

    /// What the property below does to a window.
    #[derive(Debug, Clone)]
    enum Step {
        Send {
            len: usize,
        },
        /// Acknowledges up to `behind` the newest, and the bits. `honest`: of
        /// those, only what was sent.
        Ack {
            behind: u32,
            bits: u32,
            honest: bool,
            credit: u32,
        },
        NewPath,
        Wait {
            ms: u64,
        },
    }

    fn any_step() -> impl Strategy<Value = Step> {
        // sparse, dense and no bits
        let bits = prop_oneof![
            Just(0),
            any::<u32>(),
            (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(a, b, c)| a & b & c),
        ];
        let len = prop_oneof![4 => 4usize..200, 1 => 100_000usize..300_000];
        prop_oneof![
            6 => len.prop_map(|len| Step::Send { len }),
            3 => (prop_oneof![0u32..70, 0u32..5], bits, prop::bool::weighted(0.9), 0u32..40).prop_map(
                |(behind, bits, honest, credit)| Step::Ack { behind, bits, honest, credit }),
            1 => Just(Step::NewPath),
            1 => (0u64..30_000).prop_map(|ms| Step::Wait { ms }),
        ]
    }

    proptest! {
        /// Against a plain map of the numbers in flight to their bytes.
        #[test]
        fn like_a_set_of_numbers(
            first in prop_oneof![Just(1), Just(u32::MAX - 30)],
            steps in proptest::collection::vec(any_step(), 1..300),
        ) {
            let pattern = Bytes::from(vec![0; 400_000]);
            let mut now = crate::test_origin();
            let mut window = SendWindow::new(Seq(first), memory());
            // numbers are wider here, and there is no clever base
            let mut flying = BTreeMap::<u64, Bytes>::new();
            let mut next = u64::from(first);
            let mut credit = u64::from(first.saturating_add(WINDOW_MIN_RECORDS - 1));
            for step in steps {
                let mut must_resend = Vec::new();
                match step {
                    Step::Send { len } => {
                        let base = flying.keys().next().copied().unwrap_or(next);
                        let bytes: usize = flying.values().map(Bytes::len).sum();
                        let room = next - base < u64::from(WINDOW_MAX_RECORDS)
                            && next <= credit.min(u32::MAX.into())
                            && bytes + len <= WINDOW_MIN_BYTES + MEMORY
                            && window.due == 0
                            && window.waiting < window.congestion.window();
                        prop_assert_eq!(window.has_room(len), room);
                        prop_assert_eq!(window.next().map(|seq| u64::from(seq.0)),
                            Some(next).filter(|next| *next <= u32::MAX.into()));
                        if room {
                            // the place within the pattern tells records apart
                            let at = (next % 64) as usize * 1000;
                            let wire = pattern.slice(at..at + len);
                            window.push(wire.clone(), now);
                            flying.insert(next, wire);
                            next += 1;
                        }
                    }
                    Step::Ack { behind, mut bits, honest, credit: more } => {
                        let up_to = (next - 1).saturating_sub(behind.into()) as u32;
                        let seq = |bit: u32| u64::from(up_to) + 2 + u64::from(bit);
                        if honest {
                            bits = (0..32).filter(|bit| seq(*bit) < next)
                                .fold(0, |kept, bit| kept | bits & 1 << bit);
                        }
                        let named = |number: u64| number <= up_to.into()
                            || (0..32).any(|bit| bits >> bit & 1 == 1 && seq(bit) == number);
                        let unsent = (next..next + 40).any(named);
                        let told = (credit + u64::from(more)).min(u32::MAX.into()) as u32;
                        let result = window.on_ack(Ack { up_to, bits }, told, now);
                        prop_assert_eq!(result.is_err(), unsent);
                        if !unsent {
                            credit = told.into();
                            flying.retain(|number, _| !named(*number));
                        }
                    }
                    Step::NewPath => {
                        window.path_replaced();
                        must_resend = flying.keys().copied()
                            .take(WINDOW_MIN_RECORDS as usize).collect();
                    }
                    Step::Wait { ms } => {
                        now += Duration::from_millis(ms);
                        if window.poll_timeout().is_some_and(|at| at <= now) {
                            must_resend.extend(flying.keys().next());
                        }
                        window.handle_timeout(now);
                    }
                }
                let again: Vec<Bytes> =
                    std::iter::from_fn(|| window.poll_retransmit(now)).collect();
                prop_assert!(!window.wants_retransmit());
                prop_assert_eq!(window.waiting as usize + window.due, flying.len());
                let mut numbers = Vec::new();
                for wire in &again {
                    let same = |kept: &&Bytes|
                        kept.as_ptr() == wire.as_ptr() && kept.len() == wire.len();
                    let number = flying.iter().find(|(_, kept)| same(kept));
                    prop_assert!(number.is_some(), "resent what had arrived, or other bytes");
                    numbers.extend(number.map(|(number, _)| *number));
                }
                prop_assert!(numbers.is_sorted(), "the oldest first, each once");
                prop_assert!(must_resend.iter().all(|number| numbers.contains(number)));
                prop_assert_eq!(window.is_empty(), flying.is_empty());
                prop_assert_eq!(window.bytes, flying.values().map(Bytes::len).sum::<usize>());
                prop_assert_eq!(window.budget.free() + window.paid, MEMORY);
                prop_assert_eq!(window.paid, window.bytes.saturating_sub(WINDOW_MIN_BYTES));
                prop_assert_eq!(window.poll_timeout().is_some(), !flying.is_empty());
            }
        }
    }
}
