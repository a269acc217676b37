//! The Codex profile (docs/codex-wire.md#frame,
//! docs/codex-wire.md#messages-and-sequence-numbers).

use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::framing::SEND_QUEUE_BYTES;
use rendez_endpoint::noise::{Prologue, initiate};
use rendez_endpoint::{
    CODEX_UNREAD_MAX_BYTES, CODEX_UNREAD_TIMEOUT, Closed, Event, Misbehaviour, SendError,
};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::Seq;
use rendez_proto::limits::{APPLICATION_MESSAGE_MAX_BYTES, RECORD_PLAINTEXT_MAX_BYTES};
use rendez_proto::profile::Profile;

use crate::pair::{Pair, STREAM, identity, kinds, open, registration, reset, stream};

const CODEX: Profile = Profile::NoiseHybridIkV1;

fn closed(events: Vec<Event>) -> Option<Closed> {
    events.into_iter().find_map(|event| match event {
        Event::Closed { why, .. } => Some(why),
        _ => None,
    })
}

/// `count` records, one message each.
fn records(pair: &mut Pair, count: usize, len: usize) -> Vec<Bytes> {
    let key = pair.at_orchestrator.expect("there is a stream");
    (0..count)
        .map(|n| {
            let mut message = vec![b'x'; len];
            message[0] = n as u8;
            pair.orchestrator.send(key, &message.into()).expect("there is room");
            let wires = pair.drain_orchestrator();
            assert_eq!(wires.len(), 1);
            wires.into_iter().next().expect("one")
        })
        .collect()
}

fn first_bytes(pair: &mut Pair) -> Vec<u8> {
    std::iter::from_fn(|| pair.recv_request()).map(|message| message[0]).collect()
}

#[test]
fn codex_sequences_start_at_zero_without_extras() {
    let mut pair = open(CODEX);
    pair.send_request("one").expect("it is open");
    let wires = pair.drain_orchestrator();
    assert_eq!(kinds(&wires), ["data 0"]);
    let frame = Frame::decode(wires[0].clone()).expect("a frame");
    assert_eq!(frame.ack.up_to, 0);
    assert_eq!((frame.ack.bits, frame.credit, frame.proof), (0, 0, None));
    pair.deliver_to_executor(wires);
    assert_eq!(pair.recv_request().expect("it arrived"), "one");
    assert!(pair.drain_executor().is_empty(), "no acknowledgements");
    pair.send_request("two").expect("it is open");
    assert_eq!(kinds(&pair.drain_orchestrator()), ["data 1"]);
    let (up, down) = pair.pass_without_network(Duration::from_secs(600));
    assert!(up.is_empty() && down.is_empty(), "no retransmission");
}

#[test]
fn messages_are_packed_into_60_kib_records() {
    let mut pair = open(CODEX);
    let key = pair.at_orchestrator.expect("there is a stream");
    for len in [10, 20, 150_000] {
        pair.orchestrator.send(key, &vec![7; len].into()).expect("there is room");
    }
    let wires = pair.drain_orchestrator();
    let total = 10 + 20 + 150_000 + 3 * 4;
    assert_eq!(wires.len(), usize::div_ceil(total, RECORD_PLAINTEXT_MAX_BYTES));
    pair.deliver_to_executor(wires);
    let lens: Vec<usize> = std::iter::from_fn(|| pair.recv_request()).map(|m| m.len()).collect();
    assert_eq!(lens, [10, 20, 150_000]);
}

#[test]
fn duplicate_and_reordered_records_are_fixed() {
    let mut pair = open(CODEX);
    let wires = records(&mut pair, 4, 10);
    for at in [0, 0, 2, 3, 2, 1, 1, 0] {
        pair.deliver_to_executor([wires[at].clone()]);
    }
    assert_eq!(first_bytes(&mut pair), [0, 1, 2, 3]);
    assert_eq!(pair.executor.stats().duplicates, 4);
}

#[test]
fn sixty_fifth_early_record_ends_the_stream() {
    let mut pair = open(CODEX);
    let wires = records(&mut pair, 66, 10);
    pair.deliver_to_executor(wires[1..65].iter().cloned());
    assert_eq!(closed(pair.executor_events()), None);
    pair.deliver_to_executor([wires[0].clone()]);
    assert_eq!(first_bytes(&mut pair), (0..65).collect::<Vec<u8>>());

    let mut pair = open(CODEX);
    let wires = records(&mut pair, 66, 10);
    pair.deliver_to_executor([wires[65].clone()]);
    assert_eq!(closed(pair.executor_events()), Some(Closed::OutOfSequence));
    assert_eq!(kinds(&pair.drain_executor()), ["reset noise_relay_protocol_error"]);
}

#[test]
fn early_records_beyond_one_mebibyte_end_stream() {
    let mut pair = open(CODEX);
    let wires = records(&mut pair, 19, RECORD_PLAINTEXT_MAX_BYTES - 4);
    pair.deliver_to_executor(wires[1..18].iter().cloned());
    assert_eq!(closed(pair.executor_events()), None, "17 full records");
    pair.deliver_to_executor([wires[18].clone()]);
    assert_eq!(closed(pair.executor_events()), Some(Closed::OutOfSequence), "18");
}

/// Where stock ends give up the stream, the record is refused and the genuine
/// one is still accepted.
#[test]
fn forged_record_is_refused_without_effect() {
    let mut pair = open(CODEX);
    let wires = records(&mut pair, 2, 10);
    for forged_seq in [0, 1, 64, 65, 1_000_000] {
        let mut forged = Frame::decode(wires[0].clone()).expect("a frame");
        forged.body = Body::Data { seq: Seq(forged_seq), record: Bytes::from_static(&[0x55; 64]) };
        pair.deliver_to_executor([forged.encode()]);
    }
    pair.deliver_to_executor(wires);
    assert_eq!(first_bytes(&mut pair), [0, 1]);
    assert_eq!(pair.executor.stats().refused_records, 5);
    assert_eq!(closed(pair.executor_events()), None);
}

#[test]
fn frames_ignored_by_stock_are_ignored() {
    let mut pair = open(CODEX);
    let wires = records(&mut pair, 1, 10);
    let mut odd = Frame::decode(wires[0].clone()).expect("a frame");
    odd.ack = rendez_proto::frame::Ack { up_to: 77, bits: u32::MAX };
    odd.credit = 5;
    for body in [Body::Ack, Body::Heartbeat, Body::Resume { next_seq: 9 }] {
        let frame = Frame { body, ..odd.clone() };
        pair.deliver_to_executor([frame.encode()]);
    }
    pair.deliver_to_executor([odd.encode()]);
    assert_eq!(first_bytes(&mut pair), [0]);
    assert!(pair.drain_executor().is_empty());
}

#[test]
fn received_messages_stay_readable_after_reset() {
    let mut pair = open(CODEX);
    let wires = records(&mut pair, 2, 10);
    pair.deliver_to_executor(wires);
    pair.deliver_to_executor([reset(ResetReason::OrchestratorGone)]);
    let events = pair.executor_events();
    assert!(matches!(events.last(), Some(Event::Ended { .. })), "{events:?}");
    assert_eq!(closed(events), None, "there is something to read");
    assert_eq!(first_bytes(&mut pair), [0, 1]);
    let why = closed(pair.executor_events());
    assert_eq!(why, Some(Closed::Reset(ResetReason::OrchestratorGone)));
    assert!(pair.drain_executor().is_empty(), "no echo");
    // the id may be used again
    pair.orchestrator.socket_lost(pair.now);
    pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
    pair.connect(STREAM, CODEX);
    pair.exchange();
    pair.authorize_all();
    pair.exchange();
    pair.send_request("again").expect("it is open");
    pair.exchange();
    assert_eq!(pair.recv_request().expect("it arrived"), "again");
}

#[test]
fn lost_socket_ends_codex_stream() {
    let mut pair = open(CODEX);
    pair.executor.socket_lost(pair.now);
    assert_eq!(closed(pair.executor_events()), Some(Closed::Lost));
    assert_eq!(
        pair.send_response("x"),
        Err(SendError::Closed(Closed::Finished)),
        "the key is dead"
    );
    assert_eq!(pair.executor.poll_timeout(), None);
}

#[test]
fn close_delivers_before_reset() {
    let mut pair = open(CODEX);
    pair.send_response("last words").expect("it is open");
    pair.executor.close(pair.now, pair.at_executor.expect("there is a stream"));
    let wires = pair.drain_executor();
    assert_eq!(kinds(&wires), ["data 0", "reset finished"]);
    assert_eq!(closed(pair.executor_events()), Some(Closed::Finished));
    pair.deliver_to_orchestrator(wires);
    assert_eq!(pair.recv_response().expect("it arrived"), "last words");
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Finished));
}

#[test]
fn message_length_is_1_byte_to_64_mib() {
    let mut pair = open(CODEX);
    let key = pair.at_orchestrator.expect("there is a stream");
    let huge = Bytes::from(vec![0; APPLICATION_MESSAGE_MAX_BYTES + 1]);
    assert_eq!(pair.orchestrator.send(key, &huge), Err(SendError::TooLarge));
    assert_eq!(pair.orchestrator.send(key, &Bytes::new()), Err(SendError::TooLarge));
    assert_eq!(pair.orchestrator.send(key, &huge.slice(1..)), Ok(()));
}

/// A peer that holds the keys and breaks the rules, simulated by hand.
#[test]
fn authenticated_misbehaviour_ends_the_stream() {
    for (plaintext, expected) in [
        (vec![0; 4], Some(Misbehaviour::MessageLength)),
        (0x0400_0001u32.to_be_bytes().to_vec(), Some(Misbehaviour::MessageLength)),
        (vec![1; RECORD_PLAINTEXT_MAX_BYTES + 1], Some(Misbehaviour::RecordLength)),
        (vec![], None), // an empty record is allowed
    ] {
        let mut pair = crate::pair::pair();
        let prologue = Prologue::new(
            CODEX,
            &"env".parse().expect("a valid id"),
            &registration("reg-1"),
            &stream(STREAM),
        );
        let (waiting, message) = initiate(
            CODEX.suite(),
            &identity(2),
            identity(1).public(),
            &prologue,
            b"auth",
            [5; 32].into(),
        )
        .expect("valid keys");
        let body = Body::Handshake { message, profile: String::new() };
        pair.deliver_to_executor([Frame::bare(stream(STREAM), body).encode()]);
        pair.authorize_all();
        let answer = Frame::decode(pair.drain_executor().remove(0)).expect("a frame");
        let Body::Handshake { message, .. } = answer.body else { panic!("message 2") };
        let keys = waiting.finish(&message).expect("a valid answer");
        let record = keys.sealer.seal(0, &[], &plaintext).expect("it can be sealed");
        let body = Body::Data { seq: Seq(0), record };
        pair.deliver_to_executor([Frame::bare(stream(STREAM), body).encode()]);
        let why = closed(pair.executor_events());
        assert_eq!(why, expected.map(Closed::PeerMisbehaved));
        let reset = kinds(&pair.drain_executor());
        assert_eq!(reset.len(), usize::from(expected.is_some()));
    }
}

#[test]
fn writer_blocks_at_one_mebibyte_until_drained() {
    let mut pair = open(CODEX);
    let key = pair.at_orchestrator.expect("there is a stream");
    let big = Bytes::from(vec![1; 2 * SEND_QUEUE_BYTES]);
    pair.orchestrator.send(key, &big).expect("an empty queue takes one of any size");
    let small = Bytes::from_static(b"small");
    assert_eq!(pair.orchestrator.send(key, &small), Err(SendError::Blocked));
    assert_eq!(pair.orchestrator_events(), []);
    let wires = pair.drain_orchestrator();
    assert_eq!(pair.orchestrator_events(), [Event::Writable { key }]);
    assert_eq!(pair.orchestrator.send(key, &small), Ok(()));
    pair.deliver_to_executor(wires);
    pair.exchange();
    assert_eq!(pair.recv_request(), Some(big));
    assert_eq!(pair.recv_request(), Some(small));
}

/// Four of these fit into the unread limit, with the cost of their handles.
fn a_quarter() -> Bytes {
    Bytes::from(vec![1; CODEX_UNREAD_MAX_BYTES / 4 - 64])
}

#[test]
fn unread_codex_stream_stops_socket_reads() {
    let mut pair = open(CODEX);
    let key = pair.at_orchestrator.expect("there is a stream");
    let message = a_quarter();
    for _ in 0..4 {
        pair.orchestrator.send(key, &message).expect("it was drained");
        pair.exchange();
    }
    assert!(pair.executor.wants_read());
    pair.orchestrator.send(key, &message).expect("it was drained");
    pair.exchange();
    assert!(!pair.executor.wants_read());
    assert_eq!(pair.recv_request(), Some(message));
    assert!(pair.executor.wants_read());
}

#[test]
fn executor_resets_stream_left_unread() {
    let mut pair = open(CODEX);
    let key = pair.at_orchestrator.expect("there is a stream");
    let send = |pair: &mut Pair| {
        pair.orchestrator.send(key, &a_quarter()).expect("it was drained");
        pair.exchange();
    };
    for _ in 0..5 {
        send(&mut pair);
    }
    // the timeout starts when the stream begins to block the socket, and runs
    // only while it does
    let almost = CODEX_UNREAD_TIMEOUT - Duration::from_millis(1);
    pair.pass(almost);
    assert!(pair.recv_request().is_some());
    pair.pass(CODEX_UNREAD_TIMEOUT * 2);
    assert!(pair.executor.wants_read());
    send(&mut pair);
    pair.executor_events();
    pair.pass(almost);
    assert!(!pair.executor.wants_read());
    assert_eq!(pair.orchestrator.streams(), 1);
    pair.pass(Duration::from_millis(1));
    assert!(pair.executor.wants_read());
    let events = pair.executor_events();
    assert!(matches!(events[..], [Event::Ended { .. }]), "{events:?}");
    let why = Closed::Reset(ResetReason::ProtocolError);
    assert_eq!(closed(pair.orchestrator_events()), Some(why));
    // received messages are still read
    assert_eq!(std::iter::from_fn(|| pair.recv_request()).count(), 5);
    assert_eq!(closed(pair.executor_events()), Some(Closed::ReaderStalled));
}

/// An orchestrator's stream has the socket for itself.
#[test]
fn orchestrator_may_leave_stream_unread() {
    let mut pair = open(CODEX);
    let key = pair.at_executor.expect("there is a stream");
    for _ in 0..5 {
        pair.executor.send(key, &a_quarter()).expect("it was drained");
        pair.exchange();
    }
    assert!(!pair.orchestrator.wants_read());
    pair.pass(CODEX_UNREAD_TIMEOUT * 10);
    assert_eq!(std::iter::from_fn(|| pair.recv_response()).count(), 5);
    pair.send_response("and on").expect("it is open");
    pair.exchange();
    assert_eq!(pair.recv_response().expect("it arrived"), "and on");
}
