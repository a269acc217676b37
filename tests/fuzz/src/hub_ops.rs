//! Any sequence of operations on a [`Hub`], driven as a shell drives it.
//!
//! Checked: queued bytes stay within the memory that they are charged to,
//! except for one message of each stream; the same bytes leave through the
//! right port, in order; lanes, acks and resets stay bounded; a stream id
//! belongs to the key that used it first; a port is woken when it has something
//! to send, may be read again or is superseded; empty lanes hold back no port;
//! and an empty hub is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{Generation, Seq};
use rendez_proto::limits;
use rendez_proto::peek::peek;
use rendez_relay_core::overflow::{LANE_MAX_BYTES, LANE_MIN_BYTES};
use rendez_relay_core::{
    Account, CLAIMS_PER_EXECUTOR, Capabilities, Dropped, FRAME_COST_BYTES, Hub, HubAccounts,
    JoinError, KeyFingerprint, OVERTAKING_MAX_FRAMES, PortKey, Quota, RESETS_MAX_FRAMES, Stats,
    Usage,
};

use crate::frames;
use crate::noise::stream;
use crate::time::origin;

const STREAMS: u8 = 40;
const STEPS: usize = 400;
const MEMORY_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug, Arbitrary)]
enum Op {
    Join { who: u8, resends: bool },
    JoinExecutor { generation: i8 },
    Leave { port: u8 },
    Data { port: u8, stream: u8, size: u8 },
    Burst { port: u8, stream: u8, frames: u8 },
    Ack { port: u8, stream: u8, times: u8 },
    Reset { port: u8, stream: u8 },
    Hostile { port: u8 },
    Made { port: u8, stream: u8 },
    Drain { port: u8, frames: u8 },
    Handshake { port: u8, stream: u8, size: u8 },
    Advance { ms: u16 },
    Sweep,
}

#[derive(Debug)]
struct Port {
    key: PortKey,
    /// `None`: the executor's.
    fingerprint: Option<u8>,
    left: bool,
    /// Woken and not drained since.
    awake: bool,
    /// May not be read, and not woken since.
    blocked: bool,
    /// The last number of each stream that left here.
    last: BTreeMap<u8, u32>,
}

struct Bench {
    hub: Hub,
    environment: Arc<Account>,
    tokens: [Arc<Account>; 4],
    now: Instant,
    ports: Vec<Port>,
    generation: u64,
    /// Numbers data frames, over all ports.
    next: u32,
    /// By number: the sender (`None`: an executor) and the stream.
    sent: Vec<(Option<u8>, u8, Bytes)>,
    /// The port of each stream, if known.
    holders: BTreeMap<String, usize>,
}

/// Follows the operations in `data`.
pub fn run(data: &[u8]) {
    // little memory, so that it runs out
    let quota = Quota { memory_bytes: MEMORY_BYTES as u64, ..Quota::UNLIMITED };
    let environment = Account::new(quota);
    // one token has a handshake guard, one has few handshakes, two are
    // unlimited
    let quotas = [
        Quota { handshake_failures: 3, ..Quota::UNLIMITED },
        Quota { handshakes_per_minute: 6, ..Quota::UNLIMITED },
        Quota::UNLIMITED,
        Quota::UNLIMITED,
    ];
    let tokens = quotas.map(Account::new);
    let accounts = HubAccounts { environment: environment.clone(), ..HubAccounts::default() };
    let hub = Hub::new(accounts);
    let mut bench = Bench {
        hub,
        environment,
        tokens,
        now: origin(),
        ports: Vec::new(),
        generation: 1,
        next: 0,
        sent: Vec::new(),
        holders: BTreeMap::new(),
    };
    let mut u = Unstructured::new(data);
    for _ in 0..STEPS {
        if u.is_empty() || bench.step(&mut u).is_err() {
            break;
        }
        bench.check();
    }
    bench.finish();
}

impl Bench {
    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.arbitrary()? {
            Op::Join { who, resends } => self.join(who % 4, resends),
            Op::JoinExecutor { generation } => self.join_executor(generation),
            Op::Leave { port } => {
                if let Some(index) = self.index(port) {
                    self.hub.leave(self.ports[index].key, self.now);
                    self.ports[index].left = true;
                }
            }
            Op::Data { port, stream, size } => {
                let len = match size {
                    0..=199 => usize::from(size) + 1,
                    200..=239 => 60_000,
                    _ => 240_000,
                };
                self.data(port, stream % STREAMS, len);
            }
            Op::Burst { port, stream, frames } => {
                for _ in 0..frames % 24 {
                    self.data(port, stream % STREAMS, 240_000);
                }
            }
            Op::Ack { port, stream: number, times } => {
                let wire = Frame::bare(stream(number % STREAMS), Body::Ack).encode();
                (0..=times).for_each(|_| self.send(port, &wire));
            }
            Op::Handshake { port, stream: number, size } => {
                let message = vec![number; usize::from(size) * 200].into();
                let body = Body::Handshake { message, profile: String::new() };
                self.send(port, &Frame::bare(stream(number % STREAMS), body).encode());
            }
            Op::Reset { port, stream: number } => {
                let body = Body::Reset { reason: ResetReason::Finished.as_str().to_owned() };
                self.send(port, &Frame::bare(stream(number % STREAMS), body).encode());
            }
            Op::Hostile { port } => {
                let bytes: Vec<u8> = u.arbitrary()?;
                if peek(&bytes).is_err() {
                    self.send(port, &bytes.into());
                }
            }
            Op::Made { port, stream: number } => {
                let frame = frames::frame(u, stream(number % STREAMS))?;
                if !matches!(frame.body, Body::Data { .. }) {
                    self.send(port, &frame.encode());
                }
            }
            Op::Drain { port, frames } => {
                if let Some(index) = self.index(port) {
                    let frames = if frames > 200 { usize::MAX } else { frames.into() };
                    self.drain(index, frames);
                }
            }
            Op::Advance { ms } => self.now += Duration::from_millis(u64::from(ms) * 2),
            Op::Sweep => {
                self.hub.handle_timeout(self.now);
                let next = self.hub.poll_timeout();
                assert!(next.is_none_or(|at| at > self.now), "a sweep left an expired deadline");
            }
        }
        Ok(())
    }

    fn index(&self, port: u8) -> Option<usize> {
        (!self.ports.is_empty()).then(|| usize::from(port) % self.ports.len())
    }

    fn add(&mut self, key: PortKey, fingerprint: Option<u8>) {
        assert!(self.ports.iter().all(|port| port.key != key), "a key names two ports");
        let port = Port {
            key,
            fingerprint,
            left: false,
            awake: false,
            blocked: false,
            last: BTreeMap::new(),
        };
        self.ports.push(port);
    }

    fn join(&mut self, who: u8, resends: bool) {
        let full = self.hub.orchestrators() >= limits::ORCHESTRATORS_PER_EXECUTOR;
        let token = self.tokens[usize::from(who)].clone();
        match self.hub.join_orchestrator(KeyFingerprint([who; 32]), Capabilities { resends }, token)
        {
            Ok(key) => self.add(key, Some(who)),
            Err(error) => assert!(full && error == JoinError::TooManyOrchestrators),
        }
    }

    fn join_executor(&mut self, generation: i8) {
        let offered = self.generation.saturating_add_signed(generation.clamp(-2, 2).into());
        let had = self.ports.iter().any(|port| port.fingerprint.is_none());
        match self.hub.join_executor(Generation(offered), Arc::default(), self.now) {
            Ok(key) => {
                assert!(!had || offered >= self.generation, "an older registration joined");
                self.generation = offered;
                for port in self.ports.iter_mut().filter(|port| port.fingerprint.is_none()) {
                    port.left = true;
                }
                self.add(key, None);
            }
            Err(_) => assert!(offered < self.generation, "the newest registration was refused"),
        }
    }

    fn data(&mut self, port: u8, number: u8, len: usize) {
        let Some(index) = self.index(port) else { return };
        if !self.hub.wants_read(self.ports[index].key) || self.ports[index].left {
            return;
        }
        let record = vec![number; len].into();
        let wire = Frame::bare(stream(number), Body::Data { seq: Seq(self.next), record }).encode();
        self.next += 1;
        self.sent.push((self.ports[index].fingerprint, number, wire.clone()));
        self.send(port, &wire);
    }

    /// Delivers one message as the shell does, which reads only ports that may
    /// be read.
    fn send(&mut self, port: u8, wire: &Bytes) {
        let Some(index) = self.index(port) else { return };
        let key = self.ports[index].key;
        if !self.hub.wants_read(key) {
            self.ports[index].blocked = true;
            return;
        }
        let routable = peek(wire).is_ok();
        let before = self.hub.stats().clone();
        let result = self.hub.handle_message(key, wire.clone(), self.now);
        self.note_holder(index, wire, &before);
        let violates =
            !routable && self.ports[index].fingerprint.is_some() && !self.ports[index].left;
        assert_eq!(result.is_err(), violates, "who is at fault was judged otherwise");
        if violates {
            self.hub.leave(key, self.now);
            self.ports[index].left = true;
        }
        self.wakes();
        for port in &mut self.ports {
            port.blocked |= !self.hub.wants_read(port.key);
        }
    }

    /// A stream is with the port that used it last, unless that use was
    /// refused.
    fn note_holder(&mut self, index: usize, wire: &Bytes, before: &Stats) {
        let (Ok(seen), Some(_)) = (peek(wire), self.ports[index].fingerprint) else { return };
        let grew = |why| self.hub.stats().dropped(why) > before.dropped(why);
        let refused = [Dropped::ForeignStream, Dropped::TooManyStreams];
        if self.ports[index].left || refused.into_iter().any(grew) {
            return;
        }
        let stream = seen.stream.to_owned();
        // With or without a claim, and with either port.
        let unknown = [
            Dropped::PeerAway,
            Dropped::HandshakeGuard,
            Dropped::HandshakeRate,
            Dropped::HandshakeWaits,
            Dropped::Quota,
        ];
        if unknown.into_iter().any(grew) {
            self.holders.remove(&stream);
        } else {
            self.holders.insert(stream, index);
        }
    }

    fn wakes(&mut self) {
        while let Some(key) = self.hub.poll_wake() {
            let port = self.ports.iter_mut().find(|port| port.key == key);
            let port = port.expect("a port that never joined was woken");
            port.awake = true;
            port.blocked = false;
        }
    }

    fn drain(&mut self, index: usize, frames: usize) {
        let mut bytes = BTreeMap::<u8, usize>::new();
        let mut overtaking = BTreeMap::<String, usize>::new();
        for _ in 0..frames {
            let Some(wire) = self.hub.poll_transmit(self.ports[index].key) else {
                self.ports[index].awake = false;
                break;
            };
            assert!(!self.ports[index].left, "a frame for a port that has left");
            let seen = peek(&wire).expect("outgoing frames can be routed");
            if seen.kind.may_overtake() && wire.len() <= limits::FRAME_OVERHEAD_MAX_BYTES {
                *overtaking.entry(seen.stream.to_owned()).or_default() += 1;
            }
            if let Some(number) = seen.stream.strip_prefix('s').and_then(|s| s.parse::<u8>().ok()) {
                *bytes.entry(number).or_default() += wire.len();
            }
            self.delivered(index, &wire);
        }
        let most = bytes.values().max().copied().unwrap_or_default();
        // acks are not part of a lane; resets of the hub itself are small
        assert!(most <= LANE_MAX_BYTES + 64 * 1024, "a lane of {most} bytes");
        let acks = overtaking.values().max().copied().unwrap_or_default();
        assert!(acks <= OVERTAKING_MAX_FRAMES, "{acks} acks of one stream");
        self.wakes();
    }

    fn delivered(&mut self, index: usize, wire: &Bytes) {
        let frame = match Frame::decode(wire.clone()) {
            Ok(Frame { body: Body::Data { seq, .. }, .. }) => seq.0,
            _ => return,
        };
        let (from, number, original) = &self.sent[frame as usize];
        assert_eq!(wire, original, "other bytes went out");
        if from.is_none() {
            let holder = self.holders.get(&format!("s{number}"));
            assert!(holder.is_none_or(|holder| *holder == index), "to a port that lost the stream");
        }
        let port = &mut self.ports[index];
        assert_ne!(
            from.is_none(),
            port.fingerprint.is_none(),
            "back to the side that it came from"
        );
        let last = port.last.insert(*number, frame);
        assert!(last.is_none_or(|last| last < frame), "reordered, or twice");
    }

    fn check(&mut self) {
        self.wakes();
        assert!(self.hub.streams() <= CLAIMS_PER_EXECUTOR);
        let usage = self.environment.usage();
        assert_eq!(usage.streams as usize, self.hub.streams());
        // both lanes of a stream advance without free memory, and small frames
        // go ahead of them
        let small = limits::FRAME_OVERHEAD_MAX_BYTES + FRAME_COST_BYTES;
        let acks = OVERTAKING_MAX_FRAMES * small;
        let lanes = 2 * self.hub.streams() * (LANE_MIN_BYTES + limits::MESSAGE_MAX_BYTES + acks);
        let ports = self.ports.len() * RESETS_MAX_FRAMES * small;
        let most = MEMORY_BYTES + lanes + ports;
        assert!(usage.memory_bytes <= most, "{} bytes wait", usage.memory_bytes);
        let mut holders = 0;
        for port in &mut self.ports {
            assert_eq!(self.hub.is_joined(port.key), !port.left);
            holders += usize::from(!port.left && port.fingerprint.is_some());
            if !port.awake {
                let out = self.hub.poll_transmit(port.key);
                assert_eq!(out, None, "a frame waits for a port that was not woken");
            }
            if port.blocked {
                assert!(!self.hub.wants_read(port.key), "may be read again, but was not woken");
            }
        }
        assert_eq!(self.hub.orchestrators(), holders);
    }

    fn finish(&mut self) {
        for index in 0..self.ports.len() {
            self.drain(index, usize::MAX);
        }
        let keys: BTreeSet<usize> = (0..self.ports.len()).collect();
        for index in keys {
            assert!(self.hub.wants_read(self.ports[index].key), "held back by empty lanes");
        }
        self.check();
        for port in &mut self.ports {
            self.hub.leave(port.key, self.now);
            port.left = true;
        }
        self.check();
        self.hub.handle_timeout(self.now + limits::STREAM_GRACE);
        assert!(self.hub.is_empty(), "something is left of an empty hub");
        for account in self.tokens.iter().chain([&self.environment]) {
            assert_eq!(account.usage(), Usage::default(), "an empty hub uses something");
        }
        assert_eq!(self.hub.poll_timeout(), None);
    }
}
