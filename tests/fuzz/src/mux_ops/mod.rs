//! An orchestrator's and an executor's [`Mux`] with a hostile network between
//! them: any sequence of operations, hostile bytes and virtual time, then an
//! honest network until it is idle.
//!
//! Checked, besides the absence of panics:
//!
//! * messages arrive as sent, in order, each once (`model`);
//! * no key ever seals two plaintexts under one nonce (`wire`);
//! * an open stream of a reliable profile ends only because an application
//!   closed it, its grace expired, or a resume was answered with "unknown
//!   stream" (the one exception in the endpoint's documentation);
//! * no deadline stays due, and neither end sends without end;
//! * once the network is honest, every message that was sent arrives.

mod model;
mod wire;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use rendez_endpoint::{Config, Mux, Stats};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::limits::RECORD_PLAINTEXT_MAX_BYTES;
use rendez_proto::profile::Profile;

use crate::frames::{self, Patch, patched};
use crate::noise::{environment, executor, orchestrator, registration, stream};
use crate::time::origin;
use model::Ends;
use wire::Wire;

/// Stream ids in use: few, so that they collide.
const STREAMS: u8 = 3;
/// Operations of one input; more are slow without finding more.
const STEPS: usize = 200;
/// Streams that one input may start: handshakes cost the most.
const CONNECTS: usize = 10;
/// Messages in flight in one direction.
const IN_FLIGHT: usize = 600;
/// Messages that may be replayed.
const REPLAYABLE: usize = 64;
/// Frames that an end may send without receiving or waiting: the windows of all
/// streams, and their control frames.
const AT_ONCE: usize = 4_000;
/// Largest records of one frame after the other.
const RECORD_SIZES: [usize; 3] = [RECORD_PLAINTEXT_MAX_BYTES, 1024, 5_000];
/// Rounds until an honest network is idle.
const ROUNDS: usize = 20_000;

/// An end; also the index in arrays of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Arbitrary)]
enum Side {
    Orchestrator,
    Executor,
}

const BOTH: [Side; 2] = [Side::Orchestrator, Side::Executor];

impl Side {
    fn other(self) -> Self {
        match self {
            Side::Orchestrator => Side::Executor,
            Side::Executor => Side::Orchestrator,
        }
    }
}

#[derive(Debug, Arbitrary)]
enum Op {
    // the applications
    Connect { id: u8, profile: u8 },
    Verdict { ask: u8, say: u8 },
    Send { end: u8, size: u8, times: u8 },
    Recv { end: u8, times: u8 },
    Close { end: u8 },
    // the network, honest
    Emit { from: Side, frames: u8 },
    Deliver { to: Side, frames: u8 },
    Quiet,
    Settle { seconds: u8 },
    Pass { ms: u16 },
    SocketLost { side: Side },
    SocketOpened { side: Side, registration: u8 },
    Restart,
    // the network, hostile
    Drop { to: Side, at: u8 },
    Repeat { to: Side, at: u8 },
    Swap { to: Side, a: u8, b: u8 },
    Damage { to: Side, at: u8, patches: Vec<Patch> },
    Splice { to: Side, at: u8, id: u8 },
    Reflect { to: Side, at: u8 },
    Replay { at: u8 },
    Hint { to: Side, id: u8, reason: u8 },
    Made { to: Side, id: u8 },
    Hostile { to: Side },
}

struct World {
    now: Instant,
    muxes: [Mux; 2],
    /// How often an executor was started.
    starts: u8,
    sockets: [bool; 2],
    /// In flight, by destination.
    net: [VecDeque<Bytes>; 2],
    past: VecDeque<(Side, Bytes)>,
    ends: Ends,
    wire: Wire,
}

/// Follows the operations in `data`, then makes the network honest.
pub fn run(data: &[u8]) {
    let mut world = World::new();
    let mut u = Unstructured::new(data);
    for _ in 0..STEPS {
        if u.is_empty() || world.step(&mut u).is_err() {
            break;
        }
        world.events();
    }
    world.finish();
}

fn start_executor(starts: u8) -> Mux {
    let config = Config::executor(executor().clone(), environment(), Profile::ALL.to_vec());
    Mux::new(config, [starts; 32])
}

impl World {
    fn new() -> Self {
        let now = origin();
        let config = Config::orchestrator(orchestrator().clone(), environment());
        let config = Config { profiles: Profile::ALL.to_vec(), ..config };
        let mut muxes = [Mux::new(config, [200; 32]), start_executor(0)];
        muxes.iter_mut().for_each(|mux| mux.socket_opened(now, registration(0)));
        Self {
            now,
            muxes,
            starts: 0,
            sockets: [true; 2],
            net: Default::default(),
            past: VecDeque::new(),
            ends: Ends::default(),
            wire: Wire::default(),
        }
    }

    fn mux(&mut self, side: Side) -> &mut Mux {
        &mut self.muxes[side as usize]
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        match u.arbitrary()? {
            Op::Connect { id, profile } => {
                if self.ends.connects() < CONNECTS {
                    let profile = match profile % 16 {
                        0 => Profile::RendezHybridIkV1,
                        1..=3 => Profile::NoiseHybridIkV1,
                        _ => Profile::RendezIkV1,
                    };
                    self.ends.connect(&mut self.muxes[0], self.now, id % STREAMS, profile);
                }
            }
            Op::Verdict { ask, say } => {
                self.ends.verdict(&mut self.muxes[1], self.now, ask, say);
            }
            Op::Send { end, size, times } => {
                (0..=times % 8).for_each(|_| self.ends.send(&mut self.muxes, end, size));
            }
            Op::Recv { end, times } => self.ends.recv(&mut self.muxes, end, times),
            Op::Close { end } => self.ends.close(&mut self.muxes, self.now, end),
            Op::Emit { from, frames } => drop(self.emit(from, frames.into())),
            Op::Deliver { to, frames } => self.deliver(to, frames.into()),
            Op::Quiet => self.run_until_idle(),
            Op::Settle { seconds } => self.settle(Duration::from_secs(seconds.into())),
            Op::Pass { ms } => self.pass(Duration::from_millis(u64::from(ms) * 2)),
            Op::SocketLost { side } => self.socket_lost(side),
            Op::SocketOpened { side, registration } => self.socket_opened(side, registration % 2),
            Op::Restart => self.restart(),
            hostile => self.hostile(hostile, u)?,
        }
        Ok(())
    }

    // ---- the network -----------------------------------------------------------

    /// Lets an end send. Returns whether it had a frame.
    fn emit(&mut self, from: Side, frames: usize) -> bool {
        let mut sent = 0;
        while sent < frames {
            let now = self.now;
            let record_max_bytes = RECORD_SIZES[sent % RECORD_SIZES.len()];
            let Some(wire) = self.mux(from).poll_transmit(now, record_max_bytes) else { break };
            sent += 1;
            assert!(self.sockets[from as usize], "sends without a socket");
            assert!(sent < AT_ONCE, "sends without end");
            self.events(); // so that the model knows the open streams
            self.wire.left(from, &wire, &self.ends);
            self.past.push_back((from.other(), wire.clone()));
            if self.past.len() > REPLAYABLE {
                self.past.pop_front();
            }
            self.inject(from.other(), wire);
        }
        sent > 0
    }

    fn inject(&mut self, to: Side, wire: Bytes) {
        let net = &mut self.net[to as usize];
        if net.len() < IN_FLIGHT {
            net.push_back(wire);
        }
    }

    fn deliver(&mut self, to: Side, frames: usize) {
        for _ in 0..frames {
            if !self.mux(to).wants_read() {
                return;
            }
            let Some(wire) = self.net[to as usize].pop_front() else { return };
            self.arrive(to, wire);
        }
    }

    fn arrive(&mut self, to: Side, wire: Bytes) {
        self.wire.arrives(to, &wire);
        let now = self.now;
        self.mux(to).handle_message(now, wire);
        self.events();
    }

    /// Runs an honest network without delay until nothing is sent.
    fn run_until_idle(&mut self) {
        for _ in 0..ROUNDS {
            let mut moved = false;
            for side in BOTH {
                moved |= self.emit(side, usize::MAX);
                self.deliver(side.other(), usize::MAX);
            }
            self.events();
            if !moved {
                return;
            }
        }
        panic!("the two ends talk without end");
    }

    /// Runs an honest network, and applications that read, for some time.
    fn settle(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..ROUNDS {
            self.ends.authorize_all(&mut self.muxes[1], self.now);
            self.run_until_idle();
            self.ends.recv_all(&mut self.muxes);
            self.run_until_idle();
            let next = self.muxes.iter().filter_map(Mux::poll_timeout).min();
            match next.filter(|next| *next <= until) {
                Some(next) => self.pass(next.saturating_duration_since(self.now)),
                None => return self.pass(until.saturating_duration_since(self.now)),
            }
        }
        panic!("the two ends never become idle");
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for side in BOTH {
            let now = self.now;
            let mux = self.mux(side);
            mux.handle_timeout(now);
            assert!(mux.poll_timeout().is_none_or(|at| at > now), "a deadline stays due");
        }
        self.events();
    }

    fn events(&mut self) {
        for side in BOTH {
            while let Some(event) = self.muxes[side as usize].poll_event() {
                self.ends.event(side, self.now, event, &self.wire);
            }
        }
    }

    fn socket_lost(&mut self, side: Side) {
        self.sockets[side as usize] = false;
        let now = self.now;
        self.mux(side).socket_lost(now);
    }

    fn socket_opened(&mut self, side: Side, number: u8) {
        if self.sockets[side as usize] {
            self.socket_lost(side);
        }
        self.sockets[side as usize] = true;
        let now = self.now;
        self.mux(side).socket_opened(now, registration(number));
    }

    /// Replaces the executor's process.
    fn restart(&mut self) {
        self.starts = self.starts.wrapping_add(1) % 100;
        self.muxes[1] = start_executor(self.starts);
        self.ends.executor_restarted();
        self.sockets[1] = false;
        self.socket_opened(Side::Executor, 0);
    }

    // ---- the attacker ----------------------------------------------------------

    fn hostile(&mut self, op: Op, u: &mut Unstructured<'_>) -> Result<()> {
        match op {
            Op::Drop { to, at } => drop(self.take(to, at)),
            Op::Repeat { to, at } => {
                if let Some(wire) = self.look(to, at) {
                    self.arrive(to, wire.clone());
                    self.replayed(to, wire);
                }
            }
            Op::Swap { to, a, b } => {
                let net = &mut self.net[to as usize];
                if !net.is_empty() {
                    net.swap(usize::from(a) % net.len(), usize::from(b) % net.len());
                }
            }
            Op::Damage { to, at, patches } => {
                if let Some(wire) = self.look(to, at) {
                    self.arrive(to, patched(&wire, &patches).into());
                }
            }
            Op::Splice { to, at, id } => {
                if let Some(wire) = self.look(to, at)
                    && let Ok(frame) = Frame::decode(wire)
                {
                    self.arrive(to, Frame { stream: stream(id % STREAMS), ..frame }.encode());
                }
            }
            Op::Reflect { to, at } => {
                if let Some(wire) = self.look(to, at) {
                    self.arrive(to.other(), wire);
                }
            }
            Op::Replay { at } if !self.past.is_empty() => {
                let (to, wire) = self.past[usize::from(at) % self.past.len()].clone();
                self.arrive(to, wire);
            }
            Op::Hint { to, id, reason } => {
                let reason = ResetReason::ALL[usize::from(reason) % ResetReason::ALL.len()];
                let body = Body::Reset { reason: reason.as_str().to_owned() };
                self.arrive(to, Frame::bare(stream(id % STREAMS), body).encode());
            }
            Op::Made { to, id } => {
                let frame = frames::frame(u, stream(id % STREAMS))?;
                self.arrive(to, frame.encode());
            }
            Op::Hostile { to } => {
                let bytes: Vec<u8> = u.arbitrary()?;
                self.arrive(to, bytes.into());
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that an open reliable stream refuses and counts a replay.
    fn replayed(&mut self, to: Side, wire: Bytes) {
        let frame = Frame::decode(wire.clone()).expect("an end sends frames");
        let reliable =
            self.sockets[to as usize] && self.ends.is_open_and_reliable(to, frame.stream.as_str());
        let before = self.mux(to).stats();
        self.arrive(to, wire);
        let after = self.mux(to).stats();
        assert_eq!(before.records_in, after.records_in, "one record was taken twice");
        if reliable && matches!(frame.body, Body::Data { .. }) {
            // If the replay ended the stream, there is none any more, or
            // another one with its name.
            let refused = |stats: Stats| {
                let over = stats.unknown_stream + stats.unexpected;
                stats.duplicates + stats.refused_records + stats.out_of_window + over
            };
            assert_eq!(refused(after), refused(before) + 1, "a replayed record was not counted");
        } else if reliable && frame.proof.is_some() {
            let refused =
                |stats: Stats| stats.refused_control + stats.unknown_stream + stats.unexpected;
            assert_eq!(refused(after), refused(before) + 1, "a replayed proof was not refused");
        }
    }

    fn look(&self, to: Side, at: u8) -> Option<Bytes> {
        let net = &self.net[to as usize];
        (!net.is_empty()).then(|| net[usize::from(at) % net.len()].clone())
    }

    fn take(&mut self, to: Side, at: u8) -> Option<Bytes> {
        let net = &mut self.net[to as usize];
        (!net.is_empty()).then(|| usize::from(at) % net.len()).and_then(|at| net.remove(at))
    }

    // ---- the end ---------------------------------------------------------------

    /// Ends the attack; frames that were held back are lost.
    fn finish(&mut self) {
        self.net = Default::default();
        for side in BOTH {
            if !self.sockets[side as usize] {
                self.socket_opened(side, 0);
            }
        }
        self.settle(Duration::from_secs(300));
        self.ends.all_arrived();
        for side in BOTH {
            let mux = self.mux(side);
            assert!(mux.wants_read(), "held back with nothing unread");
        }
    }
}
