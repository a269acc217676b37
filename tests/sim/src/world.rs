//! Virtual time: the agenda of events, and the phases of a run.
//!
//! ```text
//! faults ──► calm ──► all complete ──► idle: nothing moves ──► all nodes leave ──► nothing is left
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_endpoint::window::RTO_MAX;
use rendez_endpoint::{Key, Mux, PendingHandshake};
use rendez_proto::ids::RegistrationId;
use rendez_proto::keys::PublicKey;
use rendez_proto::limits::STREAM_GRACE;
use rendez_relay_core::SWEEP_INTERVAL;
use rendez_relay_core::overflow::LANE_MAX_BYTES;

use crate::attack::Attacks;
use crate::log::Log;
use crate::node::{Link, LinkState, Node, Outcome, Phase, Role, Talk};
use crate::pipe::{Packet, Side, Socket};
use crate::plan::{NodeId, Plan, Transition};
use crate::registry::{Dialled, Registry};
use crate::relay::{Relay, SocketId};
use crate::rng::Rng;
use crate::rules::{Reference, Rule};
use crate::setup::{executor, identity, node, orchestrator_config};
use crate::{MS, Micros, Report, SEC, Violation};

/// How long a conversation may take after the last fault: back-offs, graces of
/// streams whose peer has left, and more than one try.
const PATIENCE: Micros = 900 * SEC;
/// How long nothing must move before idle streams count as quiet.
const QUIET: Micros = 10 * SEC;
/// Steps that one moment may take.
const STEPS_PER_MOMENT: u32 = 200_000;
/// An event of the agenda.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something arrives at one end of a socket.
    Arrive {
        socket: SocketId,
        at: Side,
    },
    /// One end of a socket notices that it is broken.
    Notice {
        socket: SocketId,
        at: Side,
    },
    /// The plan's transition with this index.
    Befall(usize),
    /// A usurper is killed, or an executor's process starts.
    Kill(NodeId),
    Start(NodeId),
    /// The relay's process starts.
    RelayStarts,
    /// A node runs: its pause is over, or its alarm is due.
    Look(NodeId),
    /// A delayed frame is delivered.
    Release {
        socket: SocketId,
        packet: Packet,
    },
    /// A websocket's upgrade reaches the relay.
    Upgrade {
        node: NodeId,
        life: u32,
        what: Dialled,
    },
    /// For a shell; dropped if its process was restarted since.
    Shell {
        node: NodeId,
        life: u32,
        what: Shell,
    },
}

/// An event that a shell waits for.
#[derive(Debug)]
pub(crate) enum Shell {
    /// The registry answers `/register`.
    Registered,
    /// The registry answers `/connect`, for the socket.
    Connected,
    /// The registry answers `/connect`, for a stream of this conversation.
    StreamAllowed(usize),
    /// The registry answers `/validate`.
    Validated {
        key: Key,
        registration: RegistrationId,
        peer: PublicKey,
        authorization: Bytes,
        pending: PendingHandshake,
    },
    /// The websocket is open.
    Attached(SocketId),
    /// It is not; `refused`: by a 4xx.
    DialFailed { refused: bool },
    /// The wait is over.
    Retry,
}

/// A world: all nodes, the relay, the registry and the time.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) plan: Plan,
    pub(crate) base: Instant,
    pub(crate) now: Micros,
    pub(crate) rng: Rng,
    agenda: BTreeMap<(Micros, u64), Event>,
    serial: u64,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sockets: Vec<Socket>,
    pub(crate) relay: Relay,
    pub(crate) registry: Registry,
    pub(crate) attacks: Attacks,
    pub(crate) reference: Reference,
    pub(crate) log: Log,
    pub(crate) dirty_nodes: BTreeSet<NodeId>,
    pub(crate) dirty_sockets: BTreeSet<SocketId>,
    violation: Option<Box<Violation>>,
    pub(crate) report: Report,
    /// Lingering conversations close.
    pub(crate) closing: bool,
    /// No node connects any more.
    pub(crate) leaving: bool,
    pub(crate) last_frame: Micros,
    /// Sessions that executors made.
    pub(crate) sessions: u32,
}

impl World {
    pub(crate) fn new(seed: u64, logged: bool) -> Self {
        let plan = Plan::new(seed);
        let mut rng = Rng::new(seed, 2);
        let mut nodes = vec![executor(&mut rng, plan.executor, 0)];
        for (number, orchestrator) in plan.orchestrators.iter().enumerate() {
            let talks = orchestrator.conversations.iter().enumerate();
            let talks =
                talks.map(|(index, plan)| Talk::new((number * 100 + index) as u32, plan.clone()));
            let link = Link {
                profile: orchestrator.profile,
                state: LinkState::Idle { not_before: 0 },
                executor: None,
                mux_used: false,
                talks: talks.collect(),
                keys: BTreeMap::new(),
            };
            let identity = identity(10 + number as u8);
            let mux = Mux::new(orchestrator_config(&identity, link.profile), rng.bytes());
            let role = Role::Orchestrator(link);
            nodes.push(node(role, identity, orchestrator.path, mux, &mut rng));
        }
        let (latency, bandwidth) = plan.slowest();
        let buffers = plan.orchestrators.iter().map(|other| other.path.buffer).max().unwrap_or(0)
            + plan.executor.buffer;
        // probes go out at least this often; what waits goes out before them,
        // at most everything that there is, twice over
        let settle = RTO_MAX.as_micros() as Micros
            + 2 * SEC
            + 8 * latency
            + 3 * plan.volume() * SEC / bandwidth;
        let reference = Reference::new(nodes.len(), settle, LANE_MAX_BYTES + 4 * buffers);
        let mut world = Self {
            seed,
            base: origin(),
            now: 0,
            agenda: BTreeMap::new(),
            serial: 0,
            sockets: Vec::new(),
            relay: Relay::default(),
            registry: Registry::default(),
            attacks: Attacks::new(nodes.len(), seed),
            nodes,
            reference,
            rng,
            log: Log::new(logged),
            dirty_nodes: BTreeSet::new(),
            dirty_sockets: BTreeSet::new(),
            violation: None,
            report: Report::default(),
            closing: false,
            leaving: false,
            last_frame: 0,
            sessions: 0,
            plan,
        };
        for index in 0..world.plan.transitions.len() {
            let (at, _) = world.plan.transitions[index];
            world.at(at, Event::Befall(index));
        }
        world.reference.attacked = world
            .plan
            .transitions
            .iter()
            .any(|(_, what)| matches!(what, Transition::Attack { .. }));
        world.at(0, Event::Start(0));
        for node in 1..world.nodes.len() {
            world.at(0, Event::Look(node));
        }
        world
    }

    pub(crate) fn now(&self) -> Micros {
        self.now
    }

    pub(crate) fn take_log(&mut self) -> Vec<String> {
        self.log.take()
    }

    // ---- a run ---------------------------------------------------------------

    pub(crate) fn run(&mut self) -> Result<Report, Box<Violation>> {
        self.log.line(self.now, format_args!("{:?}", self.plan));
        self.pass(self.plan.calm_at, |_| false)?;
        self.note(format_args!("calm"));
        self.leave_one_executor();
        let until = self.now + PATIENCE;
        self.pass(until, |world| world.talks().all(Talk::rests))?;
        self.demand(Rule::Completes, |world| {
            let open = world.talks().find(|talk| !talk.rests());
            open.map(|talk| format!("conversation {} is {:?}", talk.id, talk.phase))
        })?;

        // the rest of lost streams expires; then idle streams cost nothing
        self.note(format_args!("idle"));
        self.pass(self.now + 2 * grace(), |_| false)?;
        let until = self.now + PATIENCE;
        self.pass(until, |world| {
            let quiet = world.now - world.last_frame > grace();
            quiet && world.nodes.iter().all(|node| !node.alive || node.mux.poll_timeout().is_none())
        })?;
        self.demand(Rule::GoesQuiet, |world| {
            if world.now - world.last_frame < QUIET {
                return Some("frames pass although all applications are idle".to_owned());
            }
            let ticking =
                world.nodes.iter().position(|node| node.alive && node.mux.poll_timeout().is_some());
            ticking.map(|node| format!("the timers of node {node} run"))
        })?;

        self.note(format_args!("closing"));
        self.closing = true;
        self.look_at_all();
        self.pass(self.now + 2 * grace(), |world| {
            world.talks().all(|talk| talk.phase == Phase::Done)
        })?;
        self.demand(Rule::Completes, |world| {
            let open = world.talks().find(|talk| talk.phase != Phase::Done);
            open.map(|talk| format!("conversation {} is still {:?}", talk.id, talk.phase))
        })?;

        self.note(format_args!("leaving"));
        self.pass(self.now + 3 * grace(), |_| false)?;
        self.demand(Rule::GoesQuiet, |world| {
            let left = world.nodes.iter().filter(|node| node.alive).find_map(|node| {
                let Role::Executor(agent) = &node.role else { return None };
                agent
                    .streams
                    .values()
                    .map(|served| served.stream)
                    .find(|stream| world.reference.must_end_by_itself(*stream))
            });
            left.map(|stream| format!("stream {stream} outlives its orchestrator"))
        })?;
        self.leaving = true;
        self.leave();
        self.pass(self.now + 3 * grace(), |_| false)?;
        self.demand(Rule::GoesQuiet, World::leftovers)?;
        self.demand(Rule::NothingOutOfThinAir, |world| {
            let totals = world.nodes.iter().fold([0; 4], |sum: [u64; 4], node| {
                let more = node.totals();
                std::array::from_fn(|index| sum[index] + more[index])
            });
            let [records_out, bytes_out, records_in, bytes_in] = totals;
            (records_in > records_out || bytes_in > bytes_out).then(|| {
                format!("{records_in} of {records_out} records, {bytes_in} of {bytes_out} bytes")
            })
        })?;
        self.finish();
        Ok(std::mem::take(&mut self.report))
    }

    /// Keeps one executor: two would take the environment from each other for ever.
    /// An executor whose registration was replaced by one that never connected gets
    /// no new streams until its socket breaks (README.md, known limits).
    fn leave_one_executor(&mut self) {
        let lives = |world: &World, node: NodeId| {
            world.nodes[node].is_executor() && world.nodes[node].alive
        };
        let connected = self.relay.executor.as_ref().map(|(socket, _)| self.sockets[*socket].node);
        let stays = connected.filter(|node| lives(self, *node)).unwrap_or(0);
        for node in 0..self.nodes.len() {
            if node != stays && lives(self, node) {
                self.kill(node);
            }
        }
        self.start(stays);
        let stale = self.relay.connected().is_some_and(|id| !self.registry.is_current(id));
        if let Some(socket) = self.nodes[stays].socket.filter(|_| stale) {
            self.sever(socket, 0, 0);
        }
    }

    /// Lets time pass until `done` or `until`.
    fn pass(&mut self, until: Micros, done: impl Fn(&World) -> bool) -> Result<(), Box<Violation>> {
        let mut moment = (self.now, 0);
        while !done(self) {
            match self.next_time() {
                Some(at) if at <= until => self.step(at),
                _ => {
                    self.now = self.now.max(until);
                    self.observe();
                    break;
                }
            }
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if moment.0 != self.now {
                moment = (self.now, 0);
            }
            moment.1 += 1;
            if moment.1 > STEPS_PER_MOMENT {
                self.violate(Rule::NoSpinning, "time does not advance".to_owned());
            }
        }
        Ok(())
    }

    fn demand(
        &mut self,
        rule: Rule,
        wrong: impl Fn(&World) -> Option<String>,
    ) -> Result<(), Box<Violation>> {
        match wrong(self) {
            None => Ok(()),
            Some(detail) => {
                self.violate(rule, detail);
                self.violation.take().map_or(Ok(()), Err)
            }
        }
    }

    /// Anything that is left after all nodes have left.
    fn leftovers(&self) -> Option<String> {
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            if node.mux.streams() > 0 {
                return Some(format!("node {index} still has {} streams", node.mux.streams()));
            }
            if node.mux.poll_timeout().is_some() {
                return Some(format!("the timers of node {index} run"));
            }
            if !node.mux.wants_read() {
                return Some(format!("node {index} does not want to read"));
            }
        }
        if !self.relay.hub.is_empty() {
            return Some(format!(
                "the hub has {} streams, {} orchestrators, an executor: {}",
                self.relay.hub.streams(),
                self.relay.hub.orchestrators(),
                self.relay.hub.has_executor()
            ));
        }
        let open = |socket: &Socket| socket.endpoint_open || socket.relay_open;
        self.sockets.iter().position(open).map(|socket| format!("socket {socket} is open"))
    }

    fn finish(&mut self) {
        self.report.virtual_time = self.now;
        for outcome in [Outcome::Complete, Outcome::Unknown] {
            let count = self.talks().filter(|talk| talk.outcome == Some(outcome)).count() as u64;
            let name = match outcome {
                Outcome::Complete => "conversations complete",
                Outcome::Unknown => "conversations unknown",
            };
            self.count(name, count);
        }
        let stats: Vec<_> = self.nodes.iter().map(|node| node.mux.stats()).collect();
        for stats in stats {
            self.count("retransmits", stats.retransmits);
            self.count("refused records", stats.refused_records);
            self.count("refused control", stats.refused_control);
            self.count("duplicates", stats.duplicates);
            self.count("hints", stats.hints);
            self.note(format_args!("{stats:?}"));
        }
        let bytes: u64 = self.nodes.iter().map(|node| node.totals()[3]).sum();
        self.count("bytes delivered", bytes);
    }

    // ---- time ----------------------------------------------------------------

    /// Plans an event.
    pub(crate) fn at(&mut self, at: Micros, event: Event) {
        self.serial += 1;
        self.agenda.insert((at.max(self.now), self.serial), event);
    }

    pub(crate) fn shell(&mut self, at: Micros, node: NodeId, what: Shell) {
        let life = self.nodes[node].life;
        self.at(at, Event::Shell { node, life, what });
    }

    /// A node's local time, for its mux.
    pub(crate) fn instant(&self, node: NodeId) -> Instant {
        self.base + self.nodes[node].local(self.now)
    }

    /// The same for the relay, whose clock is the world's.
    pub(crate) fn relay_instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    fn sweep_time(&self) -> Option<Micros> {
        let at = self.relay.hub.poll_timeout()?.saturating_duration_since(self.base);
        let interval = SWEEP_INTERVAL.as_micros() as Micros;
        Some((at.as_micros() as Micros).div_ceil(interval) * interval)
    }

    fn next_time(&self) -> Option<Micros> {
        let agenda = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let timers = self.nodes.iter().filter_map(|node| node.timer(self.base));
        agenda.into_iter().chain(self.sweep_time()).chain(timers).min()
    }

    fn step(&mut self, at: Micros) {
        self.report.steps += 1;
        self.now = self.now.max(at);
        self.observe();
        if let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now
        {
            let event = entry.remove();
            self.happen(event);
        }
        for node in 0..self.nodes.len() {
            if self.nodes[node].timer(self.base).is_some_and(|at| at <= self.now) {
                self.dirty_nodes.insert(node);
            }
        }
        if self.sweep_time().is_some_and(|at| at <= self.now) {
            let now = self.relay_instant();
            self.relay.handle_timeout(now);
            self.wake_ports();
        }
        self.settle();
    }

    /// Runs all nodes and ports that have something to do.
    fn settle(&mut self) {
        for _ in 0..STEPS_PER_MOMENT {
            if self.violation.is_some() {
                return;
            }
            if let Some(node) = self.dirty_nodes.pop_first() {
                self.pump_node(node);
            } else if let Some(socket) = self.dirty_sockets.pop_first() {
                self.pump_port(socket);
            } else {
                return;
            }
        }
        self.violate(Rule::NoSpinning, "the world does not settle".to_owned());
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { socket, at: Side::Relay } => {
                self.dirty_sockets.insert(socket);
            }
            Event::Arrive { socket, at: Side::Endpoint } => {
                self.dirty_nodes.insert(self.sockets[socket].node);
            }
            Event::Notice { socket, at: Side::Relay } => self.relay_side_over(socket),
            Event::Notice { socket, at: Side::Endpoint } => {
                let node = self.sockets[socket].node;
                match self.nodes[node].paused_until {
                    until if until > self.now => {
                        self.at(until, Event::Notice { socket, at: Side::Endpoint });
                    }
                    _ => self.endpoint_side_over(socket),
                }
            }
            Event::Befall(index) => self.befall(index),
            Event::Kill(node) => self.kill(node),
            Event::Start(node) => self.start(node),
            Event::RelayStarts => self.relay.down = false,
            Event::Look(node) => {
                self.dirty_nodes.insert(node);
            }
            Event::Release { socket, packet } => {
                self.overtaken(&packet);
                self.deliver_down(socket, packet);
            }
            Event::Upgrade { node, life, what } => self.upgrade(node, life, what),
            Event::Shell { node, life, what } => {
                let until = self.nodes[node].paused_until;
                if until > self.now && self.nodes[node].life == life {
                    self.at(until, Event::Shell { node, life, what });
                } else {
                    self.shell_event(node, life, what);
                }
            }
        }
    }

    /// Notes which paths were healthy until now.
    fn observe(&mut self) {
        let executor = self.relay.executor.as_ref().map(|(socket, _)| *socket);
        let executor = executor.filter(|socket| self.is_well(*socket));
        for node in 1..=self.plan.orchestrators.len() {
            let own = self.nodes[node].socket.filter(|socket| self.is_well(*socket));
            let executor = own.and(executor).map(|socket| self.sockets[socket].node);
            let nodes = &self.nodes;
            self.reference.observe(node, executor, self.now, |node| nodes[node].local(self.now));
        }
    }

    fn is_well(&self, socket: SocketId) -> bool {
        let socket = &self.sockets[socket];
        let node = &self.nodes[socket.node];
        node.alive
            && node.paused_until <= self.now
            && socket.is_well(self.now)
            && node.mux.wants_read()
            && self.relay.hub.wants_read(socket.port)
            && !self.attacks.is_under(socket.node, self.now)
    }

    fn talks(&self) -> impl Iterator<Item = &Talk> {
        self.nodes.iter().flat_map(|node| match &node.role {
            Role::Orchestrator(link) => link.talks.as_slice(),
            Role::Executor(_) => &[],
        })
    }

    fn look_at_all(&mut self) {
        self.dirty_nodes.extend(0..self.nodes.len());
        self.settle();
    }

    // ---- words ---------------------------------------------------------------

    pub(crate) fn violate(&mut self, rule: Rule, detail: String) {
        self.note(format_args!("VIOLATION {rule:?}: {detail}"));
        let (seed, at) = (self.seed, self.now);
        self.violation.get_or_insert_with(|| Box::new(Violation { seed, rule, at, detail }));
    }

    pub(crate) fn check(&mut self, verdict: Result<(), (Rule, String)>) {
        if let Err((rule, detail)) = verdict {
            self.violate(rule, detail);
        }
    }

    pub(crate) fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.log.line(self.now, what);
    }

    pub(crate) fn count(&mut self, what: &'static str, times: u64) {
        *self.report.counters.entry(what).or_default() += times;
    }

    /// A new executor, with an identity of its own.
    pub(crate) fn add_executor(&mut self) -> NodeId {
        let path = self.plan.executor;
        let number = self.nodes.len();
        let node = executor(&mut self.rng, path, number as u8);
        self.nodes.push(node);
        self.attacks.grow();
        number
    }
}

impl Talk {
    /// Nothing more is to come unless the world asks for it.
    fn rests(&self) -> bool {
        matches!(self.phase, Phase::Done | Phase::Lingering)
    }
}

fn grace() -> Micros {
    STREAM_GRACE.as_micros() as Micros + 5 * SEC
}

/// The origin of virtual time; all other times are offsets from it.
#[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| Instant::now() + Duration::from_millis(MS))
}
