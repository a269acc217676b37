//! The relay's process: the real hub, and a shadow of its lanes that predicts
//! their output.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::RegistrationId;
use rendez_proto::limits::{HANDSHAKE_FAILURES_PER_TOKEN, HANDSHAKE_TIMEOUT, MESSAGE_MAX_BYTES};
use rendez_proto::peek::{Kind, Peek, peek};
use rendez_relay_core::overflow::LANE_MAX_BYTES;
use rendez_relay_core::{
    Account, Capabilities, Dropped, Hub, HubAccounts, KeyFingerprint, PortKey, Quota,
};

use crate::plan::NodeId;
use crate::rules::Rule;

/// Names a websocket of the world.
pub(crate) type SocketId = usize;

/// Memory for waiting frames: less than the largest window, so that streams run
/// into the limit.
const MEMORY_BYTES: u64 = 12 * 1024 * 1024;

/// The relay's process.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) hub: Hub,
    pub(crate) down: bool,
    /// The executor that joined last, and its registration.
    pub(crate) executor: Option<(SocketId, RegistrationId)>,
    ports: HashMap<PortKey, SocketId>,
    /// By the bearer of the token.
    accounts: HashMap<Option<NodeId>, Arc<Account>>,
    shadow: Shadow,
}

impl Default for Relay {
    fn default() -> Self {
        let quota = Quota { memory_bytes: MEMORY_BYTES, ..Quota::UNLIMITED };
        let accounts = HubAccounts { environment: Account::new(quota), ..HubAccounts::default() };
        Self {
            hub: Hub::new(accounts),
            down: false,
            executor: None,
            ports: HashMap::new(),
            accounts: HashMap::new(),
            shadow: Shadow::default(),
        }
    }
}

impl Relay {
    /// The account of an orchestrator's token, or of the executors'.
    pub(crate) fn account(&mut self, bearer: Option<NodeId>) -> Arc<Account> {
        let quota = Quota { handshake_failures: HANDSHAKE_FAILURES_PER_TOKEN, ..Quota::UNLIMITED };
        self.accounts.entry(bearer).or_insert_with(|| Account::new(quota)).clone()
    }

    /// A new process.
    pub(crate) fn restart(&mut self) {
        *self = Relay::default();
    }

    pub(crate) fn joined(&mut self, port: PortKey, socket: SocketId) {
        self.ports.insert(port, socket);
    }

    /// A websocket leaves the hub. Forgets everything that waited for it.
    pub(crate) fn leave(&mut self, port: PortKey, now: Instant) {
        let before = waits(&self.hub);
        self.hub.leave(port, now);
        let Some(socket) = self.ports.remove(&port) else { return };
        let shadow = &mut self.shadow;
        shadow.lanes.retain(|(sink, _), _| *sink != socket);
        let its = shadow.holders.extract_if(|_, holder| *holder == socket);
        let streams: Vec<usize> = its.map(|(stream, _)| stream).collect();
        shadow.dropped.extend(
            (before..waits(&self.hub))
                .map(|_| HandshakeDrop { at: now, left: Some(streams.clone()) }),
        );
    }

    /// The registration whose executor is connected (`Presence`).
    pub(crate) fn connected(&self) -> Option<&RegistrationId> {
        self.executor.as_ref().filter(|_| self.hub.has_executor()).map(|(_, id)| id)
    }

    /// The websockets whose drivers the hub wants to look again.
    pub(crate) fn poll_wake(&mut self) -> Option<SocketId> {
        loop {
            let key = self.hub.poll_wake()?;
            if let Some(socket) = self.ports.get(&key) {
                return Some(*socket);
            }
        }
    }

    /// A websocket's frame reaches the hub. Returns whether the stream is the
    /// sender's afterwards.
    pub(crate) fn take(
        &mut self,
        from: SocketId,
        port: PortKey,
        wire: &Bytes,
        now: Instant,
    ) -> Result<bool, (Rule, String)> {
        let dropped = |hub: &Hub, which: &[Dropped]| {
            which.iter().map(|why| hub.stats().dropped(*why)).sum::<u64>()
        };
        let refusals = [
            Dropped::ForeignStream,
            Dropped::TooManyStreams,
            Dropped::Malformed,
            Dropped::HandshakeGuard,
            Dropped::HandshakeRate,
            Dropped::HandshakeWaits,
            Dropped::Quota,
        ];
        let away = [Dropped::PeerAway];
        let before = (dropped(&self.hub, &Dropped::ALL), dropped(&self.hub, &refusals));
        let before_away = dropped(&self.hub, &away);
        if self.hub.handle_message(port, wire.clone(), now).is_err() {
            return Err((Rule::BlindRelay, "the hub refuses an honest frame".to_owned()));
        }
        let executor = self.executor.as_ref().map(|(socket, _)| *socket);
        let claimed = dropped(&self.hub, &refusals) == before.1;
        let mut lost = dropped(&self.hub, &Dropped::ALL) - before.0;
        if claimed && executor != Some(from) && self.shadow.held(from, wire) {
            // Frames that waited for the old websocket are lost, not this frame;
            // without an executor it goes nowhere either way.
            lost -= dropped(&self.hub, &away) - before_away;
        }
        if lost == 0 {
            self.shadow.took(from, executor, wire, now)?;
        }
        Ok(claimed)
    }

    /// Another orchestrator, with a ticket of its own, sends a frame of a stream of
    /// another owner.
    pub(crate) fn intrude(&mut self, wire: &Bytes, now: Instant) -> Result<(), (Rule, String)> {
        let fingerprint = KeyFingerprint([0xee; 32]);
        let can = Capabilities { resends: true };
        let Ok(port) = self.hub.join_orchestrator(fingerprint, can, Arc::default()) else {
            return Ok(());
        };
        let dropped =
            |hub: &Hub| Dropped::ALL.map(|why| hub.stats().dropped(why)).iter().sum::<u64>();
        let before = (dropped(&self.hub), self.hub.streams());
        let routed = self.hub.handle_message(port, wire.clone(), now).is_ok();
        let after = (dropped(&self.hub), self.hub.streams());
        if !routed || after != (before.0 + 1, before.1) {
            let detail = format!("dropped and streams: {before:?}, then {after:?}");
            return Err((Rule::IdsAreNotCapabilities, detail));
        }
        while let Some(answer) = self.hub.poll_transmit(port) {
            if !matches!(peek(&answer), Ok(Peek { kind: Kind::Reset, .. })) {
                let detail = "an intruder receives more than a refusal".to_owned();
                return Err((Rule::IdsAreNotCapabilities, detail));
            }
        }
        self.hub.leave(port, now);
        Ok(())
    }

    /// Runs the hub's timers.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let before = waits(&self.hub);
        self.hub.handle_timeout(now);
        let expired = (before..waits(&self.hub)).map(|_| HandshakeDrop { at: now, left: None });
        self.shadow.dropped.extend(expired);
    }

    /// The hub gave `wire` to a websocket.
    pub(crate) fn gave(&mut self, to: SocketId, wire: &Bytes) -> Result<(), (Rule, String)> {
        self.shadow.gave(to, wire)
    }
}

/// The expected content of the hub's lanes, by a naive model.
#[derive(Debug, Default)]
struct Shadow {
    names: HashMap<Box<str>, usize>,
    /// By sink and stream.
    lanes: HashMap<(SocketId, usize), Lane>,
    /// The orchestrator's websocket that used a stream last.
    holders: HashMap<usize, SocketId>,
    /// Streams that were reset as overloaded: the hub empties their lanes.
    overloaded: Vec<usize>,
    /// Handshakes that the hub dropped while they waited, and that are still in a lane
    /// here.
    dropped: Vec<HandshakeDrop>,
}

/// The hub's report that it dropped a handshake that waited for its turn.
#[derive(Debug, Clone)]
struct HandshakeDrop {
    at: Instant,
    /// The streams of the orchestrator that left; otherwise the handshake had waited for
    /// [`HANDSHAKE_TIMEOUT`].
    left: Option<Vec<usize>>,
}

impl HandshakeDrop {
    fn is_of(&self, stream: usize, taken: Instant) -> bool {
        match &self.left {
            Some(streams) => streams.contains(&stream) && taken <= self.at,
            None => taken + HANDSHAKE_TIMEOUT <= self.at,
        }
    }
}

#[derive(Debug, Default)]
struct Lane {
    /// Each with the time at which the hub took it.
    frames: VecDeque<(Instant, Bytes)>,
    bytes: usize,
}

impl Shadow {
    fn name(&mut self, stream: &str) -> usize {
        if let Some(name) = self.names.get(stream) {
            return *name;
        }
        let name = self.names.len();
        self.names.insert(stream.into(), name);
        name
    }

    /// An orchestrator used a stream: frames that waited for another websocket of it
    /// are dropped. Returns whether there was another one.
    fn held(&mut self, from: SocketId, wire: &Bytes) -> bool {
        let Ok(frame) = peek(wire) else { return false };
        let stream = self.name(frame.stream);
        let before = self.holders.insert(stream, from).filter(|before| *before != from);
        if let Some(before) = before {
            self.lanes.remove(&(before, stream));
        }
        before.is_some()
    }

    fn took(
        &mut self,
        from: SocketId,
        executor: Option<SocketId>,
        wire: &Bytes,
        now: Instant,
    ) -> Result<(), (Rule, String)> {
        let Ok(frame) = peek(wire) else { return Ok(()) };
        let stream = self.name(frame.stream);
        let sink =
            if executor == Some(from) { self.holders.get(&stream).copied() } else { executor };
        let Some(sink) = sink.filter(|_| !frame.kind.may_overtake()) else { return Ok(()) };
        let lane = self.lanes.entry((sink, stream)).or_default();
        lane.frames.push_back((now, wire.clone()));
        lane.bytes += wire.len();
        // the hub's own resets are small and always fit
        if lane.bytes > LANE_MAX_BYTES + MESSAGE_MAX_BYTES {
            let detail = format!("a lane of stream {stream} holds {} bytes", lane.bytes);
            return Err((Rule::HubMemory, detail));
        }
        Ok(())
    }

    fn gave(&mut self, to: SocketId, wire: &Bytes) -> Result<(), (Rule, String)> {
        let Ok(frame) = peek(wire) else {
            return Err((Rule::BlindRelay, "the hub sent an invalid frame".to_owned()));
        };
        if frame.kind.may_overtake() {
            return Ok(());
        }
        let stream = self.name(frame.stream);
        if frame.kind == Kind::Reset && is_overloaded(wire) {
            self.overloaded.push(stream);
        }
        if self.overloaded.contains(&stream) {
            self.lanes.retain(|(_, other), _| *other != stream);
            return Ok(());
        }
        let lane = self.lanes.entry((to, stream)).or_default();
        let found = lane.frames.iter().position(|(_, waiting)| waiting == wire);
        let earlier = lane.frames.range(..found.unwrap_or_default());
        match found {
            Some(0) => {
                // Of repetitions in a row the newest, so that an expired handshake keeps
                // its time.
                let same = lane.frames.iter().take_while(|(_, waiting)| waiting == wire).count();
                lane.bytes -= wire.len();
                lane.frames.remove(same.saturating_sub(1));
                Ok(())
            }
            Some(later) if were_dropped(stream, earlier, &mut self.dropped) => {
                let gone = lane.frames.drain(..=later);
                lane.bytes -= gone.map(|(_, frame)| frame.len()).sum::<usize>();
                Ok(())
            }
            Some(later) => {
                let kind = frame.kind.as_str();
                let detail = format!(
                    "{later} frames of stream {} were overtaken or lost by a {kind}",
                    frame.stream
                );
                Err((Rule::BlindRelay, detail))
            }
            // one that the hub made
            None if frame.kind == Kind::Reset => Ok(()),
            None => {
                let detail = format!("stream {stream}: {} bytes that no endpoint sent", wire.len());
                Err((Rule::BlindRelay, detail))
            }
        }
    }
}

/// Whether these frames of a stream are handshakes, for each of which the hub reported
/// that it dropped it. Takes the reports.
fn were_dropped<'a>(
    stream: usize,
    frames: impl Iterator<Item = &'a (Instant, Bytes)>,
    dropped: &mut Vec<HandshakeDrop>,
) -> bool {
    let mut reports = dropped.clone();
    for (taken, frame) in frames {
        let report = reports.iter().position(|report| report.is_of(stream, *taken));
        let is_handshake = peek(frame).is_ok_and(|frame| frame.kind == Kind::Handshake);
        let (Some(report), true) = (report, is_handshake) else { return false };
        reports.swap_remove(report);
    }
    *dropped = reports;
    true
}

/// Handshakes, and frames behind them, that the hub dropped because they had to wait.
fn waits(hub: &Hub) -> u64 {
    hub.stats().dropped(Dropped::HandshakeWaits)
}

fn is_overloaded(wire: &Bytes) -> bool {
    let frame = Frame::decode(wire.clone());
    matches!(frame, Ok(Frame { body: Body::Reset { reason }, proof: None, .. })
        if reason == ResetReason::Overloaded.as_str())
}
