//! Sending, retransmission, loss and spurious timeouts, on virtual time.

use super::*;
use proptest::prelude::*;
use rendez_proto::limits::RTO_INITIAL;

use crate::window::RTO_MIN;
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
fn records_bytes_and_credit_bound_room() {
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
fn bytes_beyond_smallest_window_are_charged() {
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
fn busy_sender_gets_a_larger_window() {
    let mut now = crate::test_origin();
    let mut window = SendWindow::new(Seq(1), memory());
    let mut rounds = 0;
    while window.in_flight.len() < WINDOW_MAX_RECORDS as usize {
        window.on_ack(ack(window.end() as u32 - 1, &[]), u32::MAX, now).unwrap();
        while window.has_room(4) {
            window.push(wire(0), now);
        }
        now += Duration::from_millis(200);
        rounds += 1;
        assert!(rounds < 10, "{}", window.in_flight.len());
    }
    assert!(!window.has_room(4));
}

#[test]
fn acks_of_unsent_records_are_errors() {
    let now = crate::test_origin();
    assert_eq!(filled(3, now).on_ack(ack(3, &[]), 0, now), Ok(()));
    assert_eq!(filled(3, now).on_ack(ack(4, &[]), 0, now), Err(AckOfUnsent));
    assert_eq!(filled(3, now).on_ack(ack(0, &[4]), 0, now), Err(AckOfUnsent));
    let all = Ack { up_to: u32::MAX, bits: u32::MAX };
    assert_eq!(filled(3, now).on_ack(all, 0, now), Err(AckOfUnsent));
    assert_eq!(filled(0, now).on_ack(ack(0, &[]), 0, now), Ok(()));
}

#[test]
fn timeout_resends_oldest_gap_and_doubles() {
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
fn lost_burst_is_resent_in_doubling_bursts() {
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
fn three_later_acks_resend_gap_once() {
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
fn new_path_resends_everything_unacknowledged() {
    let now = crate::test_origin();
    let mut window = filled(5, now);
    window.on_ack(ack(1, &[4]), 0, now).unwrap();
    window.path_replaced();
    assert_eq!(resent(&mut window, now), [2, 3, 5]);
}

#[test]
fn new_path_starts_with_smallest_window() {
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

/// A connection that has to warm up delivers later than the timeout expects.
#[test]
fn spurious_timeout_is_undone() {
    let start = crate::test_origin();
    let mut window = filled(WINDOW_MIN_RECORDS, start);
    window.rto.sample(Duration::from_millis(200));
    let late = window.poll_timeout().unwrap();
    window.handle_timeout(late);
    assert_eq!(resent(&mut window, late), [1], "as if all were lost");
    // records 1 and 2 arrive after all, and 2 was not retransmitted
    let now = start + Duration::from_millis(900);
    window.on_ack(ack(2, &[]), 100, now).unwrap();
    assert_eq!(resent(&mut window, now), [] as [u32; 0], "the rest is under way still");
    assert!(window.has_room(4));
    assert!(window.rto().current() > Duration::from_millis(900), "and it learns from it");
    assert!(window.poll_timeout().unwrap() > now);
    // if nothing else arrives, the timeout expires again
    window.handle_timeout(window.poll_timeout().unwrap());
    assert_eq!(resent(&mut window, now + Duration::from_secs(9)), [3]);
}

/// Every record was retransmitted before the first acknowledgement, as happens
/// when acknowledgements come one by one: one that comes sooner than any round
/// trip belongs to the first transmission.
#[test]
fn early_ack_belongs_to_first_transmission() {
    let start = crate::test_origin();
    let ms = Duration::from_millis;
    for (after, taken_back) in [(ms(199), true), (ms(200), false)] {
        let mut window = filled(3, start);
        window.rto.sample(ms(200));
        let late = window.poll_timeout().unwrap();
        window.handle_timeout(late);
        assert_eq!(resent(&mut window, late), [1]);
        window.on_ack(ack(1, &[]), 100, late + after).unwrap();
        let again: &[u32] = if taken_back { &[] } else { &[2, 3] };
        assert_eq!(resent(&mut window, late + after), again);
        let learned = window.rto().current() > late + after - start;
        assert_eq!(learned, taken_back, "how long the first sending took");
    }
}

/// A record sent over a former path may have arrived there.
#[test]
fn old_path_does_not_measure_new_path() {
    let start = crate::test_origin();
    let ms = Duration::from_millis;
    let mut window = filled(WINDOW_MIN_RECORDS, start);
    window.push(wire(33), start);
    window.path_replaced();
    let now = start + Duration::from_secs(60);
    assert_eq!(resent(&mut window, now).len(), WINDOW_MIN_RECORDS as usize);
    window.rto.sample(ms(200));
    let late = window.poll_timeout().unwrap();
    window.handle_timeout(late);
    assert_eq!(resent(&mut window, late), [1]);
    // these arrived before, and so did one that was not retransmitted yet
    window.on_ack(ack(1, &[3, 4, 33]), 100, late + ms(1)).unwrap();
    assert_eq!(resent(&mut window, late + ms(1)).first(), Some(&2), "was not taken back");
    assert!(window.rto().current() < Duration::from_secs(10), "an outage is no round trip");
}

/// A timeout was right if only the retransmission is acknowledged.
#[test]
fn timeout_after_loss_is_not_undone() {
    let start = crate::test_origin();
    let mut window = filled(WINDOW_MIN_RECORDS, start);
    let late = window.poll_timeout().unwrap();
    window.handle_timeout(late);
    assert_eq!(resent(&mut window, late), [1]);
    window.on_ack(ack(1, &[]), 100, late).unwrap();
    assert_eq!(resent(&mut window, late), [2, 3], "slowly");
}

#[test]
fn lost_records_measure_no_round_trip() {
    let start = crate::test_origin();
    let mut window = filled(1, start);
    window.path_replaced();
    window.on_ack(ack(1, &[]), 0, start + Duration::from_secs(60)).unwrap();
    assert_eq!(window.rto().current(), RTO_INITIAL);
    assert_eq!(window.rto().shortest(), None);
}

#[test]
fn resent_records_measure_no_round_trip() {
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
fn sequence_numbers_never_wrap() {
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

/// An operation of the property test below.
#[derive(Debug, Clone)]
enum Step {
    Send {
        len: usize,
    },
    /// Acknowledges up to `behind` the newest, and the bits. `honest`: of
    /// those, only records that were sent.
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
    /// Compares with a plain map from the numbers in flight to their bytes.
    #[test]
    fn matches_a_naive_model(
        first in prop_oneof![Just(1), Just(u32::MAX - 30)],
        steps in proptest::collection::vec(any_step(), 1..300),
    ) {
        let pattern = Bytes::from(vec![0; 400_000]);
        let mut now = crate::test_origin();
        let mut window = SendWindow::new(Seq(first), memory());
        // numbers are wider here, and start at zero
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
                        // the offset in the pattern distinguishes the records
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
                    let advertised = (credit + u64::from(more)).min(u32::MAX.into()) as u32;
                    let result = window.on_ack(Ack { up_to, bits }, advertised, now);
                    prop_assert_eq!(result.is_err(), unsent);
                    if !unsent {
                        credit = advertised.into();
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
                prop_assert!(number.is_some(), "resent an acknowledged record, or other bytes");
                numbers.extend(number.map(|(number, _)| *number));
            }
            prop_assert!(numbers.is_sorted(), "the oldest first, each once");
            prop_assert!(must_resend.iter().all(|number| numbers.contains(number)));
            prop_assert_eq!(window.is_empty(), flying.is_empty());
            prop_assert_eq!(window.bytes, flying.values().map(Bytes::len).sum::<usize>());
            prop_assert_eq!(window.budget.free() + window.charged, MEMORY);
            prop_assert_eq!(window.charged, window.bytes.saturating_sub(WINDOW_MIN_BYTES));
            prop_assert_eq!(window.poll_timeout().is_some(), !flying.is_empty());
        }
    }
}
