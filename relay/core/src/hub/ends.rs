//! The ends of streams: resets, ports that leave, deadlines.

use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::limits;

use super::Hub;
use crate::claim::{Ending, Holder};
use crate::ids::PortKey;
use crate::overflow::Direction;
use crate::refusal::{Refusal, Refused};
use crate::stats::Dropped;

impl Hub {
    /// Ends a stream without waiting for an answer.
    pub(super) fn end_at_once(&mut self, index: usize) {
        let claim = &mut self.claims[index];
        self.ports.uncount(claim);
        claim.ending = Ending::Over;
    }

    /// Ends everything of a claim that is due.
    pub(super) fn sweep(&mut self, index: usize, now: Instant) {
        self.expire_handshake(index, now);
        let claim = &mut self.claims[index];
        if claim.stalled_until.is_some_and(|deadline| deadline <= now) {
            return self.reset_overloaded(index);
        }
        claim.expire(now);
        self.remove_if_over(index);
    }

    /// Resets a stream that stalled the executor for too long, or whose token or
    /// websocket has no memory left; it cannot resend.
    pub(super) fn reset_overloaded(&mut self, index: usize) {
        let lost = self.clear(index, Direction::ToOrchestrator);
        self.stats.count_dropped(Dropped::Overloaded, lost);
        self.reset(index, Direction::ToOrchestrator, ResetReason::Overloaded);
        self.reset(index, Direction::ToExecutor, ResetReason::Overloaded);
        self.end_at_once(index);
        self.remove_if_over(index);
    }

    /// Sends one end of a stream the reset that it is over, or that its far end
    /// is away.
    fn reset(&mut self, index: usize, direction: Direction, reason: ResetReason) {
        let frame = reset_frame(self.claims[index].stream.clone(), reason);
        if self.push(index, direction, frame) {
            self.stats.count_reset(reason);
        }
    }

    /// Counts a refused frame, and answers it by a reset if it names a stream.
    /// The stream has no lane at this port, so the answer takes the port's queue
    /// of resets. Returns the limit that the frame ran into, if it did.
    pub(super) fn refuse(
        &mut self,
        port: PortKey,
        stream: Option<StreamId>,
        Refused(dropped, reason, limit): Refused,
    ) -> Option<Refusal> {
        self.stats.count_dropped(dropped, 1);
        if let Some(stream) = stream
            && self.ports.push_reset(port, reset_frame(stream, reason))
        {
            self.stats.count_reset(reason);
        }
        limit
    }

    pub(super) fn executor_left(&mut self) {
        self.forget_handshakes();
        for index in self.claims.select(|_| true) {
            let claim = &mut self.claims[index];
            let resends = claim.resends;
            let lost = claim.sink_left(Direction::ToExecutor);
            self.stats.count_dropped(Dropped::PeerAway, lost);
            self.ports.resume_reading(claim, Direction::ToExecutor);
            claim.source_left(Direction::ToOrchestrator);
            self.reset(index, Direction::ToOrchestrator, ResetReason::ExecutorGone);
            if !resends {
                self.end_at_once(index);
            }
            self.remove_if_over(index);
        }
    }

    pub(super) fn orchestrator_left(&mut self, key: PortKey, now: Instant) {
        for index in self.claims.select(|claim| claim.port() == Some(key)) {
            let lost = self.claims[index].sink_left(Direction::ToOrchestrator);
            self.handshake_failed(index, Direction::ToExecutor, now);
            self.stats.count_dropped(Dropped::PeerAway, lost);
            let claim = &mut self.claims[index];
            self.ports.resume_reading(claim, Direction::ToOrchestrator);
            claim.source_left(Direction::ToExecutor);
            let over = claim.ending != Ending::No;
            let holder = if claim.resends && !over {
                Holder::Away { until: now + limits::STREAM_GRACE }
            } else {
                Holder::Vacant
            };
            if !over {
                self.reset(index, Direction::ToExecutor, ResetReason::OrchestratorGone);
            }
            self.claims[index].holder = holder;
            self.remove_if_over(index);
        }
    }

    pub(super) fn remove_if_over(&mut self, index: usize) {
        if !self.claims[index].is_over() {
            return;
        }
        self.drop_handshake(index);
        for direction in [Direction::ToExecutor, Direction::ToOrchestrator] {
            self.clear(index, direction);
        }
        self.ports.uncount(&self.claims[index]);
        self.claims.remove(index);
    }

    fn clear(&mut self, index: usize, direction: Direction) -> u64 {
        self.ports.clear(index, &mut self.claims[index], direction)
    }
}

fn reset_frame(stream: StreamId, reason: ResetReason) -> Bytes {
    Frame::bare(stream, Body::Reset { reason: reason.as_str().to_owned() }).encode()
}
