//! The pumps (`transport/src/pump/mod.rs`) at both ends of each
//! websocket: timers, write while there is room, read while it is wanted.

use rendez_endpoint::Event as MuxEvent;
use rendez_proto::close::CloseFrame;
use rendez_proto::frame::Frame;
use rendez_proto::limits::RECORD_PLAINTEXT_MAX_BYTES;
use rendez_proto::peek::peek;

use crate::log::digest;
use crate::node::{LinkState, Role};
use crate::pipe::{Origin, Packet, Side};
use crate::plan::NodeId;
use crate::relay::SocketId;
use crate::rules::{Rule, refusals};
use crate::world::{Event, World};

/// Messages read before the others have their turn (`pump::BATCH`).
const BATCH: usize = 64;
/// Record sizes that a pump asks for: of slow paths and of fast ones.
const RECORD_SIZES: [usize; 4] =
    [1024, 8 * 1024, RECORD_PLAINTEXT_MAX_BYTES, RECORD_PLAINTEXT_MAX_BYTES];

impl World {
    /// An endpoint's turn.
    pub(crate) fn pump_node(&mut self, node: NodeId) {
        if !self.nodes[node].alive || self.nodes[node].paused_until > self.now {
            return;
        }
        let now = self.instant(node);
        if self.nodes[node].timers_run {
            let mux = &mut self.nodes[node].mux;
            if mux.poll_timeout().is_some_and(|at| at <= now) {
                mux.handle_timeout(now);
                if mux.poll_timeout().is_some_and(|at| at <= now) {
                    let detail = format!("a timer of node {node} is due right after it ran");
                    self.violate(Rule::NoSpinning, detail);
                    return;
                }
            }
        }
        self.hear(node, None);
        self.run_application(node);
        self.hear(node, None);
        let Some(socket) = self.nodes[node].socket else { return };
        self.write_up(node, socket);
        if self.read_down(node, socket) {
            self.dirty_nodes.insert(node);
        }
    }

    fn write_up(&mut self, node: NodeId, socket: SocketId) {
        let now = self.instant(node);
        while self.sockets[socket].up.has_room() {
            let owner = &mut self.nodes[node];
            let record_max_bytes = owner.rng.pick(&RECORD_SIZES);
            let Some(wire) = owner.mux.poll_transmit(now, record_max_bytes) else {
                let closing = matches!(&self.nodes[node].role, Role::Orchestrator(link)
                    if matches!(link.state, LinkState::Closing));
                if closing {
                    self.send_up(socket, Packet::Close { code: 1000 });
                    self.sockets[socket].endpoint_open = false;
                    self.socket_over(node, socket, None);
                }
                break;
            };
            self.last_frame = self.now;
            if self.log.is_kept() {
                let what = describe(&wire);
                self.note(format_args!("n{node} sends {what}"));
            }
            self.send_up(socket, Packet::Frame { wire, origin: Origin::Genuine });
        }
        self.hear(node, None);
    }

    fn send_up(&mut self, socket: SocketId, packet: Packet) {
        let at = self.sockets[socket].up.push(packet, self.now);
        self.at(at, Event::Arrive { socket, at: Side::Relay });
    }

    /// Returns whether something was read.
    fn read_down(&mut self, node: NodeId, socket: SocketId) -> bool {
        for read in 0..BATCH {
            if self.nodes[node].socket != Some(socket) || !self.nodes[node].mux.wants_read() {
                return read > 0;
            }
            match self.sockets[socket].receive(Side::Endpoint, self.now) {
                None => return read > 0,
                Some(Packet::Close { code }) => {
                    self.note(format_args!("n{node} is closed with {code}"));
                    self.sockets[socket].endpoint_open = false;
                    self.relay_side_over(socket);
                    self.socket_over(node, socket, Some(code));
                    return false;
                }
                Some(Packet::Frame { wire, origin }) => {
                    self.dirty_sockets.insert(socket); // there is room again
                    self.take(node, wire, origin);
                }
            }
        }
        true
    }

    /// A frame reaches a mux.
    fn take(&mut self, node: NodeId, wire: bytes::Bytes, origin: Origin) {
        if self.log.is_kept() {
            let what = describe(&wire);
            self.note(format_args!("n{node} takes {what} {origin:?}"));
        }
        let now = self.instant(node);
        let end = self.end_of(node);
        let frame = Frame::decode(wire.clone()).ok().filter(|_| origin == Origin::Genuine);
        let replay = frame.as_ref().and_then(|frame| self.reference.is_replay(frame, end, node));
        let before = self.nodes[node].mux.stats();
        self.nodes[node].mux.handle_message(now, wire);
        let after = self.nodes[node].mux.stats();
        let refused = refusals(&after) > refusals(&before);
        let opened = after.records_in > before.records_in;
        if let Some(frame) = frame.filter(|_| opened) {
            self.reference.record_opened(&frame, end);
        }
        if replay == Some(true) {
            self.count("replays", 1);
            if !refused || opened {
                self.violate(Rule::ReplayIsCounted, format!("at node {node}"));
            }
        }
        if let Origin::Hostile { counts, .. } = origin {
            self.count("hostile frames", 1);
            if counts && (!refused || opened) {
                let detail = format!("at node {node}: {origin:?}, opened: {opened}");
                self.violate(Rule::HostileIsCounted, detail);
            }
        }
        self.hear(node, Some(origin));
    }

    /// The events of a mux.
    pub(crate) fn hear(&mut self, node: NodeId, cause: Option<Origin>) {
        while let Some(event) = self.nodes[node].mux.poll_event() {
            if self.log.is_kept() {
                match &event {
                    // keys and payloads are of no use in the log
                    MuxEvent::AuthorizationNeeded { key, .. } => {
                        self.note(format_args!("n{node} is asked to let {key:?} in"));
                    }
                    other => self.note(format_args!("n{node} {other:?}")),
                }
            }
            self.application_event(node, event, cause);
        }
    }

    /// The relay's turn at one websocket.
    pub(crate) fn pump_port(&mut self, socket: SocketId) {
        if !self.sockets[socket].relay_open {
            return;
        }
        let port = self.sockets[socket].port;
        while self.sockets[socket].down.has_room() {
            let Some(wire) = self.relay.hub.poll_transmit(port) else { break };
            let verdict = self.relay.gave(socket, &wire);
            self.check(verdict);
            self.attacked(socket, wire);
            self.wake_ports();
        }
        if !self.relay.hub.is_joined(port) {
            self.note(format_args!("socket {socket} is superseded"));
            self.deliver_down(socket, Packet::Close { code: CloseFrame::SUPERSEDED.code });
            self.relay_side_over(socket);
            return;
        }
        let now = self.relay_instant();
        let node = self.sockets[socket].node;
        for _ in 0..BATCH {
            if !self.sockets[socket].relay_open || !self.relay.hub.wants_read(port) {
                return;
            }
            match self.sockets[socket].receive(Side::Relay, self.now) {
                None => return,
                Some(Packet::Close { .. }) => {
                    self.relay_side_over(socket);
                    return;
                }
                Some(Packet::Frame { wire, .. }) => {
                    self.dirty_nodes.insert(node); // there is room again
                    let taken = self.relay.take(socket, port, &wire, now);
                    let claimed = *taken.as_ref().unwrap_or(&false);
                    self.check(taken.map(|_| ()));
                    if claimed && !self.nodes[node].is_executor() && self.attacks.is_intruded() {
                        let verdict = self.relay.intrude(&wire, now);
                        self.check(verdict);
                        self.count("intrusions", 1);
                    }
                    self.wake_ports();
                }
            }
        }
        self.dirty_sockets.insert(socket);
    }

    /// Wakes the ports that the hub names.
    pub(crate) fn wake_ports(&mut self) {
        while let Some(socket) = self.relay.poll_wake() {
            self.dirty_sockets.insert(socket);
        }
    }

    /// Puts something on the way from the relay to an endpoint.
    pub(crate) fn deliver_down(&mut self, socket: SocketId, packet: Packet) {
        if !self.sockets[socket].relay_open {
            return;
        }
        let at = self.sockets[socket].down.push(packet, self.now);
        self.at(at, Event::Arrive { socket, at: Side::Endpoint });
    }

    // ---- how sockets end -------------------------------------------------------

    /// The relay drops a websocket.
    pub(crate) fn relay_side_over(&mut self, socket: SocketId) {
        if !std::mem::replace(&mut self.sockets[socket].relay_open, false) {
            return;
        }
        self.note(format_args!("the relay lets go of socket {socket}"));
        let port = self.sockets[socket].port;
        let now = self.relay_instant();
        self.relay.leave(port, now);
        self.wake_ports();
        self.sockets[socket].up.clear();
        if self.relay.executor.as_ref().is_some_and(|(own, _)| *own == socket) {
            self.relay.executor = None;
        }
    }

    /// An endpoint notices that its websocket is broken.
    pub(crate) fn endpoint_side_over(&mut self, socket: SocketId) {
        if !std::mem::replace(&mut self.sockets[socket].endpoint_open, false) {
            return;
        }
        let node = self.sockets[socket].node;
        self.note(format_args!("n{node} notices that socket {socket} is broken"));
        if self.nodes[node].socket == Some(socket) {
            self.socket_over(node, socket, None);
        }
    }
}

/// Stream, kind, size and digest of a frame.
fn describe(wire: &bytes::Bytes) -> String {
    let (len, digest) = (wire.len(), digest(wire));
    match peek(wire) {
        Ok(frame) => {
            let stream = frame.stream.get(..8).unwrap_or(frame.stream).escape_debug().to_string();
            let detail = match Frame::decode(wire.clone()) {
                Ok(frame) => match frame.body {
                    rendez_proto::frame::Body::Data { seq, .. } => format!(" {}", seq.0),
                    rendez_proto::frame::Body::Resume { next_seq } => format!(" {next_seq}"),
                    rendez_proto::frame::Body::Reset { reason } => {
                        format!(" {}", reason.escape_debug())
                    }
                    _ => String::new(),
                },
                Err(_) => " (invalid)".to_owned(),
            };
            format!("{} {stream}{detail} ({len} bytes, {digest:08x})", frame.kind.as_str())
        }
        Err(error) => format!("rubbish: {error} ({len} bytes, {digest:08x})"),
    }
}
