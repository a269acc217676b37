//! The scheduler of one websocket: its acks before its lanes, within a bound,
//! and its lanes in deficit round robin.
//!
//! The frames themselves are in their [`Claim`]s; an outbox only knows their
//! order. Each turn grants a lane [`LANE_QUANTUM_BYTES`], so a stream of many
//! small frames and one of few large ones get the same bytes. Acks do not wait
//! behind lanes, but they never get more than [`AHEAD_MAX_BYTES`] ahead of them.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_proto::limits;

use crate::claim::{Claim, Claims};
use crate::lane::cost;
use crate::overflow::Direction;

/// Resets of the relay itself that wait in one port's outbox, for streams that
/// have no lane there: two for each stream that an orchestrator's websocket may
/// have. A dropped one costs its sender a timeout.
pub const RESETS_MAX_FRAMES: usize = 64;
/// Bytes that the deficit round robin grants a lane per turn: one full record.
const LANE_QUANTUM_BYTES: usize = 64 * 1024;
/// Bytes that acks and resets may be sent ahead of lanes that wait. Beyond, a
/// byte of them needs a byte of a lane, so a flood of acks leaves lanes half of
/// the websocket. It is more than an ack of each stream of an executor.
const AHEAD_MAX_BYTES: usize = 64 * 1024;

const _: () = {
    assert!(LANE_QUANTUM_BYTES >= limits::NOISE_MESSAGE_MAX_BYTES);
    assert!(RESETS_MAX_FRAMES >= 2 * crate::STREAMS_PER_ORCHESTRATOR);
};

/// The order in which frames go out of one port.
#[derive(Debug)]
pub(crate) struct Outbox {
    direction: Direction,
    resets: VecDeque<Bytes>,
    /// Indices of claims with an ack or heartbeat. Bounded by the number of
    /// claims: a claim is in it once.
    overtaking: VecDeque<usize>,
    /// Bytes of acks and resets that were sent ahead of lanes.
    ahead: usize,
    /// Indices of claims whose lane is not empty. Bounded by the number of
    /// claims: a lane is in it once.
    ring: VecDeque<usize>,
}

impl Outbox {
    pub(crate) fn new(direction: Direction) -> Self {
        Self {
            direction,
            resets: VecDeque::new(),
            overtaking: VecDeque::new(),
            ahead: 0,
            ring: VecDeque::new(),
        }
    }

    /// Appends a reset of the relay itself.
    pub(crate) fn push_reset(&mut self, frame: Bytes) {
        self.resets.push_back(frame);
    }

    /// Resets of the relay itself that wait.
    pub(crate) fn resets(&self) -> usize {
        self.resets.len()
    }

    /// The cost of the relay's own resets, which the port pays.
    pub(crate) fn reset_bytes(&self) -> usize {
        self.resets.iter().map(cost).sum()
    }

    /// Queues claim `index` for its ack or heartbeat, if it has one.
    pub(crate) fn push_overtaking(&mut self, index: usize, claim: &mut Claim) {
        let lane = claim.lane_mut(self.direction);
        if lane.has_overtaking() && !lane.overtakes {
            lane.overtakes = true;
            self.overtaking.push_back(index);
        }
    }

    /// Appends to the lane of claim `index`.
    pub(crate) fn push(&mut self, index: usize, claim: &mut Claim, frame: Bytes) {
        claim.push(self.direction, frame);
        let lane = claim.lane_mut(self.direction);
        if !lane.queued {
            lane.queued = true;
            lane.deficit = 0;
            self.ring.push_back(index);
        }
    }

    /// The next frame, and the index of its claim unless it is a reset of the
    /// relay itself.
    pub(crate) fn pop(&mut self, claims: &mut Claims) -> Option<(Bytes, Option<usize>)> {
        if self.ahead < AHEAD_MAX_BYTES
            && let Some(popped) = self.pop_ahead(claims)
        {
            return Some(popped);
        }
        if let Some((frame, index)) = self.pop_lane(claims) {
            self.ahead = self.ahead.saturating_sub(frame.len());
            return Some((frame, Some(index)));
        }
        self.ahead = 0;
        self.pop_ahead(claims)
    }

    /// The next frame that does not wait behind lanes.
    fn pop_ahead(&mut self, claims: &mut Claims) -> Option<(Bytes, Option<usize>)> {
        if let Some(frame) = self.resets.pop_front() {
            self.ahead += cost(&frame);
            return Some((frame, None));
        }
        while let Some(index) = self.overtaking.pop_front() {
            let Some(claim) = claims.get_mut(index) else { continue };
            let frame = claim.pop_overtaking(self.direction);
            claim.lane_mut(self.direction).overtakes = false;
            self.push_overtaking(index, claim);
            if let Some(frame) = frame {
                self.ahead += cost(&frame);
                return Some((frame, Some(index)));
            }
        }
        None
    }

    /// The next frame of a lane, and the index of its claim.
    fn pop_lane(&mut self, claims: &mut Claims) -> Option<(Bytes, usize)> {
        // Ends: every pass over a lane raises its deficit by a quantum, and a
        // frame is at most MESSAGE_MAX_BYTES, that is four quanta.
        while let Some(index) = self.ring.front().copied() {
            let Some(claim) = claims.get_mut(index) else {
                self.ring.pop_front();
                continue;
            };
            let lane = claim.lane_mut(self.direction);
            match lane.next_len() {
                None => {
                    lane.queued = false;
                    self.ring.pop_front();
                }
                Some(len) if len > lane.deficit => {
                    lane.deficit += LANE_QUANTUM_BYTES;
                    self.ring.rotate_left(1);
                }
                Some(len) => {
                    lane.deficit -= len;
                    let frame = claim.pop(self.direction)?;
                    let lane = claim.lane_mut(self.direction);
                    if lane.is_empty() {
                        lane.queued = false;
                        self.ring.pop_front();
                    }
                    return Some((frame, index));
                }
            }
        }
        None
    }

    /// Removes a claim.
    pub(crate) fn forget(&mut self, index: usize) {
        self.ring.retain(|queued| *queued != index);
        self.overtaking.retain(|queued| *queued != index);
    }
}
