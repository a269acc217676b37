//! The frames of one stream that wait, one way.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_proto::limits;
use rendez_proto::peek::Kind;

/// Bytes that a waiting frame is charged besides its own: its place in a queue
/// and that of its allocation.
pub const FRAME_COST_BYTES: usize = 64;
/// Frames up to this size are copied before they wait at all. Otherwise each
/// could keep a whole read buffer in memory, which no account pays for.
pub(crate) const FRAME_COPY_BYTES: usize = limits::FRAME_OVERHEAD_MAX_BYTES;
/// The same for frames that wait behind others: a copy costs less than the
/// wait.
const FRAME_COPY_WAITING_BYTES: usize = 16 * 1024;

/// Acks and heartbeats of one stream that wait one way, ahead of its lane: the
/// newest of each kind, of at most [`limits::FRAME_OVERHEAD_MAX_BYTES`]. Both
/// carry everything that an older one carried. A heartbeat also asks for an
/// answer, so an ack does not replace it.
pub const OVERTAKING_MAX_FRAMES: usize = 2;

/// Returns the bytes that a waiting frame is charged.
pub(crate) fn cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_COST_BYTES
}

/// Frames of one stream that wait, one way.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// The newest ack and the newest heartbeat; they go ahead of the lane.
    overtaking: [Option<Bytes>; OVERTAKING_MAX_FRAMES],
    /// Bytes that the round robin still grants in this turn.
    pub(crate) deficit: usize,
    /// Whether the lane is in its outbox's ring.
    pub(crate) queued: bool,
    /// Whether the claim is in its outbox's queue of acks.
    pub(crate) overtakes: bool,
    /// Whether the lane's source is not read because the lane is full.
    pub(crate) full: bool,
}

impl Lane {
    /// The length of the frame that is next.
    pub(crate) fn next_len(&self) -> Option<usize> {
        self.frames.front().map(Bytes::len)
    }

    /// The cost of all frames that wait, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Appends a frame; returns its cost.
    pub(crate) fn push(&mut self, frame: Bytes) -> usize {
        let copied = if self.is_empty() { FRAME_COPY_BYTES } else { FRAME_COPY_WAITING_BYTES };
        let frame = if frame.len() <= copied { Bytes::copy_from_slice(&frame) } else { frame };
        let cost = cost(&frame);
        self.bytes += cost;
        self.frames.push_back(frame);
        cost
    }

    /// The cost of the acks and heartbeats that wait, in bytes.
    pub(crate) fn overtaking_bytes(&self) -> usize {
        self.overtaking.iter().flatten().map(cost).sum()
    }

    /// The place of the waiting frame of this kind.
    pub(crate) fn overtaking_mut(&mut self, kind: Kind) -> &mut Option<Bytes> {
        &mut self.overtaking[usize::from(kind == Kind::Heartbeat)]
    }

    /// Removes the next ack or heartbeat.
    pub(crate) fn pop_overtaking(&mut self) -> Option<Bytes> {
        self.overtaking.iter_mut().find_map(Option::take)
    }

    /// Whether an ack or heartbeat waits.
    pub(crate) fn has_overtaking(&self) -> bool {
        self.overtaking.iter().any(Option::is_some)
    }

    /// Removes the next frame.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= cost(&frame);
        Some(frame)
    }

    /// Drops all frames; returns how many there were and their cost. The outbox
    /// forgets the lane, or is gone.
    pub(crate) fn clear(&mut self) -> (u64, usize) {
        (self.queued, self.overtakes) = (false, false);
        let mut lost = std::mem::take(&mut self.frames).len() as u64;
        let mut bytes = std::mem::take(&mut self.bytes);
        while let Some(frame) = self.pop_overtaking() {
            lost += 1;
            bytes += cost(&frame);
        }
        (lost, bytes)
    }
}
