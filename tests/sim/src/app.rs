//! The applications: sessions that outlive streams.
//!
//! ```text
//! orchestrator                                   executor
//!   hello (session, after output n) ───────────►   finds or makes the session
//!   ◄─────────────────────────────────── welcome   (session; 0: not known)
//!   request 1, 2, ... ─────────────────────────►   each has its effect once,
//!   ◄──────────────────────────────── answer ...   is answered as often as asked
//!   ◄──────────────────── output n+1, n+2, ...
//!   complete ──────────────────────────────────►
//!   ◄───────────────────────── trailers, the end
//! ```
//!
//! After a loss the orchestrator goes on over another stream: it repeats what
//! was not answered by the same number, and reads the output from where it
//! stopped. If the executor has no such session any more, the outcome is
//! unknown and nothing is repeated. Both are driven by events alone, so a
//! missing `Readable` or `Writable` stops them for ever, and is noticed.

use bytes::Bytes;
use rendez_endpoint::{Authorized, Closed, Connect, Event as MuxEvent, Key, Refusal, SendError};
use rendez_proto::ids::StreamId;
use rendez_proto::keys::PublicKey;
use rendez_proto::limits::REQUESTS_IN_FLIGHT;

use crate::message::{Header, Kind};
use crate::node::{LinkState, Outcome, Phase, Role, Served, Session};
use crate::pipe::Origin;
use crate::plan::{Closer, NodeId};
use crate::registry::{ConnectReply, No, Verdict};
use crate::rules::{End, Rule, StreamIndex};
use crate::world::{Event, Shell, World};
use crate::{MS, Micros, SEC};

/// Silence after which a stream that cannot repair itself is given up.
const WATCHDOG: Micros = 20 * SEC;
/// Trailers after the last output.
const TRAILERS: u32 = 3;

/// What became of an attempt to say something.
enum Said {
    Yes,
    Later,
    Never,
}

impl World {
    pub(crate) fn run_application(&mut self, node: NodeId) {
        if self.nodes[node].alarm.is_some_and(|at| at <= self.now) {
            self.nodes[node].alarm = None;
        }
        if self.nodes[node].is_executor() {
            self.run_executor(node);
        } else {
            self.run_orchestrator(node);
        }
    }

    /// Looks at a node again at a time, or earlier.
    fn alarm(&mut self, node: NodeId, at: Micros) {
        if self.nodes[node].alarm.is_none_or(|alarm| at < alarm) {
            self.nodes[node].alarm = Some(at);
            self.at(at, Event::Look(node));
        }
    }

    fn say(&mut self, node: NodeId, key: Key, stream: StreamIndex, message: Bytes) -> Said {
        match self.nodes[node].mux.send(key, &message) {
            Ok(()) => {
                let end = self.end_of(node);
                let verdict = self.reference.sent(stream, end, message);
                self.check(verdict);
                Said::Yes
            }
            Err(SendError::Blocked) => Said::Later,
            Err(SendError::Closed(_)) => Said::Never,
            Err(SendError::TooLarge) => {
                self.violate(Rule::Ending, "a message is called too large".to_owned());
                Said::Never
            }
        }
    }

    fn read(&mut self, node: NodeId, key: Key, stream: StreamIndex) -> Option<Header> {
        let message = self.nodes[node].mux.recv(key)?;
        let end = self.end_of(node);
        let verdict = self.reference.received(stream, end, &message);
        self.check(verdict);
        Header::parse(&message)
    }

    fn end_of(&self, node: NodeId) -> End {
        if self.nodes[node].is_executor() { End::Executor } else { End::Orchestrator }
    }

    fn is_slow(&self, node: NodeId) -> bool {
        self.nodes[node].slow_until > self.now
    }

    // ---- what the mux says -----------------------------------------------------

    pub(crate) fn application_event(
        &mut self,
        node: NodeId,
        event: MuxEvent,
        cause: Option<Origin>,
    ) {
        match event {
            MuxEvent::AuthorizationNeeded { key, stream, registration, peer, authorization } => {
                let Some(stream) = self.reference.find(&stream) else {
                    let detail = "a handshake for a stream that nobody started".to_owned();
                    return self.violate(Rule::NothingOutOfThinAir, detail);
                };
                self.nodes[node].agent().streams.insert(key, Served::new(stream));
                let what = Shell::Validated { key, registration, peer, authorization };
                self.shell(self.answer_time(node), node, what);
            }
            MuxEvent::Opened { key } => self.stream_opened(node, key),
            MuxEvent::Readable { key } => self.flags(node, key, |readable, _| *readable = true),
            MuxEvent::Writable { key } => self.flags(node, key, |_, writable| *writable = true),
            MuxEvent::Closed { key, why } => self.stream_closed(node, key, why, cause),
        }
    }

    fn flags(&mut self, node: NodeId, key: Key, set: impl FnOnce(&mut bool, &mut bool)) {
        match &mut self.nodes[node].role {
            Role::Executor(agent) => {
                if let Some(served) = agent.streams.get_mut(&key) {
                    set(&mut served.readable, &mut served.writable);
                }
            }
            Role::Orchestrator(link) => {
                if let Some(talk) = link.keys.get(&key) {
                    let talk = &mut link.talks[*talk];
                    set(&mut talk.readable, &mut talk.writable);
                }
            }
        }
        self.dirty_nodes.insert(node);
    }

    fn stream_opened(&mut self, node: NodeId, key: Key) {
        let now = self.now;
        let stream = match &mut self.nodes[node].role {
            Role::Executor(agent) => {
                let Some(served) = agent.streams.get_mut(&key) else { return };
                (served.open, served.writable) = (true, true);
                served.stream
            }
            Role::Orchestrator(link) => {
                let Some(talk) = link.keys.get(&key) else { return };
                let talk = &mut link.talks[*talk];
                talk.phase = Phase::Greeting { sent: false };
                (talk.writable, talk.progress) = (true, now);
                talk.stream
            }
        };
        let (end, local) = (self.end_of(node), self.nodes[node].local(now));
        if end == End::Executor {
            self.reference.stream(stream).executor = Some(node);
        }
        self.reference.opened(stream, end, now, local);
        self.dirty_nodes.insert(node);
    }

    fn stream_closed(&mut self, node: NodeId, key: Key, why: Closed, cause: Option<Origin>) {
        let (stream, talk) = match &mut self.nodes[node].role {
            Role::Executor(agent) => match agent.streams.remove(&key) {
                Some(served) => (served.stream, None),
                None => return,
            },
            Role::Orchestrator(link) => match link.keys.remove(&key) {
                Some(talk) => (link.talks[talk].stream, Some(talk)),
                None => return,
            },
        };
        let (end, local) = (self.end_of(node), self.nodes[node].local(self.now));
        let open = self.reference.is_open(stream, end);
        let reliable = self.reference.stream(stream).profile.is_reliable();
        if let Some(Origin::Hostile { denies, .. }) = cause
            && reliable
            && open
        {
            let announced = why == Closed::Finished && self.reference.has_app_closed(stream, end);
            if !denies && !announced {
                let detail = format!("stream {stream} at {end:?}: {why:?}");
                self.violate(Rule::HostileNeverEnds, detail);
            }
        }
        if open || talk.is_some() {
            self.count(closed_name(why), 1);
            let verdict = self.reference.ended(stream, end, why, local);
            self.check(verdict);
        }
        if let Some(talk) = talk {
            self.stream_over(node, talk);
        }
        self.dirty_nodes.insert(node);
    }

    /// Right after its socket was lost, an end holds no stream of the Codex
    /// profile but those that are being read out.
    pub(crate) fn codex_is_over(&mut self, node: NodeId) {
        let open: Vec<(Key, StreamIndex)> = match &self.nodes[node].role {
            Role::Executor(agent) => agent
                .streams
                .iter()
                .filter(|(_, served)| served.open)
                .map(|(key, served)| (*key, served.stream))
                .collect(),
            Role::Orchestrator(link) => {
                link.keys.iter().map(|(key, talk)| (*key, link.talks[*talk].stream)).collect()
            }
        };
        for (key, stream) in open {
            if self.reference.stream(stream).profile.is_reliable() {
                continue;
            }
            // an open stream says "blocked" or takes it; one that ended says so
            let probe = Bytes::from_static(b"");
            if !matches!(self.nodes[node].mux.send(key, &probe), Err(SendError::Closed(_))) {
                let detail = format!("stream {stream} at node {node}");
                self.violate(Rule::CodexEndsWithItsSocket, detail);
            }
        }
    }

    // ---- the orchestrator ------------------------------------------------------

    fn run_orchestrator(&mut self, node: NodeId) {
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
        // streams of an executor that is gone end by themselves
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

    /// A moment, before something is tried again.
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
                    Closer::Orchestrator => Phase::Completing { said: true },
                    Closer::Lingers => Phase::Lingering,
                    Closer::Executor | Closer::Both => Phase::Completing { said: false },
                };
            }
        }
    }

    /// Says what is to be said, until there is no room.
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
                        // nothing to ask for, maybe nothing to wait for
                        if talk.has_everything() {
                            self.nodes[node].link().talks[index].phase =
                                Phase::Completing { said: false };
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
                Phase::Completing { said: false } => header(Kind::Complete, 0).with_body(0),
                Phase::Completing { said: true } if talk.plan.closer != Closer::Executor => {
                    return self.close_talk(node, index, key);
                }
                Phase::Lingering if closing => return self.close_talk(node, index, key),
                _ => return,
            };
            match self.say(node, key, stream, message) {
                Said::Later => self.nodes[node].link().talks[index].writable = false,
                Said::Never => return,
                Said::Yes => {
                    let talk = &mut self.nodes[node].link().talks[index];
                    match talk.phase {
                        Phase::Greeting { .. } => talk.phase = Phase::Greeting { sent: true },
                        Phase::Completing { .. } => talk.phase = Phase::Completing { said: true },
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

    /// Gives a stream up that cannot repair itself, or was kept in the dark.
    fn watch(&mut self, node: NodeId, index: usize) {
        let now = self.now;
        let talk = &self.nodes[node].link().talks[index];
        let Some(key) = talk.key else { return };
        let (stream, phase) = (talk.stream, talk.phase);
        let known = self.reference.stream(stream);
        let repairs = known.profile.is_reliable() || phase == Phase::Lingering;
        if phase == Phase::Closing || (repairs && !known.deaf) {
            return;
        }
        let talk = &self.nodes[node].link().talks[index];
        // the next request or output may be long in coming
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

    // ---- the executor ----------------------------------------------------------

    /// The registry's verdict (`executor-agent/src/authorize.rs`).
    pub(crate) fn validated(
        &mut self,
        node: NodeId,
        key: Key,
        peer: &PublicKey,
        verdict: Result<Verdict, No>,
    ) {
        let now = self.instant(node);
        if verdict == Ok(Verdict::Valid) {
            self.nodes[node].mux.authorize(now, key, Authorized::by_registry(peer));
        } else {
            self.nodes[node].mux.refuse(now, key, Refusal::Denied);
            // no event follows
            let agent = self.nodes[node].agent();
            if agent.streams.get(&key).is_some_and(|served| !served.open) {
                agent.streams.remove(&key);
            }
        }
    }

    fn run_executor(&mut self, node: NodeId) {
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
                        // not even welcomed before: nothing was asked for yet
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
                    // a stream whose session moved on is about to be closed
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
            let said = self.say(node, key, stream, message);
            let Some(served) = self.nodes[node].agent().streams.get_mut(&key) else { return };
            match said {
                Said::Yes if from_queue => {
                    served.queue.pop_front();
                    // there is room for another request
                    self.serve(node, key);
                }
                Said::Yes => served.cursor = next,
                Said::Later => served.writable = false,
                Said::Never => return,
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
    fn new(stream: StreamIndex) -> Self {
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

fn closed_name(why: Closed) -> &'static str {
    match why {
        Closed::Finished => "ended: finished",
        Closed::Lost => "ended: lost",
        Closed::Reset(rendez_proto::frame::ResetReason::UnknownStream) => "ended: unknown stream",
        Closed::Reset(_) => "ended: reset",
        Closed::PeerMisbehaved(_) => "ended: misbehaved",
        Closed::HandshakeTimeout => "ended: handshake timeout",
        Closed::AuthenticationRejected | Closed::HandshakeRejected => "ended: handshake rejected",
        Closed::OutOfSequence => "ended: out of sequence",
    }
}
