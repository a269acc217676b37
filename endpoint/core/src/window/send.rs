//! What is in flight: sealed once, kept until acknowledged.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::Ack;
use rendez_proto::ids::Seq;
use rendez_proto::limits::{FAST_RESEND_RECORDS, WINDOW_MAX_BYTES, WINDOW_MAX_RECORDS};

use super::Rto;

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
    /// The highest number that the peer accepts.
    credit: u32,
    /// How many slots wait to be resent.
    due: usize,
    rto: Rto,
    recovery: Option<Recovery>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Waiting,
    /// Waits to be handed out again.
    Due,
    Acked,
}

/// After a timeout: everything sent before it is suspect, and goes out again
/// in bursts that double with each sign that bursts arrive.
#[derive(Debug)]
struct Recovery {
    began: Instant,
    burst: usize,
}

impl SendWindow {
    /// A window whose first record is `first`, with [`WINDOW_MAX_RECORDS`] of
    /// credit.
    pub fn new(first: Seq) -> Self {
        Self {
            base: first.0.into(),
            slots: VecDeque::new(),
            bytes: 0,
            credit: first.0.saturating_add(WINDOW_MAX_RECORDS - 1),
            due: 0,
            rto: Rto::new(),
            recovery: None,
        }
    }

    /// The number of the next record; `None` when the numbers have run out.
    pub fn next(&self) -> Option<Seq> {
        u32::try_from(self.end()).ok().map(Seq)
    }

    /// Whether a frame of `len` bytes may be sent. Ask before sealing: a
    /// number that was sealed must go out.
    pub fn has_room(&self, len: usize) -> bool {
        self.slots.len() < WINDOW_MAX_RECORDS as usize
            && self.bytes + len <= WINDOW_MAX_BYTES
            && self.has_credit()
    }

    /// Whether the peer accepts the next record.
    pub fn has_credit(&self) -> bool {
        self.next().is_some_and(|next| next.0 <= self.credit)
    }

    /// Keeps the frame that carries record [`next`](Self::next).
    pub fn push(&mut self, wire: Bytes, now: Instant) {
        self.bytes += wire.len();
        self.slots.push_back(InFlight {
            wire,
            sent: now,
            state: SlotState::Waiting,
            resent: false,
        });
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

        let mut sample = None;
        let cumulative = (u64::from(ack.up_to) + 1).saturating_sub(self.base) as usize;
        for index in 0..cumulative.min(self.slots.len()) {
            sample = self.settle(index, now).or(sample);
        }
        for bit in (0..u32::BITS).filter(|bit| ack.bits >> bit & 1 == 1) {
            let seq = u64::from(ack.up_to) + 2 + u64::from(bit);
            if let Some(index) = seq.checked_sub(self.base) {
                sample = self.settle(index as usize, now).or(sample);
            }
        }
        if let Some(rtt) = sample {
            self.rto.sample(rtt);
        }

        let mut progress = false;
        while self.slots.front().is_some_and(|slot| slot.state == SlotState::Acked) {
            self.slots.pop_front();
            self.base += 1;
            progress = true;
        }
        if ack.bits != 0 {
            self.resend_gaps();
        }
        if progress {
            self.rto.progress();
            self.continue_recovery();
        }
        Ok(())
    }

    /// The next frame to send again, exactly as it was sent.
    pub fn poll_retransmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.due == 0 {
            return None;
        }
        let slot = self.slots.iter_mut().find(|slot| slot.state == SlotState::Due)?;
        self.due -= 1;
        slot.state = SlotState::Waiting;
        slot.resent = true;
        slot.sent = now;
        Some(slot.wire.clone())
    }

    /// Whether [`poll_retransmit`](Self::poll_retransmit) has something.
    pub fn wants_retransmit(&self) -> bool {
        self.due > 0
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self.slots.front()?;
        (self.due == 0).then(|| oldest.sent + self.rto.current())
    }

    /// Marks the oldest gap for resending if its time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.rto.back_off();
            self.recovery = Some(Recovery { began: now, burst: 1 });
            self.mark(0);
        }
    }

    /// Marks everything in flight for resending: the path was replaced.
    pub fn resend_all(&mut self) {
        self.rto.progress();
        self.recovery = None;
        for index in 0..self.slots.len() {
            self.mark(index);
        }
    }

    /// The present retransmission timeout, for whoever probes this peer.
    pub fn rto(&self) -> &Rto {
        &self.rto
    }

    /// One past the newest number that was sent.
    fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    fn mark(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.state == SlotState::Waiting
        {
            slot.state = SlotState::Due;
            self.due += 1;
        }
    }

    /// Notes that a slot arrived; its round trip, if it was sent once.
    fn settle(&mut self, index: usize, now: Instant) -> Option<std::time::Duration> {
        let slot = self.slots.get_mut(index)?;
        match slot.state {
            SlotState::Acked => return None,
            SlotState::Due => self.due -= 1,
            SlotState::Waiting => {}
        }
        slot.state = SlotState::Acked;
        self.bytes -= slot.wire.len();
        slot.wire = Bytes::new();
        (!slot.resent).then(|| now.saturating_duration_since(slot.sent))
    }

    /// Marks records that were overtaken by enough later ones. Once each: what
    /// is lost twice waits for the timeout.
    fn resend_gaps(&mut self) {
        let mut later = 0;
        for index in (0..self.slots.len()).rev() {
            let slot = &self.slots[index];
            match slot.state {
                SlotState::Acked => later += 1,
                SlotState::Waiting if later >= FAST_RESEND_RECORDS && !slot.resent => {
                    self.mark(index);
                }
                SlotState::Waiting | SlotState::Due => {}
            }
        }
    }

    fn continue_recovery(&mut self) {
        let Some(recovery) = &mut self.recovery else { return };
        recovery.burst = (recovery.burst * 2).min(WINDOW_MAX_RECORDS as usize);
        let (began, burst) = (recovery.began, recovery.burst);
        let mut suspects: Vec<usize> = (0..self.slots.len())
            .filter(|index| {
                let slot = &self.slots[*index];
                slot.state == SlotState::Waiting && slot.sent < began
            })
            .collect();
        if suspects.is_empty() {
            self.recovery = None;
        }
        suspects.truncate(burst);
        for index in suspects {
            self.mark(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rendez_proto::limits::{RTO_INITIAL, RTO_MIN};
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn wire(seq: u32) -> Bytes {
        Bytes::from(seq.to_be_bytes().to_vec())
    }

    /// A window with records 1 to `count` in flight, sent at `now`.
    fn filled(count: u32, now: Instant) -> SendWindow {
        let mut window = SendWindow::new(Seq(1));
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
        let mut window = filled(WINDOW_MAX_RECORDS, now);
        assert!(!window.has_room(0), "records");
        window.on_ack(ack(1, &[]), 0, now).unwrap();
        assert!(!window.has_room(0), "credit");
        window.on_ack(ack(1, &[]), 1000, now).unwrap();
        assert!(window.has_room(0));
        assert!(!window.has_room(WINDOW_MAX_BYTES), "bytes");
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
        window.resend_all();
        assert_eq!(resent(&mut window, now), [2, 3, 5]);
    }

    #[test]
    fn what_was_sent_twice_measures_no_round_trip() {
        let start = crate::test_origin();
        let mut window = filled(1, start);
        window.resend_all();
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
        let mut window = SendWindow::new(Seq(u32::MAX));
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
            3 => (0u32..70, bits, prop::bool::weighted(0.9), 0u32..40).prop_map(
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
            let mut window = SendWindow::new(Seq(first));
            // numbers are wider here, and there is no clever base
            let mut flying = BTreeMap::<u64, Bytes>::new();
            let mut next = u64::from(first);
            let mut credit = u64::from(first.saturating_add(WINDOW_MAX_RECORDS - 1));
            for step in steps {
                let mut must_resend = Vec::new();
                match step {
                    Step::Send { len } => {
                        let base = flying.keys().next().copied().unwrap_or(next);
                        let bytes: usize = flying.values().map(Bytes::len).sum();
                        let room = next - base < u64::from(WINDOW_MAX_RECORDS)
                            && next <= credit.min(u32::MAX.into())
                            && bytes + len <= WINDOW_MAX_BYTES;
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
                        window.resend_all();
                        must_resend = flying.keys().copied().collect();
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
                prop_assert_eq!(window.poll_timeout().is_some(), !flying.is_empty());
            }
        }
    }
}
