//! The scheduler of one websocket: acks first, then its lanes in deficit round
//! robin.
//!
//! The lanes themselves are in their [`Claim`]s; an outbox only knows their
//! order. Each turn grants [`LANE_QUANTUM_BYTES`], so a stream of many small
//! frames and one of few large ones get the same bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_proto::limits;

use crate::claim::{Claim, Claims};
use crate::lane::cost;
use crate::overflow::Direction;

/// Acks and heartbeats that wait in one port's outbox, ahead of its lanes, each
/// of at most [`limits::FRAME_OVERHEAD_MAX_BYTES`]. They are cumulative, so a
/// dropped one costs only time.
pub const EXPRESS_MAX_FRAMES: usize = 256;
/// Bytes that the deficit round robin grants a lane per turn: one full record.
const LANE_QUANTUM_BYTES: usize = 64 * 1024;

const _: () = assert!(LANE_QUANTUM_BYTES >= limits::NOISE_MESSAGE_MAX_BYTES);

/// The order in which frames go out of one port.
#[derive(Debug)]
pub(crate) struct Outbox {
    direction: Direction,
    express: VecDeque<Bytes>,
    express_bytes: usize,
    /// Indices of claims whose lane is not empty. Bounded by the number of
    /// claims: a lane is in it once.
    ring: VecDeque<usize>,
}

/// The express queue was full, or the frame is too large for it.
pub(crate) struct ExpressFull;

impl Outbox {
    pub(crate) fn new(direction: Direction) -> Self {
        Self { direction, express: VecDeque::new(), express_bytes: 0, ring: VecDeque::new() }
    }

    /// Whether an ack or heartbeat is small enough to go before all lanes.
    pub(crate) fn is_express(frame: &Bytes) -> bool {
        frame.len() <= limits::FRAME_OVERHEAD_MAX_BYTES
    }

    /// Puts a frame before all lanes. Returns its cost.
    pub(crate) fn push_express(&mut self, frame: &Bytes) -> Result<usize, ExpressFull> {
        if self.express.len() >= EXPRESS_MAX_FRAMES || !Self::is_express(frame) {
            return Err(ExpressFull);
        }
        let cost = cost(frame);
        self.express_bytes += cost;
        // copied, or it would keep the buffer that it was read into
        self.express.push_back(Bytes::copy_from_slice(frame));
        Ok(cost)
    }

    /// The cost of all frames that go before the lanes.
    pub(crate) fn express_bytes(&self) -> usize {
        self.express_bytes
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

    /// The next frame, and the index of its claim if it came out of a lane.
    pub(crate) fn pop(&mut self, claims: &mut Claims) -> Option<(Bytes, Option<usize>)> {
        if let Some(frame) = self.express.pop_front() {
            self.express_bytes -= cost(&frame);
            return Some((frame, None));
        }
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
                    return Some((frame, Some(index)));
                }
            }
        }
        None
    }

    /// Removes a claim from the ring.
    pub(crate) fn forget(&mut self, index: usize) {
        self.ring.retain(|queued| *queued != index);
    }
}
