//! What happens to a lane that is full: a decision, made here and counted.

use rendez_proto::limits;

/// A lane that holds this many bytes is full. One more message of any size
/// still fits below [`limits::LANE_MAX_BYTES`], so the message that fills a
/// lane is never lost.
pub const FULL_BYTES: usize = limits::LANE_MAX_BYTES - limits::MESSAGE_MAX_BYTES;
/// A full lane has room again below this many bytes: not at the first byte,
/// so that a source is not stopped and started for every message.
pub const ROOM_BYTES: usize = FULL_BYTES / 2;

/// Which way a lane runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From an orchestrator to the executor.
    ToExecutor,
    /// From the executor to an orchestrator.
    ToOrchestrator,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The lane's source is not read until there is room. It is one peer, so
    /// nobody else waits.
    StopReading,
    /// New messages are dropped: the endpoints notice and resend. A conforming
    /// sender never has more than its window in flight, which fits.
    Shed,
    /// The source is not read for at most [`limits::STALL_MAX`], although it
    /// carries other streams too: this stream cannot resend. Then the stream
    /// is reset; its endpoints resume on the session level.
    StallThenReset,
}

/// Decides.
pub fn on_full(direction: Direction, resends: bool) -> OnFull {
    match (direction, resends) {
        (Direction::ToExecutor, _) => OnFull::StopReading,
        (Direction::ToOrchestrator, true) => OnFull::Shed,
        (Direction::ToOrchestrator, false) => OnFull::StallThenReset,
    }
}

const _: () = assert!(FULL_BYTES >= limits::WINDOW_MAX_BYTES);
