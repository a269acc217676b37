//! The orchestrator's application: it sends requests, reads answers and output,
//! and continues on another stream after a loss.

use rendez_endpoint::{Connect, Key};
use rendez_proto::ids::StreamId;

use crate::apps::SendOutcome;
use crate::message::{Header, Kind};
use crate::node::{LinkState, Outcome, Phase};
use crate::plan::{Closer, NodeId};
use crate::registry::{ConnectReply, No};
use crate::rules::{End, Rule};
use crate::world::{Event, Shell, World};
use crate::{MS, Micros, SEC};

/// Silence after which a stream that does not resend is given up.
const WATCHDOG: Micros = 20 * SEC;

impl World {
    pub(crate) fn run_orchestrator(&mut self, node: NodeId) {
        let count = self.nodes[node].link().talks.len();
        match self.nodes[node].link().state.clone() {
            LinkState::Idle { not_before } => {
                if self.has_plans(node) && !self.leaving {
                    if not_before <= self.now {
                        self.link_start(node);
                    }
                } else {
                    for talk in 0..count {
                        if let Phase::Waiting(at) = self.nodes[node].link().talks[talk].phase
                            && at > self.now
                        {
                            self.alarm(node, at);
                        }
                    }
                }
            }
            LinkState::Up => {
                for talk in 0..count {
                    if let Phase::Waiting(at) = self.nodes[node].link().talks[talk].phase {
                        if at > self.now {
                            self.alarm(node, at);
                        } else {
                            self.nodes[node].link().talks[talk].phase = Phase::Asking;
                            let at = self.answer_time(node);
                            self.shell(at, node, Shell::StreamAllowed(talk));
                        }
                    }
                }
                if self.nodes[node].link().talks.iter().all(|talk| talk.phase == Phase::Done) {
                    self.nodes[node].link().state = LinkState::Closing;
                }
            }
            _ => {}
        }
        for talk in 0..count {
            if self.nodes[node].link().talks[talk].key.is_some() {
                self.listen(node, talk);
                self.talk(node, talk);
                self.watch(node, talk);
            }
        }
    }

    /// The registry's answer for a stream.
    pub(crate) fn stream_allowed(
        &mut self,
        node: NodeId,
        index: usize,
        reply: Result<ConnectReply, No>,
    ) {
        let again = Phase::Waiting(self.now + self.pause(node));
        let id = StreamId::from_random(self.rng.bytes());
        let now = self.instant(node);
        let owner = &mut self.nodes[node];
        let link = owner.link();
        let up = matches!(link.state, LinkState::Up | LinkState::Waiting | LinkState::Asking);
        let profile = link.profile;
        let Ok(reply) = reply else {
            link.talks[index].phase = again;
            return;
        };
        // streams of an executor that has left end by themselves
        link.executor = Some(reply.executor.clone());
        if !up {
            link.talks[index].phase = again;
            return;
        }
        let connect = Connect {
            stream: id.clone(),
            profile,
            registration: reply.registration,
            peer: reply.executor,
            authorization: reply.authorization,
        };
        match owner.mux.connect(now, connect) {
            Ok(key) => {
                let stream = self.reference.dialled(id, profile, node);
                self.note(format_args!("n{node} dials stream {stream}"));
                let link = self.nodes[node].link();
                link.keys.insert(key, index);
                let talk = &mut link.talks[index];
                talk.phase = Phase::Dialling;
                (talk.key, talk.stream) = (Some(key), stream);
                (talk.readable, talk.writable) = (false, false);
                talk.asked.clear();
            }
            Err(error) => {
                self.violate(Rule::Ending, format!("node {node} cannot connect: {error}"));
            }
        }
    }

    /// A short wait before a retry.
    fn pause(&mut self, node: NodeId) -> Micros {
        self.nodes[node].rng.between(100 * MS, 3 * SEC)
    }

    /// A conversation's stream is over.
    pub(crate) fn stream_over(&mut self, node: NodeId, index: usize) {
        let again = self.now + self.pause(node);
        let talk = &mut self.nodes[node].link().talks[index];
        talk.key = None;
        if talk.outcome.is_none() && talk.has_everything() && talk.session.is_some() {
            talk.outcome = Some(Outcome::Complete);
        }
        talk.phase = if talk.outcome.is_some() { Phase::Done } else { Phase::Waiting(again) };
        self.at(again, Event::Look(node));
    }

    fn listen(&mut self, node: NodeId, index: usize) {
        while !self.is_slow(node) {
            let talk = &self.nodes[node].link().talks[index];
            let (Some(key), true, stream) = (talk.key, talk.readable, talk.stream) else { return };
            let header = self.read(node, key, stream);
            let now = self.now;
            let talk = &mut self.nodes[node].link().talks[index];
            let Some(header) = header else {
                talk.readable = false;
                return;
            };
            talk.progress = now;
            match header.kind {
                Kind::Welcome if header.session != 0 => {
                    talk.session = Some(header.session);
                    talk.first_asked.get_or_insert(now);
                    talk.phase = Phase::Talking;
                }
                Kind::Welcome => talk.outcome = Some(Outcome::Unknown),
                Kind::Answer => {
                    talk.answered.insert(header.number);
                }
                Kind::Output if header.number == talk.outputs + 1 => talk.outputs += 1,
                Kind::Output => {
                    let detail = format!("output {} after {}", header.number, talk.outputs);
                    return self.violate(Rule::ExactlyOnceInOrder, detail);
                }
                Kind::Trailer => {}
                Kind::Hello | Kind::Request | Kind::Complete => {
                    let detail = format!("an orchestrator got {:?}", header.kind);
                    return self.violate(Rule::ExactlyOnceInOrder, detail);
                }
            }
            if talk.phase == Phase::Talking && talk.has_everything() {
                talk.phase = match talk.plan.closer {
                    Closer::Orchestrator => Phase::Completing { reported: true },
                    Closer::Lingers => Phase::Lingering,
                    Closer::Executor | Closer::Both => Phase::Completing { reported: false },
                };
            }
        }
    }

    /// Sends what is due, until there is no room.
    fn talk(&mut self, node: NodeId, index: usize) {
        loop {
            let closing = self.closing;
            let now = self.now;
            let talk = &self.nodes[node].link().talks[index];
            let (Some(key), stream, id) = (talk.key, talk.stream, talk.id) else { return };
            if talk.outcome == Some(Outcome::Unknown) && talk.phase != Phase::Closing {
                return self.close_talk(node, index, key);
            }
            let session = talk.session.unwrap_or(0);
            let header = |kind, number| Header { kind, conversation: id, number, session };
            let mut next_request = None;
            let message = match talk.phase {
                _ if !talk.writable => return,
                Phase::Greeting { sent: false } => header(Kind::Hello, talk.outputs).with_body(0),
                Phase::Talking => {
                    let started = talk.first_asked.unwrap_or(now);
                    let every = talk.plan.request_every;
                    let due = |number: u32| started + u64::from(number) * every;
                    let todo = (0..talk.plan.requests.len() as u32).find(|number| {
                        !talk.answered.contains(number) && !talk.asked.contains(number)
                    });
                    let Some(number) = todo else {
                        // no requests, perhaps no output either
                        if talk.has_everything() {
                            self.nodes[node].link().talks[index].phase =
                                Phase::Completing { reported: false };
                            continue;
                        }
                        return;
                    };
                    if due(number) > now {
                        let at = due(number);
                        return self.alarm(node, at);
                    }
                    next_request = Some(number);
                    let (size, _) = talk.plan.requests[number as usize];
                    header(Kind::Request, number).with_body(size)
                }
                Phase::Completing { reported: false } => header(Kind::Complete, 0).with_body(0),
                Phase::Completing { reported: true } if talk.plan.closer != Closer::Executor => {
                    return self.close_talk(node, index, key);
                }
                Phase::Lingering if closing => return self.close_talk(node, index, key),
                _ => return,
            };
            match self.say(node, key, stream, message) {
                SendOutcome::Blocked => self.nodes[node].link().talks[index].writable = false,
                SendOutcome::Closed => return,
                SendOutcome::Sent => {
                    let talk = &mut self.nodes[node].link().talks[index];
                    match talk.phase {
                        Phase::Greeting { .. } => talk.phase = Phase::Greeting { sent: true },
                        Phase::Completing { .. } => {
                            talk.phase = Phase::Completing { reported: true }
                        }
                        _ => talk.asked.extend(next_request),
                    }
                }
            }
        }
    }

    fn close_talk(&mut self, node: NodeId, index: usize, key: Key) {
        let now = self.instant(node);
        let talk = &mut self.nodes[node].link().talks[index];
        talk.phase = Phase::Closing;
        let stream = talk.stream;
        self.reference.app_closed(stream, End::Orchestrator);
        self.nodes[node].mux.close(now, key);
        self.hear(node, None);
    }

    /// Gives up a stream that does not resend, or whose end is unaware of a loss.
    fn watch(&mut self, node: NodeId, index: usize) {
        let now = self.now;
        let talk = &self.nodes[node].link().talks[index];
        let Some(key) = talk.key else { return };
        let (stream, phase) = (talk.stream, talk.phase);
        let known = self.reference.stream(stream);
        let repairs = known.profile.is_reliable() || phase == Phase::Lingering;
        if phase == Phase::Closing || (repairs && !known.unaware) {
            return;
        }
        let talk = &self.nodes[node].link().talks[index];
        // the next request or output may come much later
        let patience = WATCHDOG + talk.plan.request_every + talk.plan.output_every;
        let until = talk.progress.max(talk.plan.starts) + patience;
        if talk.phase != Phase::Dialling && until <= now {
            self.note(format_args!("n{node} gives up waiting"));
            self.count("given up", 1);
            self.close_talk(node, index, key);
        } else if talk.phase != Phase::Dialling {
            self.alarm(node, until);
        }
    }
}
