//! A stream as the hub knows it: whose it is, and its two lanes.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::ids::StreamId;

use crate::hub::PortKey;
use crate::overflow::{Direction, FULL_BYTES, ROOM_BYTES};

/// Who owns a stream id: the fingerprint of the orchestrator's static key,
/// which its ticket carries. The same orchestrator may come back on another
/// websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Subject(pub [u8; 32]);

/// Frames of one stream that wait, one way.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// Bytes that the round robin still grants in this turn.
    pub(crate) deficit: usize,
    /// Whether the lane stands in its outbox's ring.
    pub(crate) queued: bool,
    /// Whether its source is held back because of it.
    pub(crate) full: bool,
}

impl Lane {
    pub(crate) fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    pub(crate) fn next_len(&self) -> Option<usize> {
        self.frames.front().map(Bytes::len)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(crate) fn is_at_limit(&self) -> bool {
        self.bytes >= FULL_BYTES
    }

    pub(crate) fn has_room_again(&self) -> bool {
        self.bytes < ROOM_BYTES
    }

    /// Empties the lane; returns how many frames are lost.
    pub(crate) fn clear(&mut self) -> u64 {
        let lost = self.frames.len() as u64;
        self.frames = VecDeque::new();
        self.bytes = 0;
        lost
    }
}

/// Where a stream's orchestrator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Port(PortKey),
    /// Its websocket is gone; the id stays its own until then.
    Away {
        until: Instant,
    },
    /// Over: the claim goes when its lanes are empty.
    Nobody,
}

/// How far the end of a stream has come. Once it has begun, the claim does not
/// count as one of its port's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    No,
    /// A reset passed. The far end may answer it until then.
    Passed {
        direction: Direction,
        until: Instant,
    },
    /// Nothing more is to come.
    Over,
}

/// One stream id and who owns it.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) stream: StreamId,
    pub(crate) subject: Subject,
    /// Whether its endpoints resend and resume (a `rendez_` profile).
    pub(crate) resends: bool,
    pub(crate) holder: Holder,
    pub(crate) to_executor: Lane,
    pub(crate) to_orchestrator: Lane,
    /// When a stalled stream is reset.
    pub(crate) stalled_until: Option<Instant>,
    pub(crate) ending: Ending,
}

impl Claim {
    pub(crate) fn new(stream: StreamId, subject: Subject, resends: bool, port: PortKey) -> Self {
        Self {
            stream,
            subject,
            resends,
            holder: Holder::Port(port),
            to_executor: Lane::default(),
            to_orchestrator: Lane::default(),
            stalled_until: None,
            ending: Ending::No,
        }
    }

    pub(crate) fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::ToExecutor => &mut self.to_executor,
            Direction::ToOrchestrator => &mut self.to_orchestrator,
        }
    }

    /// Whether nothing keeps the claim any more.
    pub(crate) fn is_over(&self) -> bool {
        (self.ending == Ending::Over || self.holder == Holder::Nobody)
            && self.to_executor.is_empty()
            && self.to_orchestrator.is_empty()
    }

    /// When the sweeper must look at the claim.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let grace = match self.holder {
            Holder::Away { until } => Some(until),
            Holder::Port(_) | Holder::Nobody => None,
        };
        let linger = match self.ending {
            Ending::Passed { until, .. } => Some(until),
            Ending::No | Ending::Over => None,
        };
        [grace, linger, self.stalled_until].into_iter().flatten().min()
    }
}
