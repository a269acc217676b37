//! The way of a frame into its lane.

use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::ResetReason;
use rendez_proto::ids::StreamId;
use rendez_proto::limits;
use rendez_proto::peek::{Kind, Peek};

use super::Hub;
use crate::claim::{Claim, Ending};
use crate::ids::{KeyFingerprint, PortKey};
use crate::overflow::{Direction, LANE_MAX_BYTES, OnFull, on_full};
use crate::port::Capabilities;
use crate::refusal::{Refusal, Refused};
use crate::stats::Dropped;

/// Streams that one orchestrator websocket may have. Stock ones have one; more
/// than a quarter of the executor's would shut others out.
pub const STREAMS_PER_ORCHESTRATOR: usize = 32;
/// Stream ids that one hub remembers, those in [`limits::STREAM_GRACE`]
/// included: bounds its memory against orchestrators that come and go.
pub const CLAIMS_PER_EXECUTOR: usize = 1024;

const _: () = {
    assert!(STREAMS_PER_ORCHESTRATOR * 2 <= limits::STREAMS_PER_EXECUTOR);
    assert!(CLAIMS_PER_EXECUTOR >= 2 * limits::STREAMS_PER_EXECUTOR);
};

impl Hub {
    /// Returns the limit that the frame ran into, if it did.
    pub(super) fn route_from_executor(
        &mut self,
        frame: Peek<'_>,
        message: Bytes,
        now: Instant,
    ) -> Option<Refusal> {
        let Some(index) = self.claims.find(frame.stream) else {
            self.stats.count_dropped(Dropped::UnknownStream, 1);
            return None;
        };
        self.forward(index, Direction::ToOrchestrator, frame.kind, message, now)
    }

    /// Returns the limit that the frame ran into, if it did.
    pub(super) fn route_from_orchestrator(
        &mut self,
        from: PortKey,
        fingerprint: KeyFingerprint,
        capabilities: Capabilities,
        frame: Peek<'_>,
        message: Bytes,
        now: Instant,
    ) -> Option<Refusal> {
        let index = match self.claim(from, fingerprint, capabilities, frame.stream) {
            Ok(index) => index,
            Err(refused) => {
                // A reset is never answered by a reset.
                let answered = frame.kind != Kind::Reset;
                let stream = answered.then(|| frame.stream.parse().ok()).flatten();
                return self.refuse(from, stream, refused);
            }
        };
        if frame.kind == Kind::Handshake {
            let refused = self.offer(index, message, now).err()?;
            let stream = self.claims[index].stream.clone();
            self.end_at_once(index);
            self.remove_if_over(index);
            return self.refuse(from, Some(stream), refused);
        }
        // The executor does not know the stream before its handshake.
        if self.claims[index].handshake().is_waiting() {
            self.stats.count_dropped(Dropped::HandshakeWaits, 1);
            if frame.kind == Kind::Reset {
                self.handshake_failed(index, Direction::ToExecutor, now);
                self.end_at_once(index);
                self.remove_if_over(index);
            }
            return None;
        }
        self.forward(index, Direction::ToExecutor, frame.kind, message, now)
    }

    /// The claim on `stream`, taken by its first frame.
    fn claim(
        &mut self,
        from: PortKey,
        fingerprint: KeyFingerprint,
        capabilities: Capabilities,
        stream: &str,
    ) -> Result<usize, Refused> {
        const NO_EXECUTOR: Refused = Refused(Dropped::PeerAway, ResetReason::ExecutorGone, None);
        const FOREIGN: Refused = Refused(Dropped::ForeignStream, ResetReason::StreamInUse, None);
        let too_many = || Refused::too_many(Refusal::StreamsOfWebsocket);
        if let Some(index) = self.claims.find(stream) {
            let claim = &self.claims[index];
            if claim.port() == Some(from) {
                return Ok(index);
            }
            // The same orchestrator may move its stream to a new websocket, also
            // while the loss of the old one has not been noticed.
            if claim.fingerprint != fingerprint {
                return Err(FOREIGN);
            }
            self.move_claim(index, from)?;
            return Ok(index);
        }
        if self.ports.executor().is_none() {
            return Err(NO_EXECUTOR);
        }
        if self.claims.len() >= CLAIMS_PER_EXECUTOR {
            return Err(Refused::too_many(Refusal::StreamsOfExecutor));
        }
        let port = self.ports.get_mut(from).ok_or_else(too_many)?;
        if port.streams >= STREAMS_PER_ORCHESTRATOR {
            return Err(too_many());
        }
        let stream: StreamId = stream.parse().map_err(|_| too_many())?;
        let claim =
            Claim::new(stream, fingerprint, capabilities.resends, from, port.accounts.clone());
        let index = self.claims.insert(claim.map_err(Refused::streams)?);
        port.streams += 1;
        Ok(index)
    }

    /// Moves a claim to another port of its owner.
    fn move_claim(&mut self, index: usize, port: PortKey) -> Result<(), Refused> {
        let claim = &mut self.claims[index];
        let new = self.ports.get_mut(port);
        let new = new
            .filter(|new| new.streams < STREAMS_PER_ORCHESTRATOR)
            .ok_or_else(|| Refused::too_many(Refusal::StreamsOfWebsocket))?;
        claim.charge_to(new.accounts.clone()).map_err(Refused::streams)?;
        new.streams += 1;
        self.ports.resume_reading(claim, Direction::ToExecutor);
        let lost = self.ports.clear(index, claim, Direction::ToOrchestrator);
        self.stats.count_dropped(Dropped::PeerAway, lost);
        self.ports.uncount(claim);
        claim.move_to(port);
        Ok(())
    }

    /// Returns the limit that the frame ran into, if it did.
    pub(super) fn forward(
        &mut self,
        index: usize,
        direction: Direction,
        kind: Kind,
        message: Bytes,
        now: Instant,
    ) -> Option<Refusal> {
        let claim = &self.claims[index];
        if self.ports.sink(claim, direction).is_none() {
            self.stats.count_dropped(Dropped::PeerAway, 1);
            return None;
        }
        // A large ack or heartbeat carries fields that do not belong there: it
        // takes its lane.
        if kind.may_overtake() && message.len() <= limits::FRAME_OVERHEAD_MAX_BYTES {
            let claim = &mut self.claims[index];
            let why = self.ports.overtake(index, claim, direction, kind, &message).err()?;
            self.stats.count_dropped(why, 1);
            return (why == Dropped::Quota).then_some(Refusal::QueueMemory);
        }
        let resends = claim.resends;
        if !claim.may_wait(kind, &message) {
            self.stats.count_dropped(Dropped::Quota, 1);
            if !resends {
                self.reset_overloaded(index);
            }
            return Some(Refusal::QueueMemory);
        }
        let decision = on_full(direction, resends);
        let waiting = claim.lane(direction).bytes();
        let fits = match decision {
            OnFull::Shed => waiting < claim.full_threshold(),
            // The frame that fills up the lane is taken: its source cannot
            // resend, or was not stopped because memory went to others.
            OnFull::StopReading | OnFull::StallThenReset => {
                waiting + message.len() <= LANE_MAX_BYTES
            }
        };
        if fits {
            self.follow_handshake(index, direction, kind, now);
            match kind {
                Kind::Reset => self.note_reset(index, direction, now),
                Kind::Resume => self.continue_stream(index),
                _ => {}
            }
            self.push(index, direction, message);
        } else {
            // A frame that may be shed, or the first one of a source that just
            // took over a full lane.
            self.stats.count_dropped(Dropped::LaneFull, 1);
        }
        let claim = &mut self.claims[index];
        if claim.is_full(direction) {
            match decision {
                OnFull::Shed => {}
                OnFull::StopReading => self.ports.stop_reading(claim, direction),
                OnFull::StallThenReset => {
                    claim.stalled_until.get_or_insert(now + limits::STALL_MAX);
                    self.ports.stop_reading(claim, direction);
                }
            }
        }
        None
    }

    /// Ends a stream when the far end has answered the reset that passes.
    fn note_reset(&mut self, index: usize, direction: Direction, now: Instant) {
        let claim = &mut self.claims[index];
        if direction == Direction::ToOrchestrator && claim.handshake().is_waiting() {
            // The executor has not read this handshake: it resets what came before.
            return;
        }
        self.ports.uncount(claim);
        claim.reset_passes(direction, now);
    }

    /// Continues a stream whose end did not accept the reset that passed. Our
    /// ends accept none without a proof: an executor that took the environment
    /// over for a moment resets every stream that it does not know. A resume of
    /// a stream that is really over is answered by a reset, and that one counts.
    /// A repeated message 1 says the same: its end has not read the reset.
    pub(super) fn continue_stream(&mut self, index: usize) {
        let claim = &mut self.claims[index];
        let (Ending::Passed { .. }, Some(port), true) = (claim.ending, claim.port(), claim.resends)
        else {
            return;
        };
        if let Some(port) = self.ports.get_mut(port)
            && port.streams < STREAMS_PER_ORCHESTRATOR
        {
            port.streams += 1;
            claim.ending = Ending::No;
        }
    }
}
