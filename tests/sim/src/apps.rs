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
//! After a loss the orchestrator continues over another stream: it repeats
//! unanswered requests under the same number, and reads the output from where it
//! stopped. If the executor does not have the session any more, the outcome is
//! unknown and nothing is repeated. Both are driven by events alone, so a missing
//! `Readable` or `Writable` stops them for ever, and is noticed.

use bytes::Bytes;
use rendez_endpoint::{Closed, Event as MuxEvent, Key, SendError};

use crate::Micros;
use crate::message::Header;
use crate::node::{Phase, Role, Served};
use crate::pipe::Origin;
use crate::plan::NodeId;
use crate::rules::{End, Rule, StreamIndex};
use crate::world::{Event, Shell, World};

/// The outcome of an attempt to send a message.
pub(crate) enum SendOutcome {
    Sent,
    Blocked,
    Closed,
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

    /// Runs a node's application again at a time, or earlier.
    pub(crate) fn alarm(&mut self, node: NodeId, at: Micros) {
        if self.nodes[node].alarm.is_none_or(|alarm| at < alarm) {
            self.nodes[node].alarm = Some(at);
            self.at(at, Event::Look(node));
        }
    }

    pub(crate) fn say(
        &mut self,
        node: NodeId,
        key: Key,
        stream: StreamIndex,
        message: Bytes,
    ) -> SendOutcome {
        match self.nodes[node].mux.send(key, &message) {
            Ok(()) => {
                let end = self.end_of(node);
                let verdict = self.reference.sent(stream, end, message);
                self.check(verdict);
                SendOutcome::Sent
            }
            Err(SendError::Blocked) => SendOutcome::Blocked,
            Err(SendError::Closed(_)) => SendOutcome::Closed,
            Err(SendError::TooLarge) => {
                self.violate(Rule::Ending, "the mux refuses a message as too large".to_owned());
                SendOutcome::Closed
            }
        }
    }

    pub(crate) fn read(&mut self, node: NodeId, key: Key, stream: StreamIndex) -> Option<Header> {
        let message = self.nodes[node].mux.recv(key)?;
        let end = self.end_of(node);
        let verdict = self.reference.received(stream, end, &message);
        self.check(verdict);
        Header::parse(&message)
    }

    pub(crate) fn end_of(&self, node: NodeId) -> End {
        if self.nodes[node].is_executor() { End::Executor } else { End::Orchestrator }
    }

    pub(crate) fn is_slow(&self, node: NodeId) -> bool {
        self.nodes[node].slow_until > self.now
    }

    // ---- events of the mux -----------------------------------------------------

    pub(crate) fn application_event(
        &mut self,
        node: NodeId,
        event: MuxEvent,
        cause: Option<Origin>,
    ) {
        match event {
            MuxEvent::AuthorizationNeeded {
                key,
                stream,
                registration,
                peer,
                authorization,
                pending,
            } => {
                let Some(stream) = self.reference.find(&stream) else {
                    let detail = "a handshake for a stream that was never started".to_owned();
                    return self.violate(Rule::NothingOutOfThinAir, detail);
                };
                self.nodes[node].agent().streams.insert(key, Served::new(stream));
                let what = Shell::Validated { key, registration, peer, authorization, pending };
                self.shell(self.answer_time(node), node, what);
            }
            MuxEvent::Opened { key } => self.stream_opened(node, key),
            MuxEvent::Readable { key } => self.flags(node, key, |readable, _| *readable = true),
            MuxEvent::Writable { key } => self.flags(node, key, |_, writable| *writable = true),
            MuxEvent::Ended { key } => {
                if let Some(stream) = self.stream_of(node, key) {
                    let (end, local) = (self.end_of(node), self.nodes[node].local(self.now));
                    self.reference.mux_ended(stream, end, local);
                }
            }
            MuxEvent::Closed { key, why } => self.stream_closed(node, key, why, cause),
        }
    }

    fn stream_of(&self, node: NodeId, key: Key) -> Option<StreamIndex> {
        match &self.nodes[node].role {
            Role::Executor(agent) => agent.streams.get(&key).map(|served| served.stream),
            Role::Orchestrator(link) => link.keys.get(&key).map(|talk| link.talks[*talk].stream),
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
        let (stream, talk, opened) = match &mut self.nodes[node].role {
            Role::Executor(agent) => match agent.streams.remove(&key) {
                Some(served) => (served.stream, None, served.open),
                None => return,
            },
            Role::Orchestrator(link) => match link.keys.remove(&key) {
                Some(talk) => (link.talks[talk].stream, Some(talk), true),
                None => return,
            },
        };
        let (end, local) = (self.end_of(node), self.nodes[node].local(self.now));
        // A replayed handshake makes another attempt at the executor under the same id.
        // It never opens, and its end is not the end of the stream.
        let open = opened && self.reference.is_open(stream, end);
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
            self.look_at_the_peer(node, stream);
            let verdict = self.reference.ended(stream, end, why, local);
            self.check(verdict);
        }
        match talk {
            Some(talk) => self.stream_over(node, talk),
            // only this end gave up: the other one may be unaware
            None if why != Closed::Finished && self.reference.attacked => self.mark_unaware(stream),
            None => {}
        }
        self.dirty_nodes.insert(node);
    }

    /// The executor's end may be over although its application has not read to the
    /// end: its mux knows.
    fn look_at_the_peer(&mut self, node: NodeId, stream: StreamIndex) {
        let Some(executor) = self.reference.stream(stream).executor else { return };
        if executor == node || !self.nodes[executor].alive {
            return;
        }
        let mut served = self.nodes[executor].agent().streams.iter();
        let key = served.find(|(_, served)| served.stream == stream).map(|(key, _)| *key);
        if key.is_some_and(|key| self.is_over(executor, key)) {
            self.reference.fades(stream, End::Executor);
        }
    }

    /// Whether a mux has ended a stream: an open one returns another error for an
    /// empty message.
    fn is_over(&mut self, node: NodeId, key: Key) -> bool {
        let sent = self.nodes[node].mux.send(key, &Bytes::new());
        matches!(sent, Err(SendError::Closed(_)))
    }

    /// Checks that right after its socket was lost, an end has no open stream of the
    /// Codex profile.
    pub(crate) fn check_codex_streams_ended(&mut self, node: NodeId) {
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
            if !self.is_over(node, key) {
                let detail = format!("stream {stream} at node {node}");
                self.violate(Rule::CodexEndsWithItsSocket, detail);
            }
        }
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
        Closed::ReaderStalled => "ended: unread",
        Closed::MemoryExhausted => "ended: memory exhausted",
    }
}
