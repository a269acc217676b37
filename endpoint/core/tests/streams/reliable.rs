//! Our own profiles: nothing is lost, and a relay cannot end a stream.

use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::window::{RTO_MAX, WINDOW_MIN_RECORDS};
use rendez_endpoint::{ACK_DELAY, ACK_EVERY_RECORDS, Closed, Event, SendError};
use rendez_proto::frame::{Ack, Body, Frame, ResetReason};
use rendez_proto::ids::Seq;
use rendez_proto::limits::{
    RECORD_PLAINTEXT_MAX_BYTES, RTO_INITIAL, STREAM_GRACE, STREAMS_PER_EXECUTOR, TAG_BYTES,
};
use rendez_proto::profile::Profile;

use crate::pair::{Pair, STREAM, kinds, open, registration, reset, stream};

/// Unread plaintext that a stream accepts before its window grows.
const RECEIVE_BUFFER: usize = WINDOW_MIN_RECORDS as usize * RECORD_PLAINTEXT_MAX_BYTES;

const OURS: [Profile; 2] = [Profile::RendezHybridIkV1, Profile::RendezIkV1];

fn ours() -> Pair {
    open(Profile::RendezHybridIkV1)
}

fn closed(events: Vec<Event>) -> Option<Closed> {
    events.into_iter().find_map(|event| match event {
        Event::Closed { why, .. } => Some(why),
        _ => None,
    })
}

fn frame(wire: &Bytes) -> Frame {
    Frame::decode(wire.clone()).expect("a frame")
}

#[test]
fn reliable_sequences_start_at_one_with_acks() {
    for profile in OURS {
        let mut pair = open(profile);
        pair.send_request("question").expect("it is open");
        let wires = pair.drain_orchestrator();
        assert_eq!(kinds(&wires), ["data 1"]);
        pair.deliver_to_executor(wires);
        assert_eq!(pair.recv_request().expect("it arrived"), "question");
        assert!(pair.drain_executor().is_empty(), "an ack waits for a record to ride on");
        pair.send_response("answer").expect("it is open");
        let wires = pair.drain_executor();
        assert_eq!(kinds(&wires), ["data 1"]);
        assert_eq!(frame(&wires[0]).ack, Ack { up_to: 1, bits: 0 });
        assert!(frame(&wires[0]).credit > WINDOW_MIN_RECORDS);
        pair.deliver_to_orchestrator(wires);
        let (up, _) = pair.pass_without_network(RTO_INITIAL / 2);
        assert_eq!(kinds(&up), ["ack"], "nothing came to ride on");
    }
}

#[test]
fn streams_alternate_in_records_of_the_given_size() {
    const SIZE: usize = 2_000;
    for profile in Profile::ALL {
        let mut pair = open(profile);
        let first = pair.at_executor.expect("there is a stream");
        pair.connect("another stream", profile);
        pair.exchange();
        pair.authorize_all();
        pair.exchange();
        let second = pair.at_executor.expect("there is a stream");
        // A command's answer waits for one record of the bulk before it.
        pair.executor.send(first, &vec![7; 500_000].into()).expect("there is room");
        pair.executor.send(second, &vec![8; 5_000].into()).expect("there is room");
        let wires = pair.drain_executor_in(SIZE);
        let streams: Vec<_> = wires.iter().map(|wire| frame(wire).stream).collect();
        let (bulk, other) = (stream(STREAM), stream("another stream"));
        let alternating = [&bulk, &other].repeat(3);
        assert!(streams.iter().take(6).eq(alternating), "{streams:?}");
        let lens = wires.iter().map(|wire| match frame(wire).body {
            Body::Data { record, .. } => record.len(),
            other => panic!("{other:?}"),
        });
        let largest = SIZE + TAG_BYTES;
        assert!(lens.clone().all(|len| len <= largest) && lens.max() == Some(largest));
        pair.deliver_to_orchestrator(wires);
        pair.exchange();
        let mut received = Vec::new();
        for event in pair.orchestrator_events() {
            if let Event::Readable { key } = event {
                received.extend(std::iter::from_fn(|| pair.orchestrator.recv(key)));
            }
        }
        received.sort_by_key(Bytes::len);
        assert_eq!(received.iter().map(Bytes::len).collect::<Vec<_>>(), [5_000, 500_000]);
    }
}

#[test]
fn delayed_ack_is_sent_once() {
    let mut pair = ours();
    pair.send_request("question").expect("it is open");
    let wires = pair.drain_orchestrator();
    pair.deliver_to_executor(wires);
    let (_, down) = pair.pass_without_network(ACK_DELAY - Duration::from_nanos(1));
    assert_eq!(kinds(&down), [""; 0]);
    let (_, down) = pair.pass_without_network(Duration::from_millis(100));
    assert_eq!(kinds(&down), ["ack"]);
    pair.deliver_to_orchestrator(down);
    let (up, down) = pair.pass_without_network(Duration::from_secs(60));
    assert_eq!((kinds(&up), kinds(&down)), (vec![], vec![]), "nothing is resent");
}

#[test]
fn every_sixteenth_record_is_acked_immediately() {
    let mut pair = ours();
    for n in 1..=ACK_EVERY_RECORDS {
        pair.send_request("x").expect("it is open");
        let wires = pair.drain_orchestrator();
        pair.deliver_to_executor(wires);
        let acked = !pair.drain_executor().is_empty();
        assert_eq!(acked, n == ACK_EVERY_RECORDS, "after {n}");
    }
}

#[test]
fn lost_record_is_resent_byte_for_byte() {
    for profile in OURS {
        let mut pair = open(profile);
        pair.send_request("lost").expect("it is open");
        let lost = pair.drain_orchestrator();
        let (up, _) = pair.pass_without_network(RTO_INITIAL);
        assert_eq!(up, lost);
        pair.deliver_to_executor(up);
        assert_eq!(pair.recv_request().expect("it arrived"), "lost");
        assert_eq!(pair.orchestrator.stats().retransmits, 1);
        pair.deliver_to_executor(lost);
        assert_eq!(pair.recv_request(), None, "once");
    }
}

#[test]
fn duplicate_record_is_acknowledged_again() {
    let mut pair = ours();
    pair.send_request("x").expect("it is open");
    let record = pair.drain_orchestrator();
    pair.deliver_to_executor(record.clone());
    let (_, lost) = pair.pass_without_network(ACK_DELAY);
    assert_eq!(kinds(&lost), ["ack"]);
    pair.deliver_to_executor(record);
    let again = pair.drain_executor();
    assert_eq!(kinds(&again), ["ack"]);
    pair.deliver_to_orchestrator(again);
    let (up, _) = pair.pass_without_network(Duration::from_secs(30));
    assert_eq!(kinds(&up), [""; 0]);
}

#[test]
fn full_window_stops_until_acked() {
    let mut pair = ours();
    let mut wires = Vec::new();
    for _ in 0..WINDOW_MIN_RECORDS + 10 {
        pair.send_request("x").expect("the queue has room");
        wires.extend(pair.drain_orchestrator());
    }
    assert_eq!(wires.len(), WINDOW_MIN_RECORDS as usize);
    pair.deliver_to_executor(wires);
    pair.exchange();
    let messages = std::iter::from_fn(|| pair.recv_request()).count();
    assert_eq!(messages, WINDOW_MIN_RECORDS as usize + 10);
}

/// Everything that a relay can do to a frame.
#[test]
fn frames_altered_by_a_relay_are_refused() {
    for profile in OURS {
        let mut pair = open(profile);
        pair.send_request("true").expect("it is open");
        let wire = pair.drain_orchestrator().remove(0);
        let real = frame(&wire);
        let Body::Data { record, .. } = &real.body else { panic!("a record") };
        let false_resets = [
            Frame { ack: Ack { up_to: 1, bits: 0 }, ..real.clone() },
            Frame { ack: Ack { up_to: 0, bits: 1 }, ..real.clone() },
            Frame { credit: real.credit + 1, ..real.clone() },
            Frame { body: Body::Data { seq: Seq(2), record: record.clone() }, ..real.clone() },
            Frame { body: Body::Data { seq: Seq(1), record: record.slice(1..) }, ..real.clone() },
        ];
        let count = false_resets.len() as u64;
        pair.deliver_to_executor(false_resets.map(|lie| lie.encode()));
        assert_eq!(pair.executor.stats().refused_records, count);
        assert_eq!(pair.recv_request(), None);
        pair.deliver_to_executor([wire]);
        assert_eq!(pair.recv_request().expect("it arrived"), "true");

        let (_, down) = pair.pass_without_network(ACK_DELAY);
        let ack = frame(&down[0]);
        let false_resets = [
            Frame { ack: Ack { up_to: 0, bits: 0 }, ..ack.clone() },
            Frame { credit: ack.credit + 1, ..ack.clone() },
            Frame { proof: None, ..ack.clone() },
            Frame { body: Body::Heartbeat, ..ack.clone() },
            Frame { body: Body::Resume { next_seq: 2 }, ..ack.clone() },
            Frame { body: Body::Reset { reason: "finished".to_owned() }, ..ack.clone() },
        ];
        let count = false_resets.len() as u64;
        pair.deliver_to_orchestrator(false_resets.map(|lie| lie.encode()));
        assert_eq!(pair.orchestrator.stats().refused_control, count);
        pair.deliver_to_orchestrator([ack.encode()]);
        pair.deliver_to_orchestrator([ack.encode()]);
        assert_eq!(pair.orchestrator.stats().refused_control, count + 1, "a replay");
        let (up, _) = pair.pass_without_network(Duration::from_secs(30));
        assert_eq!(kinds(&up), [""; 0], "the true ack counted");
    }
}

#[test]
fn record_of_another_stream_is_refused() {
    let mut pair = ours();
    let first = (pair.at_orchestrator, pair.at_executor);
    pair.connect("other", Profile::RendezHybridIkV1);
    pair.exchange();
    pair.authorize_all();
    pair.exchange();
    pair.send_request("for the other").expect("it is open");
    let mut spliced = frame(&pair.drain_orchestrator()[0]);
    spliced.stream = stream(STREAM);
    pair.deliver_to_executor([spliced.encode()]);
    (pair.at_orchestrator, pair.at_executor) = first;
    assert_eq!(pair.recv_request(), None);
    assert_eq!(pair.executor.stats().refused_records, 1);
}

#[test]
fn unproven_reset_does_not_end_stream() {
    let mut pair = ours();
    for reason in ResetReason::ALL {
        pair.deliver_to_orchestrator([reset(reason)]);
        pair.deliver_to_executor([reset(reason)]);
        pair.exchange();
    }
    pair.pass(RTO_MAX);
    assert_eq!(closed(pair.orchestrator_events()), None);
    assert_eq!(closed(pair.executor_events()), None);
    pair.send_request("still there?").expect("it is open");
    pair.exchange();
    assert_eq!(pair.recv_request().expect("it arrived"), "still there?");
}

#[test]
fn relay_hint_pauses_records_until_peer_answers() {
    let mut pair = ours();
    pair.deliver_to_orchestrator([reset(ResetReason::ExecutorGone)]);
    pair.send_request("into the void?").expect("it is queued");
    assert_eq!(kinds(&pair.drain_orchestrator()), [""; 0]);
    let (up, _) = pair.pass_without_network(Duration::from_secs(20));
    assert!(up.len() >= 2 && kinds(&up).iter().all(|kind| kind == "resume 1"), "{up:?}");
    pair.deliver_to_executor(up);
    pair.exchange();
    assert_eq!(pair.recv_request().expect("it arrived"), "into the void?");
}

#[test]
fn new_socket_resumes_lost_records() {
    for profile in OURS {
        for lost_at_executor in [true, false] {
            let mut pair = open(profile);
            pair.send_request("question").expect("it is open");
            pair.send_response("answer").expect("it is open");
            let _ = (pair.drain_executor(), pair.drain_orchestrator()); // lost with the socket
            let mux = if lost_at_executor { &mut pair.executor } else { &mut pair.orchestrator };
            mux.socket_lost(pair.now);
            assert_eq!(mux.poll_transmit(pair.now, RECORD_PLAINTEXT_MAX_BYTES), None);
            mux.socket_opened(pair.now, registration("reg-2"));
            pair.exchange();
            assert_eq!(pair.recv_request().expect("it arrived"), "question");
            assert_eq!(pair.recv_response().expect("it arrived"), "answer");
            assert_eq!(pair.recv_request(), None);
            assert_eq!(pair.recv_response(), None);
        }
    }
}

#[test]
fn lost_resume_is_resent() {
    let mut pair = ours();
    pair.send_response("for you").expect("it is open");
    let _ = pair.drain_executor();
    pair.orchestrator.socket_lost(pair.now);
    pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
    let first = pair.drain_orchestrator();
    let (again, _) = pair.pass_without_network(RTO_INITIAL);
    assert_eq!(kinds(&first), ["resume 1"]);
    assert_eq!(kinds(&again), ["resume 1"]);
    pair.deliver_to_executor(again);
    pair.exchange();
    assert_eq!(pair.recv_response().expect("it arrived"), "for you");
    pair.deliver_to_executor(first.clone());
    pair.exchange();
    assert_eq!(pair.recv_response(), None, "late, and nothing was missing");
    assert_eq!(pair.executor.stats().refused_control, 0);
    pair.deliver_to_executor(first);
    assert_eq!(pair.executor.stats().refused_control, 1, "taken once");
}

#[test]
fn stream_outlives_socket_for_its_grace() {
    let mut pair = ours();
    pair.executor.socket_lost(pair.now);
    pair.orchestrator.socket_lost(pair.now);
    pair.send_request("queued").expect("it is queued");
    pair.pass(STREAM_GRACE - Duration::from_millis(1));
    assert_eq!(closed(pair.orchestrator_events()), None);
    pair.pass(Duration::from_millis(1));
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Lost));
    assert_eq!(closed(pair.executor_events()), Some(Closed::Lost));
    assert_eq!(pair.executor.poll_timeout(), None);
}

/// The simulator's seed 8608: a relay lets acknowledgements overtake, and the
/// overtaken end of a stream looked like a replay.
#[test]
fn finish_overtaken_by_ack_is_accepted() {
    let mut pair = open(Profile::RendezHybridIkV1);
    pair.send_response("x").expect("it is open");
    let record = pair.drain_executor();
    let key = pair.at_orchestrator.expect("it is open");
    pair.orchestrator.close(pair.now, key);
    let mut wires = pair.drain_orchestrator();
    pair.deliver_to_orchestrator(record);
    pair.now += ACK_DELAY;
    pair.orchestrator.handle_timeout(pair.now);
    wires.splice(0..0, pair.drain_orchestrator());
    assert_eq!(kinds(&wires), ["ack", "reset finished"]);
    // each is accepted once, in any order
    pair.deliver_to_executor([wires[0].clone(), wires[0].clone()]);
    assert_eq!(pair.executor.stats().refused_control, 1);
    pair.deliver_to_executor(wires);
    assert_eq!(pair.executor.stats().refused_control, 2);
    assert_eq!(closed(pair.executor_events()), Some(Closed::Finished));
}

/// The simulator's seed 1028788: an orchestrator slept while its executor gave
/// up. The first frame it read after waking was an old resume; it answered that
/// and then waited forever.
#[test]
fn old_resume_still_reveals_unknown_stream() {
    let mut pair = open(Profile::RendezHybridIkV1);
    pair.executor.socket_lost(pair.now);
    pair.executor.socket_opened(pair.now, registration("reg-1"));
    let old = pair.drain_executor();
    assert_eq!(kinds(&old), ["resume 1"]);
    pair.now += STREAM_GRACE;
    pair.executor.handle_timeout(pair.now);
    assert_eq!(closed(pair.executor_events()), Some(Closed::Lost));
    pair.deliver_to_orchestrator([reset(ResetReason::ExecutorGone)]);
    pair.deliver_to_orchestrator(old);
    pair.exchange();
    let why = closed(pair.orchestrator_events());
    assert_eq!(why, Some(Closed::Reset(ResetReason::UnknownStream)));
}

#[test]
fn flapping_sockets_do_not_extend_grace() {
    let mut pair = ours();
    for _ in 0..9 {
        pair.orchestrator.socket_lost(pair.now);
        pair.pass_without_network(STREAM_GRACE / 20);
        pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
        pair.pass_without_network(STREAM_GRACE / 20);
    }
    assert_eq!(closed(pair.orchestrator_events()), None);
    pair.pass_without_network(STREAM_GRACE / 10);
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Lost));
}

#[test]
fn silent_peer_is_probed_until_grace_ends() {
    let mut pair = ours();
    pair.send_request("hello?").expect("it is open");
    let (up, _) = pair.pass_without_network(Duration::from_secs(60));
    let kinds = kinds(&up);
    let records = kinds.iter().filter(|kind| *kind == "data 1").count();
    assert_eq!(records, 4, "{kinds:?}");
    assert_eq!(kinds.last().map(String::as_str), Some("resume 1"));
    pair.pass_without_network(STREAM_GRACE);
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Lost));
}

#[test]
fn restarted_executor_ends_the_stream() {
    let mut pair = ours();
    pair.send_request("do you know me?").expect("it is open");
    let mut fresh = crate::pair::pair();
    std::mem::swap(&mut pair.executor, &mut fresh.executor);
    pair.exchange();
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Reset(ResetReason::UnknownStream)));
}

#[test]
fn close_delivers_everything_first() {
    for profile in OURS {
        let mut pair = open(profile);
        let key = pair.at_orchestrator.expect("there is a stream");
        pair.send_request("last words").expect("it is open");
        pair.orchestrator.close(pair.now, key);
        assert_eq!(pair.send_request("more"), Err(SendError::Closed(Closed::Finished)));
        let lost = pair.drain_orchestrator();
        assert_eq!(kinds(&lost), ["data 1"]);
        assert_eq!(closed(pair.orchestrator_events()), None);
        pair.pass(RTO_INITIAL + ACK_DELAY);
        assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Finished));
        assert_eq!(pair.recv_request().expect("it arrived"), "last words");
        assert_eq!(closed(pair.executor_events()), Some(Closed::Finished));
        assert_eq!(pair.orchestrator.poll_timeout(), None, "nothing lingers");
    }
}

#[test]
fn unanswered_finish_is_resent() {
    let mut pair = ours();
    let key = pair.at_executor.expect("there is a stream");
    pair.executor.close(pair.now, key);
    let first = pair.drain_executor();
    assert_eq!(kinds(&first), ["reset finished"]);
    assert!(frame(&first[0]).proof.is_some());
    assert_eq!(closed(pair.executor_events()), Some(Closed::Finished));
    let (_, again) = pair.pass_without_network(Duration::from_secs(30));
    assert_eq!(kinds(&again), ["reset finished"; 2]);
    assert_eq!(pair.executor.poll_timeout(), None);
    assert_eq!(pair.executor_events(), [], "reported once");
    pair.deliver_to_orchestrator([again[1].clone()]);
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Finished));
}

#[test]
fn finish_is_announced_again_to_a_peer_that_resumes() {
    let mut pair = ours();
    pair.orchestrator.socket_lost(pair.now);
    pair.executor.close(pair.now, pair.at_executor.expect("there is a stream"));
    let mut sent = pair.drain_executor();
    while sent.len() < 3 {
        sent.extend(pair.pass_without_network(Duration::from_millis(100)).1);
    }
    pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
    let resume = pair.drain_orchestrator();
    pair.deliver_to_executor(resume);
    pair.exchange();
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Finished));
}

#[test]
fn announced_finish_ends_with_the_socket() {
    let mut pair = ours();
    pair.executor.close(pair.now, pair.at_executor.expect("there is a stream"));
    assert_eq!(kinds(&pair.drain_executor()), ["reset finished"]);
    pair.executor.socket_lost(pair.now);
    assert_eq!(pair.executor.poll_timeout(), None);
}

#[test]
fn closed_stream_drops_unread_messages() {
    let mut pair = ours();
    pair.send_response("unread").expect("it is open");
    pair.exchange();
    let key = pair.at_orchestrator.expect("there is a stream");
    pair.orchestrator.close(pair.now, key);
    pair.executor.close(pair.now, pair.at_executor.expect("there is a stream"));
    pair.exchange();
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Finished));
    pair.pass(Duration::from_secs(30));
    for n in 0..STREAMS_PER_EXECUTOR {
        pair.connect(&format!("s{n}"), Profile::RendezIkV1); // panics without a free slot
    }
}

#[test]
fn stalled_reader_blocks_writer_until_it_reads() {
    let mut pair = ours();
    let key = pair.at_orchestrator.expect("there is a stream");
    let message = Bytes::from(vec![9; 100_000]);
    let mut sent = 0;
    while pair.orchestrator.send(key, &message).is_ok() {
        sent += 1;
        pair.exchange();
        pair.pass(ACK_DELAY);
        assert!(sent < 1000, "no backpressure");
    }
    let unread = pair.executor.stats().bytes_in as usize;
    let most = RECEIVE_BUFFER + message.len() + 4;
    assert!((RECEIVE_BUFFER / 2..=most).contains(&unread), "{unread}");
    assert!(pair.executor.wants_read(), "one stream does not stop the others");
    // the frame that restores the credit is lost, and requested again
    while pair.recv_request().is_some() {}
    let _ = pair.drain_executor();
    pair.pass(RTO_MAX * 2);
    while pair.recv_request().is_some() {}
    pair.pass(RTO_MAX);
    assert!(pair.executor.stats().bytes_in as usize > sent * message.len());
    assert!(pair.orchestrator_events().contains(&Event::Writable { key }));
}

/// The simulator's seed 900188066: a writer without credit asked for more for ever,
/// although its peer had given the stream up.
#[test]
fn writer_without_credit_notices_that_its_peer_is_gone() {
    let mut pair = ours();
    let key = pair.at_orchestrator.expect("there is a stream");
    let message = Bytes::from(vec![9; 100_000]);
    while pair.orchestrator.send(key, &message).is_ok() {
        pair.exchange();
        pair.pass(ACK_DELAY);
    }
    // Nothing is in flight, and the executor is gone.
    pair.pass_without_network(10 * RTO_MAX + STREAM_GRACE);
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Lost));
    assert_eq!(pair.orchestrator.poll_timeout(), None);
}

#[test]
fn message_larger_than_all_buffers_arrives() {
    let mut pair = ours();
    let key = pair.at_orchestrator.expect("there is a stream");
    let message = Bytes::from(vec![3; 3 * RECEIVE_BUFFER]);
    pair.orchestrator.send(key, &message).expect("an empty queue takes it");
    pair.exchange();
    assert_eq!(pair.recv_request(), Some(message));
}

#[test]
fn streams_send_records_in_turn() {
    let mut pair = ours();
    let first = pair.at_orchestrator.expect("there is a stream");
    let second = pair.connect("other", Profile::RendezHybridIkV1);
    pair.exchange();
    pair.authorize_all();
    pair.exchange();
    let message = Bytes::from(vec![1; 300_000]);
    for key in [first, second] {
        pair.orchestrator.send(key, &message).expect("there is room");
    }
    let streams: Vec<String> = pair
        .drain_orchestrator()
        .iter()
        .map(|wire| frame(wire).stream.as_str().to_owned())
        .collect();
    assert_eq!(streams.len(), 10);
    assert!(streams.windows(2).all(|two| two[0] != two[1]), "{streams:?}");
}

#[test]
fn proof_covers_the_whole_frame() {
    let mut pair = ours();
    pair.orchestrator.socket_lost(pair.now);
    pair.orchestrator.socket_opened(pair.now, registration("reg-1"));
    let resume = frame(&pair.drain_orchestrator()[0]);
    pair.executor.close(pair.now, pair.at_executor.expect("there is a stream"));
    let end = frame(&pair.drain_executor()[0]);

    let next_seq = Body::Resume { next_seq: 7 };
    pair.deliver_to_executor([Frame { body: next_seq, ..resume.clone() }.encode()]);
    assert_eq!(pair.executor.stats().refused_control, 1);
    pair.deliver_to_executor([resume.encode()]);
    assert_eq!(pair.executor.stats().refused_control, 1);

    let reason = Body::Reset { reason: "overloaded".to_owned() };
    pair.deliver_to_orchestrator([Frame { body: reason, ..end.clone() }.encode()]);
    assert_eq!(pair.orchestrator.stats().refused_control, 1);
    assert_eq!(closed(pair.orchestrator_events()), None);
    pair.deliver_to_orchestrator([end.encode()]);
    assert_eq!(closed(pair.orchestrator_events()), Some(Closed::Finished));
}

#[test]
fn unanswered_probe_requests_one_ping() {
    let mut pair = ours();
    assert!(pair.orchestrator.can_resume() && !pair.orchestrator.poll_ping());
    pair.send_request("lost").expect("it is open");
    pair.pass_without_network(RTO_INITIAL);
    assert!(!pair.orchestrator.poll_ping(), "one timeout is no reason to ping");
    pair.pass_without_network(RTO_MAX * 2);
    assert!(pair.orchestrator.poll_ping());
    assert!(!pair.orchestrator.poll_ping());
    pair.pass_without_network(RTO_MAX * 2);
    assert!(!pair.orchestrator.poll_ping(), "already requested");
    assert!(!open(Profile::NoiseHybridIkV1).orchestrator.can_resume());
}
