//! What has arrived, what is still missing, and how much more may come.

use std::collections::BTreeMap;

use bytes::Bytes;
use rendez_proto::frame::Ack;
use rendez_proto::ids::Seq;
use rendez_proto::limits::{
    RECEIVE_BUFFER_BYTES, RECORD_PLAINTEXT_MAX_BYTES, REORDER_MAX_RECORDS, WINDOW_MAX_RECORDS,
};

/// What a record's number says about it, before any cryptography.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Not seen yet, and within reach: open it.
    Fresh,
    /// Opened before.
    Duplicate,
    /// Beyond what may be held or was credited.
    TooFar,
}

/// The receiving side of one direction. Holds opened records only.
#[derive(Debug)]
pub struct RecvWindow {
    /// Wider than a sequence number, so that it can lie past the last one.
    next: u64,
    held: BTreeMap<u32, Bytes>,
    held_bytes: usize,
    /// The highest number that the peer may send, if it follows credit.
    credit: Option<u32>,
}

impl RecvWindow {
    /// A window that starts at `first`. With `credit`, the peer may send
    /// [`WINDOW_MAX_RECORDS`] records before it hears from us.
    pub fn new(first: Seq, credit: bool) -> Self {
        Self {
            next: first.0.into(),
            held: BTreeMap::new(),
            held_bytes: 0,
            credit: credit.then(|| first.0.saturating_add(WINDOW_MAX_RECORDS - 1)),
        }
    }

    /// Whether a record is worth opening. At most [`REORDER_MAX_RECORDS`]
    /// ahead of the next one, and never beyond the credit.
    pub fn classify(&self, seq: Seq) -> Arrival {
        let number = u64::from(seq.0);
        if number < self.next || self.held.contains_key(&seq.0) {
            Arrival::Duplicate
        } else if number - self.next > u64::from(REORDER_MAX_RECORDS)
            || self.credit.is_some_and(|credit| seq.0 > credit)
        {
            Arrival::TooFar
        } else {
            Arrival::Fresh
        }
    }

    /// Takes the plaintext of a record that [`classify`](Self::classify) calls
    /// fresh; any other is dropped.
    pub fn insert(&mut self, seq: Seq, plaintext: Bytes) {
        if self.classify(seq) == Arrival::Fresh {
            self.held_bytes += plaintext.len();
            self.held.insert(seq.0, plaintext);
        }
    }

    /// The next plaintext in order.
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

    /// The next number in order; the last one, once the numbers have run out.
    pub fn next(&self) -> u32 {
        u32::try_from(self.next).unwrap_or(u32::MAX)
    }

    /// What to tell the peer.
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

    /// The highest number that the peer may send, while `unread` bytes of whole
    /// messages wait for the application. Never shrinks: what was granted
    /// stays granted, so at most [`RECEIVE_BUFFER_BYTES`] are ever unread
    /// beyond the message that is being put together.
    pub fn grant(&mut self, unread: usize) -> u32 {
        let Some(credit) = &mut self.credit else { return 0 };
        let room = RECEIVE_BUFFER_BYTES.saturating_sub(unread) / RECORD_PLAINTEXT_MAX_BYTES;
        let records = u32::try_from(room).unwrap_or(u32::MAX).min(WINDOW_MAX_RECORDS);
        let highest = (self.next + u64::from(records)).saturating_sub(1);
        *credit = (*credit).max(u32::try_from(highest).unwrap_or(u32::MAX));
        *credit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        /// Against a plain set of numbers.
        #[test]
        fn like_a_set_of_numbers(
            first in 0u32..2,
            arrivals in proptest::collection::vec(0u32..200, 1..300),
        ) {
            let mut window = RecvWindow::new(Seq(first), false);
            let (mut seen, mut next) = (BTreeSet::new(), first);
            for seq in arrivals {
                let expected = if seq < first || seen.contains(&seq) {
                    Arrival::Duplicate
                } else if seq > next + REORDER_MAX_RECORDS {
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

        /// The same with credit and a window that moves on: numbers near the
        /// next one, plaintexts of all sizes, an application that reads some.
        #[test]
        fn like_a_set_of_numbers_with_credit(
            first in prop_oneof![Just(1), Just(u32::MAX - 20)],
            steps in proptest::collection::vec(
                (-5i64..70, 0usize..=RECORD_PLAINTEXT_MAX_BYTES, 0u8..8), 1..400),
        ) {
            let zeros = Bytes::from(vec![0; RECORD_PLAINTEXT_MAX_BYTES]);
            let mut window = RecvWindow::new(Seq(first), true);
            let (mut held, mut next) = (BTreeMap::new(), i64::from(first));
            let mut credit = i64::from(first.saturating_add(WINDOW_MAX_RECORDS - 1));
            let mut unread = 0;
            for (offset, len, read) in steps {
                // mostly the next one, or the window would never move
                let seq = (next + if offset > 20 { 0 } else { offset }).clamp(0, u32::MAX.into());
                let expected = if seq < next || held.contains_key(&seq) {
                    Arrival::Duplicate
                } else if seq > next + i64::from(REORDER_MAX_RECORDS) || seq > credit {
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
                let room = RECEIVE_BUFFER_BYTES.saturating_sub(unread) / RECORD_PLAINTEXT_MAX_BYTES;
                let room = (room as i64).min(WINDOW_MAX_RECORDS.into());
                credit = credit.max(next - 1 + room).min(u32::MAX.into());
                prop_assert_eq!(i64::from(window.grant(unread)), credit);
                // what is credited fits beside what is unread, however it is read
                let outstanding = (credit - (next - 1)) as usize;
                prop_assert!(
                    unread + outstanding * RECORD_PLAINTEXT_MAX_BYTES <= RECEIVE_BUFFER_BYTES
                );
            }
        }

        #[test]
        fn credit_never_shrinks_and_bounds_what_is_unread(
            unread in proptest::collection::vec(0usize..2 * RECEIVE_BUFFER_BYTES, 1..50),
        ) {
            let mut window = RecvWindow::new(Seq(1), true);
            let mut last = WINDOW_MAX_RECORDS;
            for unread in unread {
                let credit = window.grant(unread);
                prop_assert!(credit >= last);
                last = credit;
                prop_assert_eq!(window.classify(Seq(credit + 1)), Arrival::TooFar);
            }
        }
    }

    #[test]
    fn the_last_number_is_taken_once() {
        let mut window = RecvWindow::new(Seq(u32::MAX), false);
        assert_eq!(window.classify(Seq(u32::MAX)), Arrival::Fresh);
        window.insert(Seq(u32::MAX), Bytes::from_static(b"last"));
        assert_eq!(window.pop().unwrap(), "last");
        assert_eq!(window.classify(Seq(u32::MAX)), Arrival::Duplicate);
        assert_eq!(window.ack(), Ack { up_to: u32::MAX, bits: 0 });
    }

    #[test]
    fn a_full_buffer_stops_credit_and_reading_opens_it() {
        let mut window = RecvWindow::new(Seq(1), true);
        for seq in 1..=WINDOW_MAX_RECORDS {
            window.insert(Seq(seq), Bytes::new());
            assert!(window.pop().is_some());
        }
        assert_eq!(window.grant(RECEIVE_BUFFER_BYTES), WINDOW_MAX_RECORDS);
        assert_eq!(window.classify(Seq(WINDOW_MAX_RECORDS + 1)), Arrival::TooFar);
        assert_eq!(window.grant(0), 2 * WINDOW_MAX_RECORDS);
        assert_eq!(window.classify(Seq(WINDOW_MAX_RECORDS + 1)), Arrival::Fresh);
    }
}
