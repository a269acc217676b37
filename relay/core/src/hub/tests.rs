//! The hub's invariants, one test each, and random operations against all.

use std::time::Duration;

use proptest::prelude::*;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::Seq;

use super::*;
use crate::claim::RESET_LINGER;
use crate::hub::routing::STREAMS_PER_ORCHESTRATOR;
use crate::lane::FRAME_COST_BYTES;
use crate::overflow::LANE_MAX_BYTES;
use crate::testing::t0;

pub(super) const STOCK: Capabilities = Capabilities { resends: false };
pub(super) const OURS: Capabilities = Capabilities { resends: true };

fn alice() -> KeyFingerprint {
    KeyFingerprint([1; 32])
}

fn bob() -> KeyFingerprint {
    KeyFingerprint([2; 32])
}

pub(super) fn frame(stream: &str, body: Body) -> Bytes {
    Frame::bare(stream.parse().unwrap(), body).encode()
}

pub(super) fn data(stream: &str, seq: u32, len: usize) -> Bytes {
    frame(stream, Body::Data { seq: Seq(seq), record: vec![7; len].into() })
}

fn ack(stream: &str) -> Bytes {
    frame(stream, Body::Ack)
}

pub(super) fn reset_of(message: &Bytes) -> Option<ResetReason> {
    match Frame::decode(message.clone()).unwrap().body {
        Body::Reset { reason } => Some(ResetReason::parse(&reason)),
        _ => None,
    }
}

/// A hub with an executor and helpers that read like the shell.
pub(super) struct Bench {
    pub(super) hub: Hub,
    pub(super) executor: PortKey,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(HubAccounts::default())
    }

    pub(super) fn with(accounts: HubAccounts) -> Self {
        let mut hub = Hub::new(accounts);
        let executor = hub.join_executor(Generation(1), Arc::default(), t0()).unwrap();
        Self { hub, executor }
    }

    fn orchestrator(&mut self, fingerprint: KeyFingerprint, capabilities: Capabilities) -> PortKey {
        self.hub.join_orchestrator(fingerprint, capabilities, Arc::default()).unwrap()
    }

    pub(super) fn send(&mut self, from: PortKey, message: &Bytes) {
        self.hub.handle_message(from, message.clone(), t0()).unwrap();
    }

    pub(super) fn drain(&mut self, port: PortKey) -> Vec<Bytes> {
        std::iter::from_fn(|| self.hub.poll_transmit(port)).collect()
    }

    fn woken(&mut self) -> Vec<PortKey> {
        std::iter::from_fn(|| self.hub.poll_wake()).collect()
    }
}

#[test]
fn frames_are_forwarded_unchanged() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    let mut message = data("s", 1, 10_000).to_vec();
    message.extend([0xaa, 0x06, 0x01, 0xff]); // a field from the future
    let message = Bytes::from(message);
    b.send(a, &message);
    assert_eq!(b.woken(), [b.executor]);
    let out = b.drain(b.executor);
    assert_eq!(out.len(), 1);
    assert_eq!(out[0].as_ptr(), message.as_ptr(), "forwarded without a copy");
    b.send(b.executor, &data("s", 1, 20));
    assert_eq!(b.woken(), [a]);
    assert_eq!(b.drain(a), [data("s", 1, 20)]);
}

#[test]
fn stream_id_is_not_a_capability() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    let thief = b.orchestrator(bob(), OURS);
    b.send(a, &data("s", 1, 1));
    b.drain(b.executor);
    b.send(thief, &data("s", 2, 1));
    assert_eq!(b.drain(b.executor), [] as [Bytes; 0], "nothing reached the executor");
    assert_eq!(b.hub.stats().dropped(Dropped::ForeignStream), 1);
    let told = b.drain(thief);
    assert_eq!(reset_of(&told[0]), Some(ResetReason::StreamInUse));
    // answers still go to the owner
    b.send(b.executor, &data("s", 1, 1));
    assert_eq!(b.drain(thief), [] as [Bytes; 0]);
    assert_eq!(b.drain(a), [data("s", 1, 1)]);
    // the thief does not get the stream within the grace period either
    b.hub.leave(a, t0());
    b.send(thief, &data("s", 2, 1));
    assert_eq!(b.hub.stats().dropped(Dropped::ForeignStream), 2);
}

#[test]
fn orchestrator_moves_its_stream_to_another_websocket() {
    let mut b = Bench::new();
    let old = b.orchestrator(alice(), OURS);
    b.send(old, &data("s", 1, 1));
    b.drain(b.executor);
    b.hub.leave(old, t0());
    assert_eq!(
        b.drain(b.executor).iter().map(reset_of).collect::<Vec<_>>(),
        [Some(ResetReason::OrchestratorGone)]
    );
    b.send(b.executor, &data("s", 1, 1));
    assert_eq!(b.hub.stats().dropped(Dropped::PeerAway), 1);
    let new = b.orchestrator(alice(), OURS);
    b.send(new, &frame("s", Body::Resume { next_seq: 1 }));
    assert_eq!(b.drain(b.executor).len(), 1);
    b.send(b.executor, &data("s", 1, 1));
    assert_eq!(b.drain(new), [data("s", 1, 1)]);
    // also while the loss of the old websocket is not noticed
    let newer = b.orchestrator(alice(), OURS);
    b.send(newer, &frame("s", Body::Resume { next_seq: 2 }));
    b.send(b.executor, &data("s", 2, 1));
    assert_eq!(b.drain(newer), [data("s", 2, 1)]);
    b.hub.leave(new, t0());
    b.send(b.executor, &data("s", 3, 1));
    assert_eq!(b.drain(newer), [data("s", 3, 1)]);
}

#[test]
fn claim_is_removed_after_its_grace() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    b.send(a, &data("s", 1, 1));
    b.hub.leave(a, t0());
    b.drain(b.executor);
    assert_eq!(b.hub.poll_timeout(), Some(t0() + limits::STREAM_GRACE));
    b.hub.handle_timeout(t0() + limits::STREAM_GRACE - Duration::from_millis(1));
    assert_eq!(b.hub.streams(), 1);
    b.hub.handle_timeout(t0() + limits::STREAM_GRACE);
    assert_eq!(b.hub.streams(), 0);
}

#[test]
fn stock_stream_ends_with_either_websocket() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), STOCK);
    b.send(a, &data("s", 1, 1));
    b.hub.leave(a, t0());
    let out = b.drain(b.executor);
    assert_eq!(out[0], data("s", 1, 1), "what came before the end is delivered");
    assert_eq!(reset_of(&out[1]), Some(ResetReason::OrchestratorGone));
    assert_eq!(b.hub.streams(), 0);

    let a = b.orchestrator(alice(), STOCK);
    b.send(a, &data("t", 1, 1));
    b.send(b.executor, &data("t", 1, 1));
    b.hub.leave(b.executor, t0());
    let out = b.drain(a);
    assert_eq!(out[0], data("t", 1, 1));
    assert_eq!(reset_of(&out[1]), Some(ResetReason::ExecutorGone));
    assert_eq!(b.hub.streams(), 0);
    // and the next try is reset at once
    b.send(a, &data("u", 1, 1));
    assert_eq!(reset_of(&b.drain(a)[0]), Some(ResetReason::ExecutorGone));
}

#[test]
fn newest_registration_supersedes_older_ones() {
    let mut b = Bench::new();
    let newer = b.hub.join_executor(Generation(2), Arc::default(), t0()).unwrap();
    assert!(!b.hub.is_joined(b.executor));
    assert!(b.woken().contains(&b.executor), "its driver is woken");
    assert_eq!(
        b.hub.join_executor(Generation(1), Arc::default(), t0()),
        Err(JoinError::Stale { offered: Generation(1), current: Generation(2) })
    );
    // a second websocket of the same registration replaces the first
    let again = b.hub.join_executor(Generation(2), Arc::default(), t0()).unwrap();
    assert!(!b.hub.is_joined(newer));
    assert!(b.hub.is_joined(again));
    // a late leave of the old driver changes nothing
    b.hub.leave(newer, t0());
    assert!(b.hub.has_executor());
}

#[test]
fn malformed_frame_closes_only_an_orchestrator() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    let junk = Bytes::from_static(b"\xff\xff");
    assert!(b.hub.handle_message(a, junk.clone(), t0()).is_err());
    assert!(b.hub.handle_message(b.executor, junk, t0()).is_ok());
    assert_eq!(b.hub.stats().dropped(Dropped::Malformed), 2);
    assert!(b.hub.is_joined(b.executor));
}

#[test]
fn full_lane_stops_only_its_orchestrator() {
    let mut b = Bench::new();
    let flood = b.orchestrator(alice(), STOCK);
    let quiet = b.orchestrator(bob(), STOCK);
    let mut sent = 0;
    while b.hub.wants_read(flood) {
        b.send(flood, &data("flood", sent, 60_000));
        sent += 1;
    }
    assert!(sent as usize * 60_000 <= LANE_MAX_BYTES);
    assert!(b.hub.wants_read(quiet) && b.hub.wants_read(b.executor));
    // fairness: the 100 small frames of the quiet one go out within their share
    for seq in 0..100 {
        b.send(quiet, &data("quiet", seq, 200));
    }
    b.woken();
    let mut quiet_out = 0;
    let mut popped = 0;
    while quiet_out < 100 {
        let out = Frame::decode(b.hub.poll_transmit(b.executor).unwrap()).unwrap();
        popped += 1;
        quiet_out += usize::from(out.stream.as_str() == "quiet");
    }
    assert!(popped <= 102, "the flood took {} turns", popped - 100);
    // nothing is lost, and reading resumes with room to spare
    let rest = b.drain(b.executor).len();
    assert_eq!(popped + rest, 100 + sent as usize);
    assert!(b.hub.wants_read(flood));
    assert!(b.woken().contains(&flood));
}

#[test]
fn moved_stream_keeps_its_full_lane() {
    let mut b = Bench::new();
    let ports = [b.orchestrator(alice(), OURS), b.orchestrator(alice(), OURS)];
    let mut seq = 0;
    let mut send = |b: &mut Bench, from| {
        b.send(from, &data("s", seq, 240_000));
        seq += 1;
    };
    while b.hub.wants_read(ports[0]) {
        send(&mut b, ports[0]);
    }
    // each takes the stream over from the other, which may read again then
    for turn in 1..=20 {
        assert!(b.hub.wants_read(ports[turn % 2]));
        send(&mut b, ports[turn % 2]);
        assert!(!b.hub.wants_read(ports[turn % 2]), "not read because of the full lane");
    }
    b.hub.leave(ports[0], t0());
    for _ in 0..20 {
        let next = b.orchestrator(alice(), OURS);
        send(&mut b, next);
        b.hub.leave(next, t0());
    }
    let waiting: usize = b.drain(b.executor).iter().map(Bytes::len).sum();
    assert!(waiting <= LANE_MAX_BYTES, "{waiting} bytes wait");
    assert!(b.hub.stats().dropped(Dropped::LaneFull) >= 39);
}

#[test]
fn slow_reader_sheds_only_its_own_frames() {
    let mut b = Bench::new();
    let slow = b.orchestrator(alice(), OURS);
    let quick = b.orchestrator(bob(), OURS);
    b.send(slow, &ack("slow"));
    b.send(quick, &ack("quick"));
    for seq in 0..200 {
        assert!(b.hub.wants_read(b.executor));
        b.send(b.executor, &data("slow", seq, 60_000));
        b.send(b.executor, &data("quick", seq, 100));
        assert_eq!(b.drain(quick), [data("quick", seq, 100)]);
    }
    let kept = b.drain(slow);
    assert!(kept.iter().map(Bytes::len).sum::<usize>() <= LANE_MAX_BYTES);
    for (seq, message) in kept.iter().enumerate() {
        assert_eq!(*message, data("slow", seq as u32, 60_000), "the oldest are kept, in order");
    }
    assert_eq!(b.hub.stats().dropped(Dropped::LaneFull), 200 - kept.len() as u64);
}

#[test]
fn slow_stock_reader_is_reset_after_stall() {
    let mut b = Bench::new();
    let slow = b.orchestrator(alice(), STOCK);
    let quick = b.orchestrator(bob(), STOCK);
    b.send(slow, &data("slow", 0, 1));
    b.send(quick, &data("quick", 0, 1));
    b.drain(b.executor);
    let mut sent = 0;
    while b.hub.wants_read(b.executor) {
        b.send(b.executor, &data("slow", sent, 60_000));
        sent += 1;
    }
    // reading in time loses nothing
    assert_eq!(b.drain(slow).len(), sent as usize);
    assert!(b.hub.wants_read(b.executor));
    assert_eq!(b.hub.poll_timeout(), None);
    // not reading costs the stream, not the others
    while b.hub.wants_read(b.executor) {
        b.send(b.executor, &data("slow", sent, 60_000));
    }
    b.hub.handle_timeout(t0() + limits::STALL_MAX);
    assert!(b.hub.wants_read(b.executor));
    assert_eq!(
        b.drain(slow).iter().map(reset_of).collect::<Vec<_>>(),
        [Some(ResetReason::Overloaded)]
    );
    assert_eq!(
        b.drain(b.executor).iter().map(reset_of).collect::<Vec<_>>(),
        [Some(ResetReason::Overloaded)]
    );
    assert_eq!(b.hub.stats().resets(ResetReason::Overloaded), 2);
    b.send(b.executor, &data("quick", 1, 1));
    assert_eq!(b.drain(quick), [data("quick", 1, 1)]);
}

#[test]
fn only_acks_overtake_data() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    let reset = frame("s", Body::Reset { reason: "finished".into() });
    for message in [data("s", 1, 9), reset.clone(), ack("s")] {
        b.send(a, &message);
    }
    assert_eq!(b.drain(b.executor), [ack("s"), data("s", 1, 9), reset]);
}

#[test]
fn newer_ack_replaces_older_one() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    let numbered = |up_to| {
        let mut ack = Frame::bare("s".parse().unwrap(), Body::Ack);
        ack.ack.up_to = up_to;
        ack.encode()
    };
    let heartbeat = frame("s", Body::Heartbeat);
    for message in [numbered(1), heartbeat.clone(), numbered(2), ack("t")] {
        b.send(a, &message);
    }
    // an ack does not replace the question for one
    assert_eq!(b.drain(b.executor), [numbered(2), ack("t"), heartbeat]);
    assert_eq!(b.hub.stats().dropped(Dropped::ExpressFull), 1);
}

#[test]
fn flood_of_acks_leaves_lanes_half() {
    let mut b = Bench::new();
    let flood = b.orchestrator(alice(), OURS);
    let quiet = b.orchestrator(bob(), OURS);
    for seq in 0..100 {
        b.send(quiet, &data("quiet", seq, 2_000));
    }
    // every frame that leaves is followed by acks of all the flood's streams
    let (mut acks, mut lanes) = (0, 0);
    while lanes < 100 {
        for stream in 0..32 {
            b.send(flood, &ack(&format!("flood {stream}")));
        }
        let out = Frame::decode(b.hub.poll_transmit(b.executor).unwrap()).unwrap();
        match out.body {
            Body::Ack => acks += out.encode().len() + FRAME_COST_BYTES,
            _ => lanes += 1,
        }
        assert!(acks <= 66_000 + lanes * 2_100, "{acks} bytes of acks for {lanes} frames");
    }
    // an ack does not wait for the lanes of others
    b.send(quiet, &data("quiet", 100, 60_000));
    b.drain(b.executor);
    for seq in 101..110 {
        b.send(quiet, &data("quiet", seq, 60_000));
    }
    b.send(flood, &ack("flood 0"));
    assert_eq!(b.hub.poll_transmit(b.executor), Some(ack("flood 0")));
}

#[test]
fn reset_removes_claim_when_answered_or_expired() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    let reset = |stream| frame(stream, Body::Reset { reason: "x".into() });
    for stream in ["answered", "not answered"] {
        b.send(a, &data(stream, 1, 1));
        b.send(a, &reset(stream));
        b.send(b.executor, &data(stream, 1, 1));
    }
    b.drain(b.executor);
    assert_eq!(b.drain(a).len(), 2, "what was under way still arrives");
    b.send(b.executor, &reset("answered"));
    assert_eq!(b.hub.streams(), 2);
    assert_eq!(b.drain(a).iter().map(reset_of).collect::<Vec<_>>(), [Some(ResetReason::Other)]);
    assert_eq!(b.hub.streams(), 1);
    assert_eq!(b.hub.poll_timeout(), Some(t0() + RESET_LINGER));
    b.hub.handle_timeout(t0() + RESET_LINGER);
    assert_eq!(b.hub.streams(), 0);
    b.send(b.executor, &data("answered", 2, 1));
    assert_eq!(b.hub.stats().dropped(Dropped::UnknownStream), 1);
}

/// The simulator's seed 1425: an executor that took over for a moment reset a
/// stream that it did not know, and its own executor came back. When that one
/// left two minutes later, the orchestrator got no reset.
#[test]
fn stream_resumed_after_reset_keeps_its_claim() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    b.send(a, &data("s", 1, 1));
    b.send(b.executor, &frame("s", Body::Reset { reason: "x".into() }));
    b.send(b.executor, &frame("s", Body::Resume { next_seq: 2 }));
    assert_eq!(b.hub.poll_timeout(), None);
    b.hub.handle_timeout(t0() + RESET_LINGER);
    assert_eq!(b.hub.streams(), 1);
    b.drain(a);
    b.hub.leave(b.executor, t0());
    assert_eq!(
        b.drain(a).iter().map(reset_of).collect::<Vec<_>>(),
        [Some(ResetReason::ExecutorGone)]
    );
}

#[test]
fn ended_streams_do_not_count() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    for i in 0..STREAMS_PER_ORCHESTRATOR * 3 {
        let stream = format!("s{i}");
        b.send(a, &data(&stream, 1, 1));
        b.send(a, &frame(&stream, Body::Reset { reason: "x".into() }));
        b.drain(b.executor);
    }
    assert_eq!(b.hub.stats().dropped(Dropped::TooManyStreams), 0);
}

#[test]
fn streams_and_orchestrators_are_bounded() {
    let mut b = Bench::new();
    let a = b.orchestrator(alice(), OURS);
    for i in 0..STREAMS_PER_ORCHESTRATOR {
        b.send(a, &data(&format!("s{i}"), 1, 1));
    }
    b.send(a, &data("one more", 1, 1));
    assert_eq!(b.hub.streams(), STREAMS_PER_ORCHESTRATOR);
    assert_eq!(reset_of(&b.drain(a)[0]), Some(ResetReason::Overloaded));
    for _ in 1..limits::ORCHESTRATORS_PER_EXECUTOR {
        b.orchestrator(bob(), OURS);
    }
    assert_eq!(
        b.hub.join_orchestrator(bob(), OURS, Arc::default()),
        Err(JoinError::TooManyOrchestrators)
    );
}

#[derive(Debug, Clone)]
enum Op {
    Join { who: u8, resends: bool },
    Leave(prop::sample::Index),
    JoinExecutor { newer: bool },
    Send { port: prop::sample::Index, stream: u8, len: usize, kind: u8 },
    Drain { port: prop::sample::Index, frames: usize },
    Advance(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    let port = any::<prop::sample::Index>;
    prop_oneof![
        1 => (0..3u8, any::<bool>()).prop_map(|(who, resends)| Op::Join { who, resends }),
        1 => port().prop_map(Op::Leave),
        1 => any::<bool>().prop_map(|newer| Op::JoinExecutor { newer }),
        20 => (port(), 0..5u8, prop_oneof![Just(10usize), Just(200_000)], 0..10u8)
            .prop_map(|(port, stream, len, kind)| Op::Send { port, stream, len, kind }),
        8 => (port(), 0..100usize).prop_map(|(port, frames)| Op::Drain { port, frames }),
        1 => (0..120_000u64).prop_map(Op::Advance),
    ]
}

proptest! {
    /// Lanes stay bounded, frames of a stream leave in the order in which they
    /// came, and a drained hub reads all ports.
    #[test]
    fn random_operations_keep_the_invariants(ops in proptest::collection::vec(any_op(), 1..300)) {
        // little memory, so that it runs out
        let quota = Quota { memory_bytes: 1024 * 1024, ..Quota::UNLIMITED };
        let environment = Account::new(quota);
        let tokens: [Arc<Account>; 3] = Default::default();
        let accounts = HubAccounts { environment: environment.clone(), ..HubAccounts::default() };
        let mut b = Bench::with(accounts);
        let mut generation = 1;
        let mut ports = vec![b.executor];
        let mut now = t0();
        let mut seq = 0;
        let mut last_out = std::collections::BTreeMap::new();
        let mut check_order = |port: PortKey, message: Bytes| {
            if let Body::Data { seq, .. } = Frame::decode(message.clone()).unwrap().body {
                let stream = Frame::decode(message).unwrap().stream;
                let last = last_out.insert((port.epoch, stream), seq);
                assert!(last.is_none_or(|last| last < seq), "reordered");
            }
        };
        for op in ops {
            match op {
                Op::Join { who, resends } => {
                    let capabilities = Capabilities { resends };
                    ports.push(b.hub.join_orchestrator(KeyFingerprint([who; 32]), capabilities, tokens[who as usize].clone()).unwrap());
                }
                Op::Leave(port) => b.hub.leave(ports[port.index(ports.len())], now),
                Op::JoinExecutor { newer } => {
                    generation += u64::from(newer);
                    ports.push(b.hub.join_executor(Generation(generation), Arc::default(), now).unwrap());
                }
                Op::Send { port, stream, len, kind } => {
                    let port = ports[port.index(ports.len())];
                    if b.hub.wants_read(port) {
                        seq += 1;
                        let stream = format!("s{stream}");
                        let message = match kind {
                            0 => ack(&stream),
                            1 => frame(&stream, Body::Reset { reason: "x".into() }),
                            _ => data(&stream, seq, len),
                        };
                        b.hub.handle_message(port, message, now).unwrap();
                    }
                }
                Op::Drain { port, frames } => {
                    let port = ports[port.index(ports.len())];
                    for _ in 0..frames {
                        match b.hub.poll_transmit(port) {
                            Some(message) => check_order(port, message),
                            None => break,
                        }
                    }
                }
                Op::Advance(ms) => {
                    now += Duration::from_millis(ms);
                    b.hub.handle_timeout(now);
                }
            }
            let mut waiting = 0;
            for claim in b.hub.claims.iter() {
                let lanes = [Direction::ToExecutor, Direction::ToOrchestrator];
                let lanes = lanes.map(|direction| claim.lane(direction));
                waiting += lanes.iter().map(|lane| lane.bytes() + lane.overtaking_bytes()).sum::<usize>();
                waiting += claim.handshake().cost();
                for lane in lanes {
                    prop_assert!(lane.bytes() <= LANE_MAX_BYTES);
                }
            }
            let resets = |executor: bool| {
                let of_side = b.hub.ports.iter().filter(|port| (port.side == Side::Executor) == executor);
                of_side.map(|port| port.outbox.reset_bytes()).sum::<usize>()
            };
            waiting += resets(false);
            prop_assert_eq!(environment.usage().memory_bytes, waiting + resets(true));
            prop_assert_eq!(environment.usage().streams as usize, b.hub.streams());
            let by_token: usize = tokens.iter().map(|token| token.usage().memory_bytes).sum();
            prop_assert_eq!(by_token, waiting);
            b.woken();
        }
        for port in &ports {
            while let Some(message) = b.hub.poll_transmit(*port) {
                check_order(*port, message);
            }
        }
        for port in &ports {
            prop_assert!(b.hub.wants_read(*port), "not read although all lanes are empty");
        }
        for port in ports {
            b.hub.leave(port, now);
        }
        b.hub.handle_timeout(now + limits::STREAM_GRACE);
        prop_assert!(b.hub.is_empty());
    }
}
