//! The receive window: records that have arrived, gaps, and credit.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::frame::Ack;
use rendez_proto::ids::Seq;
use rendez_proto::limits::{RECORD_PLAINTEXT_MAX_BYTES, WINDOW_MAX_RECORDS};

use super::{Budget, WINDOW_MIN_RECORDS};

/// How many records ahead of the next one a receiver of the Codex profile
/// holds; the 65th ends the stream
/// (docs/codex-wire.md#messages-and-sequence-numbers).
pub const CODEX_REORDER_MAX_RECORDS: u32 = 64;
/// How long nothing may arrive before a grown receive window shrinks to the
/// smallest one, so that other streams can use the memory.
const WINDOW_IDLE: Duration = Duration::from_secs(10);
/// The part of the window that is worth a frame of its own as new credit.
const CREDIT_STEP_FRACTION: u32 = 4;

/// The classification of a record by its number, before any cryptography.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// New, and within the window: open it.
    Fresh,
    /// Opened before.
    Duplicate,
    /// Beyond the window or the credit.
    TooFar,
}

/// The receiving side of one direction. Holds opened records only.
#[derive(Debug)]
pub struct RecvWindow {
    /// Wider than a sequence number, so that it can lie past the last one.
    next: u64,
    held: BTreeMap<u32, Bytes>,
    held_bytes: usize,
    credit: Option<Credit>,
}

/// The credit of a peer that follows it.
#[derive(Debug)]
struct Credit {
    /// The highest number that the peer may send.
    highest: u32,
    /// How many records the peer may be ahead of the application.
    window: u32,
    budget: Budget,
    /// Records charged: the window, or the promised credit if that is larger. A
    /// smallest window is free; the rest is charged to the budget.
    charged: u32,
    /// Measures how fast the window is used.
    used: Option<Epoch>,
}

#[derive(Debug)]
struct Epoch {
    began: Instant,
    /// The first number that the application had not read at the beginning.
    consumed: u64,
    /// The first number that has not arrived.
    arrived: u64,
    /// When the last record arrived.
    last: Instant,
}

impl RecvWindow {
    /// A window that starts at `first`, for a peer without credit.
    pub fn unbounded(first: Seq) -> Self {
        Self { next: first.0.into(), held: BTreeMap::new(), held_bytes: 0, credit: None }
    }

    /// A window that starts at `first`. The peer may send
    /// [`WINDOW_MIN_RECORDS`] records before it receives any credit.
    pub fn new(first: Seq, budget: Budget) -> Self {
        let highest = first.0.saturating_add(WINDOW_MIN_RECORDS - 1);
        let window = WINDOW_MIN_RECORDS;
        let credit = Credit { highest, window, budget, charged: window, used: None };
        Self { credit: Some(credit), ..Self::unbounded(first) }
    }

    /// Whether a record is worth opening: never beyond the credit; without
    /// credit, at most [`CODEX_REORDER_MAX_RECORDS`] ahead of the next one.
    pub fn classify(&self, seq: Seq) -> Arrival {
        let number = u64::from(seq.0);
        let furthest = match &self.credit {
            Some(credit) => credit.highest.into(),
            None => self.next + u64::from(CODEX_REORDER_MAX_RECORDS),
        };
        if number < self.next || self.held.contains_key(&seq.0) {
            Arrival::Duplicate
        } else if number > furthest {
            Arrival::TooFar
        } else {
            Arrival::Fresh
        }
    }

    /// Takes the plaintext of a record that [`classify`](Self::classify)
    /// considers fresh; any other is dropped.
    pub fn insert(&mut self, seq: Seq, plaintext: Bytes) {
        if self.classify(seq) == Arrival::Fresh {
            self.held_bytes += plaintext.len();
            self.held.insert(seq.0, plaintext);
        }
    }

    /// Returns the next plaintext in order.
    pub fn pop(&mut self) -> Option<Bytes> {
        let entry = self.held.first_entry()?;
        if u64::from(*entry.key()) != self.next {
            return None;
        }
        let plaintext = entry.remove();
        self.held_bytes -= plaintext.len();
        self.next += 1;
        Some(plaintext)
    }

    /// Plaintext bytes that wait for an earlier record.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The next number in order; the last one, once the numbers are exhausted.
    pub fn next(&self) -> u32 {
        u32::try_from(self.next).unwrap_or(u32::MAX)
    }

    /// The acknowledgement to send.
    pub fn ack(&self) -> Ack {
        let bits = self
            .held
            .keys()
            .filter_map(|seq| u64::from(*seq).checked_sub(self.next + 1))
            .take_while(|bit| *bit < u64::from(u32::BITS))
            .fold(0, |bits, bit| bits | 1 << bit);
        let up_to = u32::try_from(self.next.saturating_sub(1)).unwrap_or(u32::MAX);
        Ack { up_to, bits }
    }

    /// Returns the highest number that the peer may send, while `unread` bytes
    /// of whole messages wait for the application. It never decreases: credit
    /// is not revoked, so at most a window of full records is ever unread
    /// beyond the message that is being reassembled.
    pub fn grant(&mut self, unread: usize) -> u32 {
        let Some(credit) = &mut self.credit else { return 0 };
        let window = credit.window as usize * RECORD_PLAINTEXT_MAX_BYTES;
        let room = window.saturating_sub(unread) / RECORD_PLAINTEXT_MAX_BYTES;
        let records = u64::try_from(room).unwrap_or(u64::MAX);
        let highest = (self.next + records).saturating_sub(1);
        credit.highest = credit.highest.max(u32::try_from(highest).unwrap_or(u32::MAX));
        credit.highest
    }

    /// The amount of new credit that is worth a frame of its own, in records.
    pub fn credit_step(&self) -> u32 {
        self.credit.as_ref().map_or(1, |credit| credit.window / CREDIT_STEP_FRACTION)
    }

    /// Adapts the window to its use, while `unread` bytes wait for the
    /// application. Call it when records were delivered, and before credit is
    /// sent. The window doubles if the application consumed half of it in less
    /// than a round trip of an empty path: then the window limits the peer, and
    /// neither the path nor the application does. So the window settles at two
    /// to four times the bandwidth-delay product, and a path that is slow
    /// because of full queues does not get longer ones.
    ///
    /// It measures consumption instead of arrival, because a burst arrives
    /// faster than any application reads.
    pub fn autotune(&mut self, now: Instant, round_trip: Option<Duration>, unread: usize) {
        let next = self.next;
        let Some(credit) = &mut self.credit else { return };
        let unread = unread.div_ceil(RECORD_PLAINTEXT_MAX_BYTES) as u64;
        if credit.charged > credit.window {
            let promised = (u64::from(credit.highest) + 1).saturating_sub(next) + unread;
            credit.release_unused(u32::try_from(promised).unwrap_or(u32::MAX));
        }
        let consumed = next.saturating_sub(unread);
        let epoch = Epoch { began: now, consumed, arrived: next, last: now };
        let Some(used) = &mut credit.used else {
            credit.used = Some(epoch);
            return;
        };
        if next > used.arrived {
            let idle = now.saturating_duration_since(used.last);
            (used.arrived, used.last) = (next, now);
            if idle >= WINDOW_IDLE {
                credit.window = WINDOW_MIN_RECORDS;
                credit.used = Some(epoch);
                return;
            }
        }
        if consumed.saturating_sub(used.consumed) < u64::from(credit.window / 2) {
            return;
        }
        let elapsed = now.saturating_duration_since(used.began);
        if round_trip.is_some_and(|round_trip| elapsed < round_trip) {
            credit.grow();
        }
        credit.used = Some(epoch);
    }
}

impl Credit {
    fn grow(&mut self) {
        let window = (self.window * 2).min(WINDOW_MAX_RECORDS);
        let more = window.saturating_sub(self.charged);
        if self.budget.try_acquire(bytes(more)) {
            self.window = window;
            self.charged += more;
        }
    }

    /// Releases the charge beyond the window and the promised credit.
    fn release_unused(&mut self, promised: u32) {
        let charged = promised.clamp(self.window, self.charged);
        self.budget.release(bytes(self.charged - charged));
        self.charged = charged;
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.budget.release(bytes(self.charged - WINDOW_MIN_RECORDS));
    }
}

fn bytes(records: u32) -> usize {
    records as usize * RECORD_PLAINTEXT_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::RECEIVE_MEMORY_BYTES;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const WINDOW_MIN: usize = WINDOW_MIN_RECORDS as usize * RECORD_PLAINTEXT_MAX_BYTES;

    fn with_credit(first: u32) -> RecvWindow {
        RecvWindow::new(Seq(first), Budget::new(RECEIVE_MEMORY_BYTES))
    }

    proptest! {
        /// Compares with a plain set of numbers.
        #[test]
        fn matches_a_naive_model(
            first in 0u32..2,
            arrivals in proptest::collection::vec(0u32..200, 1..300),
        ) {
            let mut window = RecvWindow::unbounded(Seq(first));
            let (mut seen, mut next) = (BTreeSet::new(), first);
            for seq in arrivals {
                let expected = if seq < first || seen.contains(&seq) {
                    Arrival::Duplicate
                } else if seq > next + CODEX_REORDER_MAX_RECORDS {
                    Arrival::TooFar
                } else {
                    Arrival::Fresh
                };
                prop_assert_eq!(window.classify(Seq(seq)), expected);
                window.insert(Seq(seq), Bytes::from(seq.to_be_bytes().to_vec()));
                if expected == Arrival::Fresh {
                    seen.insert(seq);
                }
                while seen.contains(&next) {
                    prop_assert_eq!(window.pop(), Some(Bytes::from(next.to_be_bytes().to_vec())));
                    next += 1;
                }
                prop_assert_eq!(window.pop(), None);
                prop_assert_eq!(window.next(), next);
                let ahead = seen.range(next..).count();
                prop_assert_eq!(window.held_bytes(), ahead * 4);
                let ack = window.ack();
                prop_assert_eq!(ack.up_to, next.saturating_sub(1));
                for bit in 0..32 {
                    let claimed = ack.bits >> bit & 1 == 1;
                    prop_assert_eq!(claimed, seen.contains(&(next + 1 + bit)));
                }
            }
        }

        /// The same with credit and a moving window: numbers near the next one,
        /// plaintexts of all sizes, an application that reads some.
        #[test]
        fn matches_a_naive_model_with_credit(
            first in prop_oneof![Just(1), Just(u32::MAX - 20)],
            steps in proptest::collection::vec(
                (-5i64..70, 0usize..=RECORD_PLAINTEXT_MAX_BYTES, 0u8..8), 1..400),
        ) {
            let zeros = Bytes::from(vec![0; RECORD_PLAINTEXT_MAX_BYTES]);
            let mut window = with_credit(first);
            let (mut held, mut next) = (BTreeMap::new(), i64::from(first));
            let mut credit = i64::from(first.saturating_add(WINDOW_MIN_RECORDS - 1));
            let mut unread = 0;
            for (offset, len, read) in steps {
                // mostly the next one, or the window would never move
                let seq = (next + if offset > 20 { 0 } else { offset }).clamp(0, u32::MAX.into());
                let expected = if seq < next || held.contains_key(&seq) {
                    Arrival::Duplicate
                } else if seq > credit {
                    Arrival::TooFar
                } else {
                    Arrival::Fresh
                };
                prop_assert_eq!(window.classify(Seq(seq as u32)), expected);
                window.insert(Seq(seq as u32), zeros.slice(..len));
                if expected == Arrival::Fresh {
                    held.insert(seq, len);
                }
                while let Some(len) = held.remove(&next) {
                    prop_assert_eq!(window.pop().map(|plaintext| plaintext.len()), Some(len));
                    unread += len;
                    next += 1;
                }
                prop_assert_eq!(window.pop(), None);
                prop_assert_eq!(i64::from(window.next()), next.min(u32::MAX.into()));
                prop_assert_eq!(window.held_bytes(), held.values().sum::<usize>());
                if read == 0 {
                    unread = 0;
                }
                let room = WINDOW_MIN.saturating_sub(unread) / RECORD_PLAINTEXT_MAX_BYTES;
                let room = (room as i64).min(WINDOW_MIN_RECORDS.into());
                credit = credit.max(next - 1 + room).min(u32::MAX.into());
                prop_assert_eq!(i64::from(window.grant(unread)), credit);
                // the credit fits beside the unread bytes, however they are
                // read
                let outstanding = (credit - (next - 1)) as usize;
                prop_assert!(
                    unread + outstanding * RECORD_PLAINTEXT_MAX_BYTES <= WINDOW_MIN
                );
            }
        }

        #[test]
        fn credit_never_shrinks_and_bounds_unread_data(
            unread in proptest::collection::vec(0usize..2 * WINDOW_MIN, 1..50),
        ) {
            let mut window = with_credit(1);
            let mut last = WINDOW_MIN_RECORDS;
            for unread in unread {
                let credit = window.grant(unread);
                prop_assert!(credit >= last);
                last = credit;
                prop_assert_eq!(window.classify(Seq(credit + 1)), Arrival::TooFar);
            }
        }
    }

    #[test]
    fn last_sequence_number_is_accepted_once() {
        let mut window = RecvWindow::unbounded(Seq(u32::MAX));
        assert_eq!(window.classify(Seq(u32::MAX)), Arrival::Fresh);
        window.insert(Seq(u32::MAX), Bytes::from_static(b"last"));
        assert_eq!(window.pop().unwrap(), "last");
        assert_eq!(window.classify(Seq(u32::MAX)), Arrival::Duplicate);
        assert_eq!(window.ack(), Ack { up_to: u32::MAX, bits: 0 });
    }

    #[test]
    fn full_buffer_stops_credit_until_read() {
        let mut window = with_credit(1);
        for seq in 1..=WINDOW_MIN_RECORDS {
            window.insert(Seq(seq), Bytes::new());
            assert!(window.pop().is_some());
        }
        assert_eq!(window.grant(WINDOW_MIN), WINDOW_MIN_RECORDS);
        assert_eq!(window.classify(Seq(WINDOW_MIN_RECORDS + 1)), Arrival::TooFar);
        assert_eq!(window.grant(0), 2 * WINDOW_MIN_RECORDS);
        assert_eq!(window.classify(Seq(WINDOW_MIN_RECORDS + 1)), Arrival::Fresh);
    }

    /// A peer that sends `per_second` records over a path with this round
    /// trip, as far as credit allows, and an application that reads some.
    struct Path {
        window: RecvWindow,
        now: Instant,
        round_trip: Duration,
        pause: Duration,
        reads_per_second: u32,
        /// Records, and when the application read the last one.
        unread: u32,
        read: Instant,
    }

    impl Path {
        fn new(window: RecvWindow, round_trip_ms: u64, per_second: u32) -> Self {
            Self {
                window,
                now: crate::test_origin(),
                round_trip: Duration::from_millis(round_trip_ms),
                pause: Duration::from_secs(1) / per_second,
                reads_per_second: 10_000,
                unread: 0,
                read: crate::test_origin(),
            }
        }

        /// Simulates a round trip: the credited records arrive, then the peer
        /// waits.
        fn round(&mut self) {
            let credit = self.window.grant(bytes(self.unread));
            let end = self.now + self.round_trip;
            while self.window.next() <= credit && self.now < end {
                self.window.insert(Seq(self.window.next()), Bytes::new());
                self.window.pop().unwrap();
                self.unread += 1;
                self.pass(self.pause);
            }
            while self.now < end {
                self.pass(Duration::from_millis(1));
            }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            let pause = Duration::from_secs(1) / self.reads_per_second;
            while self.read + pause <= self.now {
                self.read += pause;
                self.unread = self.unread.saturating_sub(1);
            }
            self.window.autotune(self.now, Some(self.round_trip), bytes(self.unread));
        }

        fn records(&self) -> u32 {
            self.window.credit.as_ref().unwrap().window
        }
    }

    #[test]
    fn window_grows_on_a_long_fast_path() {
        // 1 Gbit/s is 2,035 full records a second
        let mut path = Path::new(with_credit(1), 200, 2035);
        for _ in 0..20 {
            path.round();
        }
        assert_eq!(path.records(), WINDOW_MAX_RECORDS);
        let credit = path.window.grant(0);
        assert_eq!(path.window.classify(Seq(credit)), Arrival::Fresh);
        assert_eq!(credit, path.window.next() + WINDOW_MAX_RECORDS - 1);
    }

    /// A burst of 20 Gbit/s, of which the application reads 4.
    #[test]
    fn burst_does_not_hinder_window_growth() {
        let mut path = Path::new(with_credit(1), 200, 40_000);
        path.reads_per_second = 8_000;
        for _ in 0..20 {
            path.round();
        }
        assert_eq!(path.records(), WINDOW_MAX_RECORDS);
    }

    #[test]
    fn window_stays_small_when_not_the_bottleneck() {
        let mut slow = Path::new(with_credit(1), 20, 20);
        let mut near = Path::new(with_credit(1), 1, 2035);
        let mut unread = Path::new(with_credit(1), 200, 2035);
        unread.reads_per_second = 70;
        for _ in 0..1000 {
            for path in [&mut slow, &mut near, &mut unread] {
                path.round();
                assert_eq!(path.records(), WINDOW_MIN_RECORDS);
            }
        }
    }

    #[test]
    fn window_growth_is_charged_and_released() {
        let all = bytes(WINDOW_MAX_RECORDS - WINDOW_MIN_RECORDS);
        let budget = Budget::new(all);
        let mut path = Path::new(RecvWindow::new(Seq(1), budget.clone()), 200, 2035);
        (0..20).for_each(|_| path.round());
        assert_eq!(budget.free(), 0);
        let mut other = Path::new(RecvWindow::new(Seq(1), budget.clone()), 200, 2035);
        (0..20).for_each(|_| other.round());
        assert_eq!(other.records(), WINDOW_MIN_RECORDS, "there is nothing left");

        // after a pause it is released, as the promised credit is used up
        path.now += WINDOW_IDLE;
        path.pause = path.round_trip;
        (0..40).for_each(|_| path.round());
        assert_eq!(path.window.credit.as_ref().unwrap().window, WINDOW_MIN_RECORDS);
        assert!(budget.free() > 0 && budget.free() < all);
        drop(path);
        assert_eq!(budget.free(), all);
    }

    proptest! {
        /// Outstanding credit and unread data never exceed the charge, whatever
        /// the window does.
        #[test]
        fn promised_credit_is_always_charged(
            steps in proptest::collection::vec((0u32..40, 0u64..30_000, 0usize..40), 1..200),
        ) {
            let budget = Budget::new(bytes(600));
            let mut window = RecvWindow::new(Seq(1), budget.clone());
            let mut now = crate::test_origin();
            for (records, wait_ms, unread) in steps {
                // a third of the steps are fast enough to let it grow
                now += Duration::from_millis(if wait_ms > 10_000 { wait_ms } else { 0 });
                for _ in 0..records {
                    if window.classify(Seq(window.next())) == Arrival::Fresh {
                        window.insert(Seq(window.next()), Bytes::new());
                        window.pop();
                    }
                    window.autotune(now, Some(Duration::from_millis(1)), bytes(unread as u32));
                }
                let credit = window.grant(bytes(unread as u32));
                let outstanding = credit + 1 - window.next();
                let charged = window.credit.as_ref().unwrap().charged;
                prop_assert!(outstanding <= charged, "{outstanding} {charged}");
                prop_assert_eq!(budget.free() + bytes(charged - WINDOW_MIN_RECORDS), bytes(600));
            }
        }
    }
}
