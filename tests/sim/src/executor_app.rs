//! The executor's application: it accepts streams, executes each request once,
//! and keeps the output.

use rendez_endpoint::{Key, PendingHandshake, Refusal};

use crate::Micros;
use crate::apps::SendOutcome;
use crate::message::{Header, Kind};
use crate::node::{Role, Served, Session};
use crate::plan::{Closer, NodeId};
use crate::registry::{No, Verdict};
use crate::rules::{End, Rule, StreamIndex};
use crate::world::World;

/// Requests of one stream that wait for their answers before the executor reads no
/// more of it, as in `executor-agent/src/session/rpc_connection.rs`.
const REQUESTS_IN_FLIGHT: usize = 64;
/// Trailers after the last output.
const TRAILERS: u32 = 3;

impl World {
    /// The registry's verdict (`executor-agent/src/authorize.rs`).
    pub(crate) fn validated(
        &mut self,
        node: NodeId,
        key: Key,
        pending: PendingHandshake,
        verdict: Result<Verdict, No>,
    ) {
        let now = self.instant(node);
        if verdict == Ok(Verdict::Valid) {
            self.nodes[node].mux.authorize(now, key, pending.authorize());
        } else {
            self.nodes[node].mux.refuse(now, key, Refusal::Denied);
            // no event follows
            let agent = self.nodes[node].agent();
            if agent.streams.get(&key).is_some_and(|served| !served.open) {
                agent.streams.remove(&key);
            }
        }
    }

    pub(crate) fn run_executor(&mut self, node: NodeId) {
        let keys: Vec<Key> = self.nodes[node].agent().streams.keys().copied().collect();
        for key in keys {
            self.serve(node, key);
            self.answer(node, key);
        }
    }

    /// Reads requests while not too many wait for their answers to be sent.
    fn serve(&mut self, node: NodeId, key: Key) {
        while !self.is_slow(node) {
            let Some(served) = self.nodes[node].agent().streams.get(&key) else { return };
            if !served.readable || served.queue.len() >= REQUESTS_IN_FLIGHT {
                return;
            }
            let stream = served.stream;
            let header = self.read(node, key, stream);
            let now = self.now;
            let Role::Executor(agent) = &mut self.nodes[node].role else { return };
            let Some(served) = agent.streams.get_mut(&key) else { return };
            let Some(Header { kind, conversation: id, number, session }) = header else {
                served.readable = false;
                return;
            };
            let reply = |kind, number, session, size| {
                Header { kind, conversation: id, number, session }.with_body(size)
            };
            match kind {
                Kind::Hello => {
                    if session == 0 {
                        // not welcomed before: no request was sent yet
                        self.sessions += 1;
                        agent.sessions.insert(id, Session::new(self.sessions, now));
                    }
                    let known = agent.sessions.get(&id).map(|session| session.number);
                    let known = known.filter(|known| session == 0 || *known == session);
                    if known.is_some() {
                        (served.conversation, served.cursor) = (Some(id), number);
                    }
                    served.queue.push_back(reply(Kind::Welcome, 0, known.unwrap_or(0), 0));
                    if known.is_some() {
                        self.take_over(node, key, id);
                    }
                }
                Kind::Request => {
                    // a stream whose session moved to another one is about to close
                    let Some(current) = agent.sessions.get_mut(&id) else { continue };
                    if current.number != session || served.closing {
                        continue;
                    }
                    let new = current.done.insert(number);
                    let size = self.talk_plan(id).requests[number as usize].1;
                    if new {
                        let verdict = self.reference.effect(id, number);
                        self.check(verdict);
                    }
                    let reply = reply(Kind::Answer, number, session, size);
                    if let Some(served) = self.nodes[node].agent().streams.get_mut(&key) {
                        served.queue.push_back(reply);
                    }
                }
                Kind::Complete => {
                    served.complete = true;
                    for number in 0..TRAILERS {
                        let size = number * 30_000;
                        served.queue.push_back(reply(Kind::Trailer, number, session, size));
                    }
                }
                Kind::Welcome | Kind::Answer | Kind::Output | Kind::Trailer => {
                    let detail = format!("an executor got {kind:?}");
                    return self.violate(Rule::ExactlyOnceInOrder, detail);
                }
            }
        }
    }

    /// A session moves to a new stream; the old one is closed.
    fn take_over(&mut self, node: NodeId, key: Key, id: u32) {
        let now = self.instant(node);
        let agent = self.nodes[node].agent();
        let old = agent.streams.iter_mut().find(|(other, served)| {
            **other != key && served.conversation == Some(id) && !served.closing
        });
        if let Some((old, served)) = old {
            served.closing = true;
            let (old, stream) = (*old, served.stream);
            self.reference.app_closed(stream, End::Executor);
            self.nodes[node].mux.close(now, old);
            self.hear(node, None);
        }
    }

    /// Sends answers and output until there is no room.
    fn answer(&mut self, node: NodeId, key: Key) {
        loop {
            let now = self.now;
            let agent = self.nodes[node].agent();
            let Some(served) = agent.streams.get(&key) else { return };
            if !served.open || !served.writable || served.closing {
                return;
            }
            let stream = served.stream;
            let session = served.conversation.and_then(|id| agent.sessions.get(&id));
            let started = session.map_or(now, |session| session.started);
            let session_number = session.map_or(0, |session| session.number);
            let conversation = served.conversation;
            let (queued, complete) = (served.queue.front().cloned(), served.complete);
            let from_queue = queued.is_some();
            let next = served.cursor + 1;
            let message = match (queued, conversation) {
                (Some(message), _) => message,
                (None, _) if complete => {
                    let closer = conversation.map(|id| self.talk_plan(id).closer);
                    if matches!(closer, Some(Closer::Executor | Closer::Both)) {
                        self.close_served(node, key, stream);
                    }
                    return;
                }
                (None, Some(id)) => {
                    let plan = self.talk_plan(id);
                    let Some(size) = plan.outputs.get(next as usize - 1).copied() else { return };
                    let at = started + u64::from(next) * plan.output_every;
                    if at > now {
                        return self.alarm(node, at);
                    }
                    let kind = Kind::Output;
                    let session = session_number;
                    Header { kind, conversation: id, number: next, session }.with_body(size)
                }
                (None, None) => return,
            };
            let outcome = self.say(node, key, stream, message);
            let Some(served) = self.nodes[node].agent().streams.get_mut(&key) else { return };
            match outcome {
                SendOutcome::Sent if from_queue => {
                    served.queue.pop_front();
                    // there is room for another request
                    self.serve(node, key);
                }
                SendOutcome::Sent => served.cursor = next,
                SendOutcome::Blocked => served.writable = false,
                SendOutcome::Closed => {
                    // answers cannot be sent any more; received messages are read
                    served.queue.clear();
                    return self.serve(node, key);
                }
            }
        }
    }

    fn close_served(&mut self, node: NodeId, key: Key, stream: StreamIndex) {
        let now = self.instant(node);
        if let Some(served) = self.nodes[node].agent().streams.get_mut(&key) {
            served.closing = true;
        }
        self.reference.app_closed(stream, End::Executor);
        self.nodes[node].mux.close(now, key);
        self.hear(node, None);
    }

    fn talk_plan(&self, id: u32) -> &crate::plan::Conversation {
        let orchestrator = &self.plan.orchestrators[id as usize / 100];
        &orchestrator.conversations[id as usize % 100]
    }
}

impl Served {
    pub(crate) fn new(stream: StreamIndex) -> Self {
        Self {
            stream,
            open: false,
            readable: false,
            writable: false,
            conversation: None,
            queue: std::collections::VecDeque::new(),
            cursor: 0,
            complete: false,
            closing: false,
        }
    }
}

impl Session {
    fn new(number: u32, started: Micros) -> Self {
        Self { number, started, done: std::collections::BTreeSet::new() }
    }
}
