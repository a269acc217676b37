//! The decision about a full lane; its consequences are counted.

use rendez_proto::limits;

use crate::lane::FRAME_COST_BYTES;

/// Bytes of one stream that may wait in one direction: a largest window, so
/// that the data in flight of a conforming sender fits while there is memory.
pub const LANE_MAX_BYTES: usize = 28 * 1024 * 1024;
/// Bytes that a lane may hold when no memory is free: one message of any size,
/// so that every stream moves on.
pub const LANE_MIN_BYTES: usize = limits::MESSAGE_MAX_BYTES;

/// A lane that holds this many bytes is full even while memory is free. One
/// more message of any size still fits below [`LANE_MAX_BYTES`], so the
/// message that fills a lane is never lost.
pub const FULL_BYTES: usize = LANE_MAX_BYTES - limits::MESSAGE_MAX_BYTES;

/// How many bytes make a lane full, when `free` bytes are free for all lanes of
/// its accounts. A lane gets at most as much as it leaves to the others, so a few
/// slow readers cannot take everything (the dynamic threshold of Choudhury and
/// Hahne). When the memory of an environment or the node has run out, a lane still
/// gets a minimum, so that its stream moves on. The quotas of its token and its
/// websocket have no such exception: when they have run out, each lane gets one frame.
pub fn full_threshold(free: usize) -> usize {
    free.clamp(LANE_MIN_BYTES, FULL_BYTES)
}

/// The direction of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From an orchestrator to the executor.
    ToExecutor,
    /// From the executor to an orchestrator.
    ToOrchestrator,
}

/// The decision about a full lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The lane's source is not read until there is room. It is one orchestrator,
    /// so no other one waits.
    StopReading,
    /// New frames are dropped: the endpoints notice, resend, and send less. The
    /// data in flight of a conforming sender fits while there is memory.
    Shed,
    /// The source is not read for at most [`limits::STALL_MAX`], although it
    /// carries other streams too: this stream cannot resend. Then the stream
    /// is reset; its endpoints resume on the session level.
    StallThenReset,
}

/// Decides by the direction of a lane and whether its stream resends.
pub fn on_full(direction: Direction, resends: bool) -> OnFull {
    match (direction, resends) {
        (Direction::ToExecutor, _) => OnFull::StopReading,
        (Direction::ToOrchestrator, true) => OnFull::Shed,
        (Direction::ToOrchestrator, false) => OnFull::StallThenReset,
    }
}

const _: () = {
    // a full lane holds what a conforming sender may have in flight
    assert!(
        FULL_BYTES
            >= limits::WINDOW_MAX_RECORDS as usize * (limits::FRAME_MAX_BYTES + FRAME_COST_BYTES)
    );
    assert!(LANE_MIN_BYTES >= limits::FRAME_MAX_BYTES && LANE_MIN_BYTES < LANE_MAX_BYTES);
};
