//! A hostile relay, between the hub and the websockets: it loses, repeats,
//! reorders, changes and invents frames, for as long as an attack lasts.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_proto::frame::{Ack, Body, Frame, Proof, ResetReason};
use rendez_proto::ids::Seq;
use rendez_proto::peek::{Kind, Peek, peek};

use crate::pipe::{Origin, Packet};
use crate::plan::{Attack, NodeId};
use crate::relay::SocketId;
use crate::rng::Rng;
use crate::rules::{End, StreamIndex};
use crate::world::{Event, World};
use crate::{MS, Micros};

/// Old frames that are kept for replays and splices, per node.
const MEMORY: usize = 64;

/// The attacks that go on, and the frames that they use.
#[derive(Debug)]
pub(crate) struct Attacks {
    under: Vec<Target>,
    rng: Rng,
    /// Another orchestrator of this relay sends frames of streams that are not
    /// its own, now and then.
    intruder: Option<Rng>,
}

#[derive(Debug, Default)]
struct Target {
    active: Vec<(Attack, u64, Micros)>,
    seen: VecDeque<Bytes>,
}

impl Attacks {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let under = (0..nodes).map(|_| Target::default()).collect();
        let intruder = seed.is_multiple_of(4).then(|| Rng::new(seed, 5));
        Self { under, rng: Rng::new(seed, 4), intruder }
    }

    pub(crate) fn grow(&mut self) {
        self.under.push(Target::default());
    }

    pub(crate) fn begin(&mut self, on: NodeId, how: Attack, percent: u64, until: Micros) {
        self.under[on].active.push((how, percent, until));
    }

    /// Whether the intruder repeats the frame that the hub just took.
    pub(crate) fn is_intruded(&mut self) -> bool {
        self.intruder.as_mut().is_some_and(|rng| rng.chance(10))
    }

    /// Whether an attack on frames to a node goes on.
    pub(crate) fn is_under(&self, node: NodeId, now: Micros) -> bool {
        self.under[node].active.iter().any(|(_, _, until)| *until > now)
    }
}

impl World {
    /// Applies attacks to a frame on its way to an endpoint.
    pub(crate) fn attacked(&mut self, socket: SocketId, wire: Bytes) {
        let node = self.sockets[socket].node;
        let now = self.now;
        let attacks = &mut self.attacks;
        let target = &mut attacks.under[node];
        target.active.retain(|(_, _, until)| *until > now);
        if target.seen.len() == MEMORY {
            target.seen.pop_front();
        }
        target.seen.push_back(wire.clone());
        let active = target.active.clone();
        let genuine = |wire| Packet::Frame { wire, origin: Origin::Genuine };
        let mut lost = false;
        let mut late = false;
        for (how, percent, _) in active {
            if !self.attacks.rng.chance(percent) {
                continue;
            }
            match how {
                Attack::Drop => lost = true,
                Attack::Duplicate => self.deliver_down(socket, genuine(wire.clone())),
                Attack::Reorder => late = true,
                Attack::Replay => {
                    let seen = &self.attacks.under[node].seen;
                    let index = self.attacks.rng.below(seen.len() as u64) as usize;
                    let old = seen[index].clone();
                    self.deliver_down(socket, genuine(old));
                }
                Attack::Forge => {
                    let forged = self.forge(&wire);
                    // half of the time instead of the genuine one
                    lost |= self.attacks.rng.chance(50);
                    self.deceive(socket, Some(&wire), forged);
                }
                Attack::Splice => {
                    if let Some(spliced) = self.splice(node, &wire) {
                        self.deceive(socket, None, spliced);
                    }
                }
                Attack::Inject => {
                    if let Some(made_up) = self.make_up(&wire) {
                        self.deceive(socket, None, made_up);
                    }
                }
            }
        }
        if (lost || late) && matches!(peek(&wire), Ok(Peek { kind: Kind::Reset, .. })) {
            self.keep_to_itself(&wire);
        }
        if lost {
            return;
        }
        if late {
            let at = now + self.attacks.rng.below(400 * MS);
            return self.at(at, Event::Release { socket, packet: genuine(wire) });
        }
        self.deliver_down(socket, genuine(wire));
    }

    /// Marks a stream whose waiting end does not learn of a dropped frame.
    fn keep_to_itself(&mut self, wire: &Bytes) {
        let stream = Frame::decode(wire.clone()).ok();
        let stream = stream.and_then(|frame| self.reference.find(&frame.stream));
        if let Some(stream) = stream {
            self.mark_unaware(stream);
        }
    }

    /// Marks a stream whose end may be unaware of a loss: its application gives up
    /// after a while.
    pub(crate) fn mark_unaware(&mut self, stream: StreamIndex) {
        let known = self.reference.stream(stream);
        known.unaware = true;
        let orchestrator = known.orchestrator;
        self.at(self.now, Event::Look(orchestrator));
    }

    /// Delivers a delayed frame. If its executor left meanwhile, the end believes
    /// that it is still there.
    pub(crate) fn overtaken(&mut self, packet: &Packet) {
        let Packet::Frame { wire, .. } = packet else { return };
        let stream = Frame::decode(wire.clone()).ok();
        let stream = stream.and_then(|frame| self.reference.find(&frame.stream));
        let connected = self.relay.executor.as_ref().map(|(socket, _)| self.sockets[*socket].node);
        if let Some(stream) = stream
            && self.reference.stream(stream).executor != connected
        {
            self.mark_unaware(stream);
        }
    }

    /// Delivers a hostile frame, and checks its consequences.
    fn deceive(&mut self, socket: SocketId, original: Option<&Bytes>, wire: Bytes) {
        let frame = meaning(&wire);
        if let Some(original) = original
            && frame == meaning(original)
        {
            // only bits without a meaning were changed
            let origin = Origin::Genuine;
            return self.deliver_down(socket, Packet::Frame { wire, origin });
        }
        let node = self.sockets[socket].node;
        let end = if self.nodes[node].is_executor() { End::Executor } else { End::Orchestrator };
        let (mut counts, mut denies) = (true, false);
        if let Some(frame) = &frame {
            let stream = self.reference.find(&frame.stream);
            let open = stream.is_some_and(|stream| {
                self.reference.is_open(stream, end)
                    && self.reference.stream(stream).profile.is_reliable()
            });
            // a repeated or forged handshake of an open stream is ignored, and
            // one that is not open yet has its own rules
            counts = open && !matches!(frame.body, Body::Handshake { .. });
            if let (Body::Reset { reason }, None) = (&frame.body, &frame.proof) {
                let reason = ResetReason::parse(reason);
                denies = matches!(reason, ResetReason::UnknownStream | ResetReason::ProtocolError);
                if let Some(stream) = stream.filter(|_| denies) {
                    self.reference.stream(stream).denied = true;
                }
            }
        }
        let origin = Origin::Hostile { counts, denies };
        self.deliver_down(socket, Packet::Frame { wire, origin });
    }

    fn forge(&mut self, wire: &Bytes) -> Bytes {
        let rng = &mut self.attacks.rng;
        let mut bytes = wire.to_vec();
        for _ in 0..rng.between(1, 3) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        if rng.chance(5) {
            bytes.truncate(rng.between(1, bytes.len() as u64) as usize);
        }
        bytes.into()
    }

    /// A frame of parts of two frames.
    fn splice(&mut self, node: NodeId, wire: &Bytes) -> Option<Bytes> {
        let seen = &self.attacks.under[node].seen;
        let other = seen[self.attacks.rng.below(seen.len() as u64) as usize].clone();
        let (mut one, other) = (Frame::decode(wire.clone()).ok()?, Frame::decode(other).ok()?);
        match self.attacks.rng.below(6) {
            0 => one.stream = other.stream,
            1 => one.ack = other.ack,
            2 => one.credit = one.credit.wrapping_add(1_000),
            3 => one.body = other.body,
            4 => one.proof = other.proof,
            _ => {
                if let (Body::Data { seq, .. }, Body::Data { seq: other, .. }) =
                    (&mut one.body, &other.body)
                {
                    *seq = *other;
                }
            }
        }
        // two equal frames make a replay, not a forgery
        let one = one.encode();
        let meant = meaning(&one);
        if self.attacks.under[node].seen.iter().any(|seen| meaning(seen) == meant) {
            return None;
        }
        Some(one)
    }

    /// A control frame, or random bytes, for the stream of a frame that passes.
    fn make_up(&mut self, wire: &Bytes) -> Option<Bytes> {
        let stream = Frame::decode(wire.clone()).ok()?.stream;
        let rng = &mut self.attacks.rng;
        let body = match rng.below(6) {
            0 | 1 => {
                let reason = rng.pick(&ResetReason::ALL);
                Body::Reset { reason: reason.as_str().to_owned() }
            }
            2 => Body::Ack,
            3 => Body::Resume { next_seq: rng.number() % 100 },
            4 => Body::Data {
                seq: Seq(rng.number() % 200),
                record: Bytes::copy_from_slice(&rng.bytes::<48>()),
            },
            _ => return Some(Bytes::copy_from_slice(&rng.bytes::<40>())),
        };
        let bits = if rng.chance(50) { 0 } else { rng.number() };
        let mut frame = Frame {
            ack: Ack { up_to: rng.number() % 300, bits },
            credit: rng.number() % 5_000,
            ..Frame::bare(stream, body)
        };
        if rng.chance(50) && !matches!(frame.body, Body::Data { .. }) {
            frame.proof = Some(Proof { counter: rng.below(10_000), tag: rng.bytes() });
        }
        Some(frame.encode())
    }
}

/// The meaning of a frame for an endpoint. A record needs no proof, so an added
/// one is ignored.
fn meaning(wire: &Bytes) -> Option<Frame> {
    let mut frame = Frame::decode(wire.clone()).ok()?;
    if matches!(frame.body, Body::Data { .. }) {
        frame.proof = None;
    }
    Some(frame)
}
