//! The shells that keep websockets connected:
//! `executor-agent/src/agent/lifecycle.rs` and `orchestrator/src/reconnect.rs`, as small
//! state machines.
//!
//! ```text
//! agent:  register ──► dial ──► connected ──over──► wait ──► dial (same registration)
//!            ▲  4xx, or DIALS failures in a row ◄─────┘
//! link:   ask ──► dial ──► up ──over──► wait ──► ask ──► dial ──► up
//!                            └─ failed: wait ──► ask ...   (while streams live)
//! ```
//!
//! Modelled: back-off with full jitter, its reset after a stable minute; no
//! timers of the mux while a request or a dial is under way; a link that gives
//! up when another executor answers. Not modelled: HTTP itself, TLS, pings
//! (silence ends a socket by the times in [`Transition::Cut`] and in pauses).
//!
//! [`Transition::Cut`]: crate::Transition::Cut

use std::sync::Arc;

use rendez_endpoint::Mux;
use rendez_proto::close::CloseFrame;
use rendez_relay_core::{Account, Capabilities, KeyFingerprint};

use crate::node::{Agent, CAP, LinkState, Phase, RESUME_CAP, Role};
use crate::pipe::{Packet, Socket};
use crate::plan::NodeId;
use crate::registry::{ConnectReply, Dialled, No};
use crate::relay::SocketId;
use crate::rules::End;
use crate::setup::{executor_config, orchestrator_config};
use crate::world::{Event, Shell, World};
use crate::{MS, Micros, SEC};

/// `agent::DIALS_PER_REGISTRATION`.
const DIALS: u32 = 3;
/// How long a client waits for an answer (docs/codex-wire.md#registry-api).
const HTTP_TIMEOUT: Micros = 10 * SEC;

impl World {
    /// When the registry's answer to a request of now arrives.
    pub(crate) fn answer_time(&self, node: NodeId) -> Micros {
        if self.registry.hangs(self.now) {
            return self.now + HTTP_TIMEOUT;
        }
        // a connection and a request
        self.now + 4 * self.nodes[node].path.latency + MS
    }

    pub(crate) fn shell_event(&mut self, node: NodeId, life: u32, what: Shell) {
        if self.nodes[node].life != life || !self.nodes[node].alive {
            if let Shell::Attached(socket) = what {
                self.relay_side_over(socket); // the kernel answers with a reset
            }
            return;
        }
        match what {
            Shell::Registered => self.registered(node),
            Shell::Connected => self.connected(node),
            Shell::StreamAllowed(talk) => {
                let reply = self.ask_registry(node);
                self.stream_allowed(node, talk, reply);
            }
            Shell::Validated { key, registration, peer, authorization, pending } => {
                let verdict =
                    self.registry.validate(self.now, &registration, &peer, &authorization);
                self.validated(node, key, pending, verdict);
            }
            Shell::Attached(socket) => self.attached(node, socket),
            Shell::DialFailed { refused } => self.dial_failed(node, refused),
            Shell::Retry => self.retry(node),
        }
        self.hear(node, None);
        self.dirty_nodes.insert(node);
    }

    // ---- both ------------------------------------------------------------------

    fn dial(&mut self, node: NodeId, what: Dialled) {
        self.nodes[node].timers_run = false;
        let at = self.now + 3 * self.nodes[node].path.latency;
        let life = self.nodes[node].life;
        self.at(at, Event::Upgrade { node, life, what });
    }

    /// The account of an orchestrator's token, or of the executors'. A relay that
    /// makes handshakes fail must not penalize the tokens for it.
    fn account(&mut self, bearer: Option<NodeId>) -> Arc<Account> {
        if self.reference.attacked { Arc::default() } else { self.relay.account(bearer) }
    }

    /// A websocket's upgrade request reaches the relay (`Rendezvous::admit`).
    pub(crate) fn upgrade(&mut self, node: NodeId, life: u32, what: Dialled) {
        let back = self.now + self.nodes[node].path.latency;
        let fail = |world: &mut World, refused| {
            world.at(back, Event::Shell { node, life, what: Shell::DialFailed { refused } });
        };
        if self.relay.down {
            return fail(self, false);
        }
        let now = self.relay_instant();
        let admitted = match &what {
            Dialled::Executor(claim) => {
                self.registry.check_executor(self.now, claim).and_then(|()| {
                    let token = self.account(None);
                    let joined = self.relay.hub.join_executor(claim.generation, token, now);
                    joined.map_err(|_| No::Refused)
                })
            }
            Dialled::Orchestrator(from, ticket) => {
                let can = Capabilities { resends: self.nodes[*from].link().profile.is_reliable() };
                self.registry.redeem_ticket(self.now, *ticket).and_then(|binding| {
                    let token = self.account(Some(*from));
                    let joined =
                        self.relay.hub.join_orchestrator(KeyFingerprint(binding), can, token);
                    joined.map_err(|_| No::Unavailable)
                })
            }
        };
        let port = match admitted {
            Ok(port) => port,
            Err(no) => return fail(self, no == No::Refused),
        };
        let socket = self.sockets.len();
        self.sockets.push(Socket::new(node, port, self.nodes[node].path));
        self.relay.joined(port, socket);
        self.note(format_args!("socket {socket} of n{node} joins"));
        if let Dialled::Executor(claim) = what {
            // probes of older streams now reach this executor
            self.reference.executor_replaced(node);
            let old = self.relay.executor.replace((socket, claim.id));
            if let Some((old, _)) = old {
                self.dirty_sockets.insert(old);
            }
        }
        self.wake_ports();
        self.at(back, Event::Shell { node, life, what: Shell::Attached(socket) });
    }

    fn attached(&mut self, node: NodeId, socket: SocketId) {
        if !self.sockets[socket].relay_open && self.sockets[socket].broken {
            return self.dial_failed(node, false);
        }
        self.sockets[socket].endpoint_open = true;
        let now = self.instant(node);
        let owner = &mut self.nodes[node];
        owner.socket = Some(socket);
        owner.timers_run = true;
        owner.connected_at = self.now;
        let registration = match &mut owner.role {
            Role::Executor(agent) => {
                agent.failed_dials = 0;
                agent.registration.as_ref().map(|registration| registration.id.clone())
            }
            Role::Orchestrator(link) => match std::mem::replace(&mut link.state, LinkState::Up) {
                LinkState::Dialling(reply) => Some(reply.registration),
                _ => None,
            },
        };
        self.note(format_args!("n{node} is attached to socket {socket}"));
        if let Some(registration) = registration {
            self.nodes[node].mux.socket_opened(now, registration);
        }
    }

    /// A node's websocket is over, at its end; `code`: the relay closed it.
    pub(crate) fn socket_over(&mut self, node: NodeId, socket: SocketId, code: Option<u16>) {
        self.sockets[socket].down.clear();
        self.nodes[node].socket = None;
        let now = self.instant(node);
        self.nodes[node].mux.socket_lost(now);
        self.hear(node, None);
        self.check_codex_streams_ended(node);
        let lived = self.now - self.nodes[node].connected_at;
        self.nodes[node].backoff.connected_for(lived);
        if code == Some(CloseFrame::SUPERSEDED.code) && self.nodes[node].is_executor() {
            self.nodes[node].backoff.not_at_once();
        }
        if self.nodes[node].is_executor() {
            return self.wait(node);
        }
        let link = self.nodes[node].link();
        if matches!(link.state, LinkState::Closing) || !link.profile.is_reliable() {
            return self.link_down(node);
        }
        self.reopen(node);
    }

    fn wait(&mut self, node: NodeId) {
        let owner = &mut self.nodes[node];
        owner.timers_run = true;
        let held = match &owner.role {
            Role::Executor(agent) => agent.streams.values().any(|served| served.open),
            Role::Orchestrator(_) => true,
        };
        let cap = if held { RESUME_CAP } else { CAP };
        let delay = owner.backoff.next_delay(cap, owner.rng.number());
        self.shell(self.now + delay, node, Shell::Retry);
    }

    fn retry(&mut self, node: NodeId) {
        if self.nodes[node].is_executor() {
            match self.nodes[node].agent().registration.clone() {
                Some(registration) => self.dial(node, Dialled::Executor(registration)),
                None => self.register(node),
            }
        } else if matches!(self.nodes[node].link().state, LinkState::Waiting) {
            if self.nodes[node].link().keys.is_empty() {
                self.link_down(node);
            } else {
                self.ask(node);
            }
        }
    }

    fn dial_failed(&mut self, node: NodeId, refused: bool) {
        if !self.nodes[node].is_executor() {
            return self.connect_failed(node);
        }
        let agent = self.nodes[node].agent();
        agent.failed_dials += 1;
        if refused || agent.failed_dials >= DIALS {
            agent.failed_dials = 0;
            agent.registration = None;
        }
        self.wait(node);
    }

    // ---- the agent -------------------------------------------------------------

    /// An executor's process starts: same identity, no memory.
    pub(crate) fn start(&mut self, node: NodeId) {
        let seed = self.rng.bytes();
        let owner = &mut self.nodes[node];
        if owner.alive || self.leaving {
            return;
        }
        let mux = Mux::new(executor_config(&owner.identity), seed);
        owner.replace_mux(mux);
        owner.role = Role::Executor(Agent::default());
        owner.alive = true;
        owner.life += 1;
        owner.paused_until = 0;
        self.note(format_args!("n{node} starts"));
        self.register(node);
    }

    fn register(&mut self, node: NodeId) {
        self.nodes[node].timers_run = false;
        self.shell(self.answer_time(node), node, Shell::Registered);
    }

    fn registered(&mut self, node: NodeId) {
        let key = self.nodes[node].identity.public().clone();
        match self.registry.register(self.now, key) {
            Ok(registration) => {
                self.note(format_args!("n{node} registers as {}", registration.id));
                self.nodes[node].agent().registration = Some(registration.clone());
                self.dial(node, Dialled::Executor(registration));
            }
            Err(_) => self.wait(node),
        }
    }

    // ---- the link --------------------------------------------------------------

    /// A new connection, with a mux of its own.
    pub(crate) fn link_start(&mut self, node: NodeId) {
        let seed = self.rng.bytes();
        let owner = &mut self.nodes[node];
        let identity = owner.identity.clone();
        let link = owner.link();
        link.executor = None;
        if std::mem::replace(&mut link.mux_used, true) {
            let mux = Mux::new(orchestrator_config(&identity, link.profile), seed);
            owner.replace_mux(mux);
        }
        self.ask(node);
    }

    fn ask(&mut self, node: NodeId) {
        self.nodes[node].link().state = LinkState::Asking;
        self.nodes[node].timers_run = false;
        self.shell(self.answer_time(node), node, Shell::Connected);
    }

    /// Tries again after a wait, while there is a stream to resume.
    fn reopen(&mut self, node: NodeId) {
        self.nodes[node].link().state = LinkState::Waiting;
        self.wait(node);
    }

    fn ask_registry(&mut self, node: NodeId) -> Result<ConnectReply, No> {
        let profile = self.nodes[node].link().profile;
        let key = self.nodes[node].identity.public().clone();
        self.registry.connect(self.now, self.relay.connected(), &key, profile)
    }

    fn connected(&mut self, node: NodeId) {
        let Ok(reply) = self.ask_registry(node) else { return self.connect_failed(node) };
        let link = self.nodes[node].link();
        // another executor does not know the streams
        if link.executor.get_or_insert_with(|| reply.executor.clone()) != &reply.executor {
            self.note(format_args!("n{node}: another executor answers"));
            return self.link_down(node);
        }
        let ticket = reply.ticket;
        link.state = LinkState::Dialling(reply);
        self.dial(node, Dialled::Orchestrator(node, ticket));
    }

    fn connect_failed(&mut self, node: NodeId) {
        if self.nodes[node].link().keys.is_empty() {
            return self.link_down(node);
        }
        self.reopen(node);
    }

    /// Gives the connection up: its streams are lost.
    fn link_down(&mut self, node: NodeId) {
        self.nodes[node].timers_run = false;
        let delay = {
            let owner = &mut self.nodes[node];
            owner.backoff.next_delay(CAP, owner.rng.number())
        };
        let not_before = self.now + delay;
        let link = self.nodes[node].link();
        link.state = LinkState::Idle { not_before };
        let lost = std::mem::take(&mut link.keys);
        if !lost.is_empty() {
            // the application drops the connection, and its mux with it
            link.mux_used = false;
            let profile = link.profile;
            let seed = self.rng.bytes();
            let owner = &mut self.nodes[node];
            owner.replace_mux(Mux::new(orchestrator_config(&owner.identity, profile), seed));
        }
        for talk in lost.into_values() {
            let stream = self.nodes[node].link().talks[talk].stream;
            self.reference.gone(stream, End::Orchestrator);
            self.stream_over(node, talk);
        }
        self.dirty_nodes.insert(node);
        self.at(not_before, Event::Look(node));
    }

    // ---- leaving ---------------------------------------------------------------

    /// All agents stop, at once and for good.
    pub(crate) fn leave(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_executor() && self.nodes[node].alive {
                // its streams outlive its socket by their grace, so the process
                // stays, without its shell
                self.nodes[node].life += 1;
                self.nodes[node].timers_run = true;
                if let Some(socket) = self.nodes[node].socket.take() {
                    self.sockets[socket].endpoint_open = false;
                    let at = self.sockets[socket].up.push(Packet::Close { code: 1000 }, self.now);
                    self.at(at, Event::Arrive { socket, at: crate::pipe::Side::Relay });
                    let now = self.instant(node);
                    self.nodes[node].mux.socket_lost(now);
                    self.hear(node, None);
                }
            } else if !self.nodes[node].is_executor() {
                let link = self.nodes[node].link();
                if matches!(link.state, LinkState::Up) {
                    link.state = LinkState::Closing;
                }
                self.dirty_nodes.insert(node);
            }
        }
    }

    /// Whether an orchestrator has something to say.
    pub(crate) fn has_plans(&self, node: NodeId) -> bool {
        match &self.nodes[node].role {
            Role::Executor(_) => false,
            Role::Orchestrator(link) => link.talks.iter().any(|talk| match talk.phase {
                Phase::Waiting(at) => at <= self.now,
                Phase::Done => false,
                _ => true,
            }),
        }
    }
}
