//! How a frame finds its lane, and what becomes of streams when a port goes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::limits;
use rendez_proto::peek::{Kind, Peek};

use crate::claim::{Claim, Ending, FRAME_COPY_BYTES, Handshake, Holder, KeyFingerprint};
use crate::hub::{Capabilities, Hub, PortKey};
use crate::outbox::Outbox;
use crate::overflow::{Direction, LANE_MAX_BYTES, OnFull, on_full};
use crate::refusal::{Refusal, Refused};
use crate::stats::Dropped;

/// Streams that one orchestrator websocket may have. Stock ones have one; more
/// than a quarter of the executor's would shut others out.
pub const STREAMS_PER_ORCHESTRATOR: usize = 32;
/// Stream ids that one executor's switchboard remembers, those in
/// [`limits::STREAM_GRACE`] included: bounds its memory against orchestrators that
/// come and go.
pub const CLAIMS_PER_EXECUTOR: usize = 1024;
/// How long a relay remembers a stream after a reset passed, for the far end's
/// answer: a few round trips.
pub(crate) const RESET_LINGER: Duration = Duration::from_secs(2);

const _: () = {
    assert!(STREAMS_PER_ORCHESTRATOR * 2 <= limits::STREAMS_PER_EXECUTOR);
    assert!(CLAIMS_PER_EXECUTOR >= 2 * limits::STREAMS_PER_EXECUTOR);
};

impl Hub {
    pub(crate) fn route_from_executor(&mut self, frame: Peek<'_>, message: Bytes, now: Instant) {
        let Some(&index) = self.by_stream.get(frame.stream) else {
            return self.stats.count_dropped(Dropped::UnknownStream, 1);
        };
        self.forward(index, Direction::ToOrchestrator, frame.kind, message, now);
    }

    pub(crate) fn route_from_orchestrator(
        &mut self,
        from: PortKey,
        fingerprint: KeyFingerprint,
        can: Capabilities,
        frame: Peek<'_>,
        message: Bytes,
        now: Instant,
    ) {
        match self.claim(from, fingerprint, can, frame.stream) {
            Ok(index) if frame.kind == Kind::Handshake => {
                if let Err(Refused(dropped, reason, limit)) = self.offer(index, message, now) {
                    self.stats.count_dropped(dropped, 1);
                    self.refusal = limit;
                    let stream = self.claims[index].stream.clone();
                    self.end_at_once(index);
                    self.remove_if_over(index);
                    self.refuse(from, stream, reason);
                }
            }
            Ok(index) if self.is_waiting(index) => {
                self.stats.count_dropped(Dropped::HandshakeWaits, 1);
                if frame.kind == Kind::Reset {
                    self.handshake_failed(index, now);
                    self.end_at_once(index);
                    self.remove_if_over(index);
                }
            }
            Ok(index) => self.forward(index, Direction::ToExecutor, frame.kind, message, now),
            Err(Refused(dropped, reason, limit)) => {
                self.stats.count_dropped(dropped, 1);
                self.refusal = limit;
                // A reset is never answered by a reset.
                if frame.kind != Kind::Reset
                    && let Ok(stream) = frame.stream.parse()
                {
                    self.refuse(from, stream, reason);
                }
            }
        }
    }

    /// The claim on `stream`, taken by its first frame.
    fn claim(
        &mut self,
        from: PortKey,
        fingerprint: KeyFingerprint,
        can: Capabilities,
        stream: &str,
    ) -> Result<usize, Refused> {
        const NOBODY: Refused = Refused(Dropped::PeerAway, ResetReason::ExecutorGone, None);
        const FOREIGN: Refused = Refused(Dropped::ForeignStream, ResetReason::StreamInUse, None);
        let too_many = || Refused::too_many(Refusal::StreamsOfWebsocket);
        if let Some(&index) = self.by_stream.get(stream) {
            let claim = &self.claims[index];
            if claim.holder == Holder::Port(from) {
                return Ok(index);
            }
            // The same orchestrator may take its stream along to a new
            // websocket, also while the old one has not been noticed dead.
            if claim.fingerprint != fingerprint {
                return Err(FOREIGN);
            }
            self.hold(index, from)?;
            return Ok(index);
        }
        if self.executor.is_none() {
            return Err(NOBODY);
        }
        if self.claims.len() >= CLAIMS_PER_EXECUTOR {
            return Err(Refused::too_many(Refusal::StreamsOfExecutor));
        }
        let accounts = self.port_mut(from).ok_or_else(too_many)?.accounts().clone();
        let port = self.port_mut(from).ok_or_else(too_many)?;
        if port.streams >= STREAMS_PER_ORCHESTRATOR {
            return Err(too_many());
        }
        let stream: StreamId = stream.parse().map_err(|_| too_many())?;
        let claim = Claim::new(stream.clone(), fingerprint, can.resends, from, accounts);
        let index = self.claims.insert(claim.map_err(Refused::streams)?);
        self.port_mut(from).ok_or_else(too_many)?.streams += 1;
        self.by_stream.insert(stream, index);
        Ok(index)
    }

    /// Moves a claim to another port of its owner.
    fn hold(&mut self, index: usize, port: PortKey) -> Result<(), Refused> {
        let too_many = || Refused::too_many(Refusal::StreamsOfWebsocket);
        let new = self.port_mut(port).filter(|new| new.streams < STREAMS_PER_ORCHESTRATOR);
        let accounts = new.ok_or_else(too_many)?.accounts().clone();
        self.claims[index].charge_to(accounts).map_err(Refused::streams)?;
        self.port_mut(port).ok_or_else(too_many)?.streams += 1;
        self.release(index, Direction::ToExecutor);
        let lost = self.clear(index, Direction::ToOrchestrator);
        self.stats.count_dropped(Dropped::PeerAway, lost);
        self.uncount(index);
        let claim = &mut self.claims[index];
        claim.holder = Holder::Port(port);
        claim.ending = Ending::No;
        Ok(())
    }

    pub(crate) fn forward(
        &mut self,
        index: usize,
        direction: Direction,
        kind: Kind,
        message: Bytes,
        now: Instant,
    ) {
        let Some(sink) = self.sink(index, direction) else {
            return self.stats.count_dropped(Dropped::PeerAway, 1);
        };
        // one that is large carries what nobody should be asked to hurry for
        if kind.may_overtake() && Outbox::is_express(&message) {
            if self.push_express(sink, &message).is_err() {
                self.stats.count_dropped(Dropped::ExpressFull, 1);
            }
            return;
        }
        let resends = self.claims[index].resends;
        let claim = &self.claims[index];
        // A handshake was paid for while it waited; and its end is owed to the
        // other side, once, whoever pays.
        let is_paid = match kind {
            Kind::Handshake => true,
            Kind::Reset => claim.ending == Ending::No && message.len() <= FRAME_COPY_BYTES,
            _ => false,
        };
        if !is_paid && !claim.can_pay(&message) {
            self.stats.count_dropped(Dropped::Quota, 1);
            if !resends {
                self.reset_overloaded(index);
            }
            return;
        }
        let decision = on_full(direction, resends);
        let waiting = self.claims[index].lane(direction).bytes();
        let fits = match decision {
            OnFull::Shed => waiting < self.full_at(index),
            // What fills up the lane is taken: its source cannot resend, or
            // was not stopped for the sake of memory that others took.
            OnFull::StopReading | OnFull::StallThenReset => {
                waiting + message.len() <= LANE_MAX_BYTES
            }
        };
        if fits {
            self.follow_handshake(index, direction, kind, now);
            match kind {
                Kind::Reset => self.end(index, direction, now),
                Kind::Resume => self.go_on(index),
                _ => {}
            }
            self.push(index, direction, message);
        } else {
            // Besides those that may be shed, the first message of a source
            // that just took over a lane which was full already.
            self.stats.count_dropped(Dropped::LaneFull, 1);
        }
        if self.claims[index].lane(direction).bytes() >= self.full_at(index) {
            match decision {
                OnFull::Shed => {}
                OnFull::StopReading => self.hold_back(index, direction),
                OnFull::StallThenReset => {
                    let deadline = now + limits::STALL_MAX;
                    self.claims[index].stalled_until.get_or_insert(deadline);
                    self.hold_back(index, direction);
                }
            }
        }
    }

    /// Notes that a reset passes.
    fn end(&mut self, index: usize, direction: Direction, now: Instant) {
        match self.claims[index].ending {
            Ending::No => {
                self.uncount(index);
                let until = now + RESET_LINGER;
                self.claims[index].ending = Ending::Passed { direction, until };
            }
            Ending::Passed { direction: first, .. } if first != direction => {
                self.claims[index].ending = Ending::Over;
            }
            Ending::Passed { .. } | Ending::Over => {}
        }
    }

    /// An end did not believe the reset that passed, as ours do not if it has no
    /// proof: an executor that took the environment over for a moment resets
    /// every stream that it does not know. Who asks for a stream that is really
    /// over is answered by a reset, and that one counts.
    fn go_on(&mut self, index: usize) {
        let claim = &self.claims[index];
        let (Ending::Passed { .. }, Holder::Port(port), true) =
            (claim.ending, claim.holder, claim.resends)
        else {
            return;
        };
        if let Some(port) = self.port_mut(port)
            && port.streams < STREAMS_PER_ORCHESTRATOR
        {
            port.streams += 1;
            self.claims[index].ending = Ending::No;
        }
    }

    /// Ends a stream without waiting for an answer.
    fn end_at_once(&mut self, index: usize) {
        self.uncount(index);
        self.claims[index].ending = Ending::Over;
    }

    /// Takes a claim off its port's count of streams.
    fn uncount(&mut self, index: usize) {
        let claim = &self.claims[index];
        if claim.ending == Ending::No
            && let Holder::Port(port) = claim.holder
            && let Some(port) = self.port_mut(port)
        {
            port.streams -= 1;
        }
    }

    /// Stops reading the source of a full lane.
    fn hold_back(&mut self, index: usize, direction: Direction) {
        let source = self.source(index, direction);
        let lane = self.claims[index].lane(direction);
        if !lane.full
            && let Some(source) = source
        {
            lane.full = true;
            if let Some(port) = self.port_mut(source) {
                port.full_lanes += 1;
            }
        }
    }

    /// Reads the source of a lane again.
    pub(crate) fn release(&mut self, index: usize, direction: Direction) {
        let source = self.source(index, direction);
        let claim = &mut self.claims[index];
        if direction == Direction::ToOrchestrator {
            claim.stalled_until = None;
        }
        if std::mem::take(&mut claim.lane(direction).full)
            && let Some(source) = source
        {
            if let Some(port) = self.port_mut(source) {
                port.full_lanes -= 1;
            }
            self.wake(source);
        }
    }

    /// Empties a lane; returns how many frames are lost.
    fn clear(&mut self, index: usize, direction: Direction) -> u64 {
        self.release(index, direction);
        self.claims[index].lane(direction).queued = false;
        if let Some(sink) = self.sink(index, direction)
            && let Some(port) = self.port_mut(sink)
        {
            port.outbox.forget(index);
        }
        self.claims[index].clear(direction)
    }

    /// Does what is due for a claim.
    pub(crate) fn sweep(&mut self, index: usize, now: Instant) {
        self.expire_handshake(index, now);
        if self.claims[index].stalled_until.is_some_and(|deadline| deadline <= now) {
            return self.reset_overloaded(index);
        }
        let claim = &mut self.claims[index];
        if matches!(claim.holder, Holder::Away { until } if until <= now) {
            claim.holder = Holder::Nobody;
        }
        if matches!(claim.ending, Ending::Passed { until, .. } if until <= now) {
            claim.ending = Ending::Over;
        }
        self.remove_if_over(index);
    }

    /// Resets a stream that stalled the executor for too long, or whose bearer
    /// has no memory left; it cannot resend.
    fn reset_overloaded(&mut self, index: usize) {
        let lost = self.clear(index, Direction::ToOrchestrator);
        self.stats.count_dropped(Dropped::Overloaded, lost);
        self.reset(index, Direction::ToOrchestrator, ResetReason::Overloaded);
        self.reset(index, Direction::ToExecutor, ResetReason::Overloaded);
        self.end_at_once(index);
        self.remove_if_over(index);
    }

    /// Tells one end of a stream that it is over, or that its far end is away.
    fn reset(&mut self, index: usize, direction: Direction, reason: ResetReason) {
        let frame = reset_frame(self.claims[index].stream.clone(), reason);
        if self.push(index, direction, frame) {
            self.stats.count_reset(reason);
        }
    }

    /// Tells a port that a stream is not its own. It has no lane there, so the
    /// answer takes the express queue.
    fn refuse(&mut self, port: PortKey, stream: StreamId, reason: ResetReason) {
        let frame = reset_frame(stream, reason);
        if self.push_express(port, &frame).is_ok() {
            self.stats.count_reset(reason);
        }
    }

    pub(crate) fn executor_left(&mut self) {
        self.executor = None;
        self.forget_handshakes();
        for index in self.claims_where(|_| true) {
            self.claims[index].to_executor.queued = false;
            let lost = self.claims[index].clear(Direction::ToExecutor);
            self.stats.count_dropped(Dropped::PeerAway, lost);
            self.release(index, Direction::ToExecutor);
            // The executor's port is gone, and its count of full lanes with it.
            self.claims[index].to_orchestrator.full = false;
            self.claims[index].stalled_until = None;
            self.reset(index, Direction::ToOrchestrator, ResetReason::ExecutorGone);
            if !self.claims[index].resends {
                self.end_at_once(index);
            }
            self.remove_if_over(index);
        }
    }

    pub(crate) fn orchestrator_left(&mut self, key: PortKey, now: Instant) {
        for index in self.claims_where(|claim| claim.holder == Holder::Port(key)) {
            self.claims[index].to_orchestrator.queued = false;
            let lost = self.claims[index].clear(Direction::ToOrchestrator);
            self.handshake_failed(index, now);
            self.stats.count_dropped(Dropped::PeerAway, lost);
            self.release(index, Direction::ToOrchestrator);
            // The orchestrator's port is gone, and its count of full lanes with it.
            self.claims[index].to_executor.full = false;
            let over = self.claims[index].ending != Ending::No;
            if !over {
                self.reset(index, Direction::ToExecutor, ResetReason::OrchestratorGone);
            }
            let claim = &mut self.claims[index];
            claim.holder = if claim.resends && !over {
                Holder::Away { until: now + limits::STREAM_GRACE }
            } else {
                Holder::Nobody
            };
            self.remove_if_over(index);
        }
    }

    pub(crate) fn claims_where(&self, wanted: impl Fn(&Claim) -> bool) -> Vec<usize> {
        self.claims.iter().filter(|(_, claim)| wanted(claim)).map(|(index, _)| index).collect()
    }

    pub(crate) fn remove_if_over(&mut self, index: usize) {
        if !self.claims[index].is_over() {
            return;
        }
        self.set_handshake(index, Handshake::Over);
        for direction in [Direction::ToExecutor, Direction::ToOrchestrator] {
            self.clear(index, direction);
        }
        self.uncount(index);
        let claim = self.claims.remove(index);
        self.by_stream.remove(claim.stream.as_str());
    }
}

fn reset_frame(stream: StreamId, reason: ResetReason) -> Bytes {
    Frame::bare(stream, Body::Reset { reason: reason.as_str().to_owned() }).encode()
}
