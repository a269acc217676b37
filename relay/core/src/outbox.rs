//! What waits for one websocket: acks first, then lanes in deficit round robin.
//!
//! The lanes themselves live in their [`Claim`]s; an outbox only knows whose
//! turn it is. Each turn grants [`limits::LANE_QUANTUM_BYTES`], so a stream of
//! many small frames and one of few large ones get the same bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_proto::limits;
use slab::Slab;

use crate::claim::Claim;
use crate::overflow::Direction;

#[derive(Debug)]
pub(crate) struct Outbox {
    direction: Direction,
    express: VecDeque<Bytes>,
    /// Indices of claims whose lane is not empty. Bounded by the number of
    /// claims: a lane stands in it once.
    ring: VecDeque<usize>,
}

/// The express queue was full.
pub(crate) struct ExpressFull;

impl Outbox {
    pub(crate) fn new(direction: Direction) -> Self {
        Self { direction, express: VecDeque::new(), ring: VecDeque::new() }
    }

    pub(crate) fn push_express(&mut self, frame: Bytes) -> Result<(), ExpressFull> {
        if self.express.len() >= limits::EXPRESS_MAX_FRAMES {
            return Err(ExpressFull);
        }
        self.express.push_back(frame);
        Ok(())
    }

    /// Appends to the lane of claim `index`.
    pub(crate) fn push(&mut self, index: usize, claim: &mut Claim, frame: Bytes) {
        claim.push(self.direction, frame);
        let lane = claim.lane(self.direction);
        if !lane.queued {
            lane.queued = true;
            lane.deficit = 0;
            self.ring.push_back(index);
        }
    }

    /// The next frame, and whose it was if it came out of a lane.
    pub(crate) fn pop(&mut self, claims: &mut Slab<Claim>) -> Option<(Bytes, Option<usize>)> {
        if let Some(frame) = self.express.pop_front() {
            return Some((frame, None));
        }
        // Ends: every pass over a lane raises its deficit by a quantum, and a
        // frame is at most MESSAGE_MAX_BYTES, that is four quanta.
        while let Some(index) = self.ring.front().copied() {
            let Some(claim) = claims.get_mut(index) else {
                self.ring.pop_front();
                continue;
            };
            let lane = claim.lane(self.direction);
            match lane.next_len() {
                None => {
                    lane.queued = false;
                    self.ring.pop_front();
                }
                Some(len) if len > lane.deficit => {
                    lane.deficit += limits::LANE_QUANTUM_BYTES;
                    self.ring.rotate_left(1);
                }
                Some(len) => {
                    lane.deficit -= len;
                    let frame = claim.pop(self.direction)?;
                    let lane = claim.lane(self.direction);
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

    /// Takes a claim that is about to go out of the ring.
    pub(crate) fn forget(&mut self, index: usize) {
        self.ring.retain(|queued| *queued != index);
    }
}
