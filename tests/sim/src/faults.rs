//! Faults of processes, sockets and clocks.

use crate::node::Role;
use crate::pipe::Side;
use crate::plan::{NodeId, Transition};
use crate::relay::SocketId;
use crate::rules::End;
use crate::world::{Event, World};
use crate::{Micros, SEC};

/// Silence after which a websocket is given up (`limits::PONG_TIMEOUT`), and
/// the last ping before it.
const SILENCE: (Micros, Micros) = (30 * SEC, 60 * SEC);

impl World {
    pub(crate) fn befall(&mut self, index: usize) {
        let (_, transition) = self.plan.transitions[index];
        self.note(format_args!("{transition:?}"));
        *self.report.transitions.entry(transition.name()).or_default() += 1;
        match transition {
            Transition::Attack { how, on, percent, during } => {
                self.attacks.begin(on, how, percent, self.now + during);
            }
            Transition::Cut { node, endpoint_notices, relay_notices } => {
                if let Some(socket) = self.nodes[node].socket {
                    self.sever(socket, endpoint_notices, relay_notices);
                }
            }
            Transition::Stall { node, during } => {
                if let Some(socket) = self.nodes[node].socket {
                    self.stall(socket, during);
                }
            }
            Transition::RestartRelay { during } => self.restart_relay(during),
            Transition::LoseRegistry { during, hangs } => {
                let until = self.now + during;
                self.registry.away_until = self.registry.away_until.max(until);
                if hangs {
                    self.registry.hangs_until = self.registry.hangs_until.max(until);
                }
            }
            Transition::RestartExecutor { during } => {
                self.kill(0);
                self.at(self.now + during, Event::Start(0));
            }
            Transition::Usurp { during } => {
                let usurper = self.add_executor();
                self.start(usurper);
                match during {
                    // the first one takes over again meanwhile, or afterwards
                    Some(during) => self.at(self.now + during, Event::Kill(usurper)),
                    None => {
                        let first = self
                            .nodes
                            .iter()
                            .position(|node| node.alive && matches!(node.role, Role::Executor(_)));
                        if let Some(first) = first.filter(|first| *first != usurper) {
                            self.kill(first);
                        }
                    }
                }
            }
            Transition::Pause { node, during, clock_stands } => {
                self.pause_node(node, during, clock_stands);
            }
            Transition::SlowReader { node, during } => {
                let until = self.now + during;
                self.nodes[node].slow_until = self.nodes[node].slow_until.max(until);
                self.at(until, Event::Look(node));
            }
            Transition::JumpClock { node, by } => {
                self.nodes[node].ahead += by as i64;
                self.at(self.now, Event::Look(node));
            }
        }
    }

    /// From now on a socket carries nothing; its ends notice later.
    pub(crate) fn sever(&mut self, socket: SocketId, endpoint: Micros, relay: Micros) {
        self.sockets[socket].broken = true;
        self.at(self.now + endpoint, Event::Notice { socket, at: Side::Endpoint });
        self.at(self.now + relay, Event::Notice { socket, at: Side::Relay });
    }

    fn stall(&mut self, socket: SocketId, during: Micros) {
        let until = self.now + during;
        let stalled = &mut self.sockets[socket].stalled_until;
        *stalled = until.max(*stalled);
        for at in [Side::Endpoint, Side::Relay] {
            self.at(until, Event::Arrive { socket, at });
        }
    }

    fn restart_relay(&mut self, during: Micros) {
        for socket in 0..self.sockets.len() {
            let open = self.sockets[socket].endpoint_open || self.sockets[socket].relay_open;
            if open && !self.sockets[socket].broken {
                self.sockets[socket].broken = true;
                // the kernel answers for the dead process
                let latency = self.nodes[self.sockets[socket].node].path.latency;
                let notice = Event::Notice { socket, at: Side::Endpoint };
                self.at(self.now + latency, notice);
            }
            self.sockets[socket].relay_open = false;
        }
        self.relay.restart();
        self.relay.down = true;
        let until = self.now + during;
        self.registry.away_until = self.registry.away_until.max(until);
        self.at(until, Event::RelayStarts);
    }

    fn pause_node(&mut self, node: NodeId, during: Micros, clock_stands: bool) {
        if self.nodes[node].paused_until > self.now {
            return;
        }
        let until = self.now + during;
        self.nodes[node].paused_until = until;
        if let Some(socket) = self.nodes[node].socket {
            // no ping is answered meanwhile
            let (last_ping, limit) = SILENCE;
            let notices = self.rng.between(limit - last_ping, limit);
            if notices < during {
                self.at(self.now + notices, Event::Notice { socket, at: Side::Relay });
                self.sockets[socket].broken = true;
                // its kernel or its own clock reports it at once
                self.at(until, Event::Notice { socket, at: Side::Endpoint });
            }
        }
        if clock_stands {
            // it does not run meanwhile, so its clock may be set back now
            self.nodes[node].ahead -= during as i64;
        }
        self.at(until, Event::Look(node));
    }

    /// A process is killed.
    pub(crate) fn kill(&mut self, node: NodeId) {
        if !self.nodes[node].alive {
            return;
        }
        self.note(format_args!("n{node} is killed"));
        self.nodes[node].alive = false;
        self.nodes[node].life += 1;
        let gone = std::mem::take(&mut self.nodes[node].agent().streams);
        for served in gone.into_values() {
            self.reference.gone(served.stream, End::Executor);
        }
        if let Some(socket) = self.nodes[node].socket.take() {
            self.sockets[socket].endpoint_open = false;
            let latency = self.nodes[node].path.latency;
            self.sever(socket, 0, latency);
        }
    }
}
