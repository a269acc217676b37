//! The frames of one stream that wait, one way.

use std::collections::VecDeque;

use bytes::Bytes;
use rendez_proto::limits;

/// Bytes that a waiting frame is charged besides its own: its place in a queue
/// and that of its allocation.
pub const FRAME_COST_BYTES: usize = 64;
/// Frames up to this size are copied before they wait at all. Otherwise each
/// could keep a whole read buffer in memory, which no account pays for.
pub(crate) const FRAME_COPY_BYTES: usize = limits::FRAME_OVERHEAD_MAX_BYTES;
/// The same for frames that wait behind others: a copy costs less than the
/// wait.
const FRAME_COPY_WAITING_BYTES: usize = 16 * 1024;

/// Returns the bytes that a waiting frame is charged.
pub(crate) fn cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_COST_BYTES
}

/// Frames of one stream that wait, one way.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Bytes that the round robin still grants in this turn.
    pub(crate) deficit: usize,
    /// Whether the lane is in its outbox's ring.
    pub(crate) queued: bool,
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

    /// Removes the next frame.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= cost(&frame);
        Some(frame)
    }

    /// Drops all frames; returns how many there were and their cost.
    pub(crate) fn clear(&mut self) -> (u64, usize) {
        let frames = std::mem::take(&mut self.frames);
        (frames.len() as u64, std::mem::take(&mut self.bytes))
    }
}
