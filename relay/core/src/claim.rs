//! A stream as the hub knows it: whose it is, and its two lanes.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::ids::StreamId;
use rendez_proto::limits;

use crate::account::{Accounts, Level};
use crate::hub::PortKey;
use crate::overflow::Direction;

/// What a frame that waits costs besides its bytes: its place in a queue and
/// that of its allocation.
pub const FRAME_COST_BYTES: usize = 64;
/// Frames up to this size are copied before they wait at all. Else each could
/// keep a whole read buffer in memory, which nobody pays for.
pub(crate) const FRAME_COPY_BYTES: usize = limits::FRAME_OVERHEAD_MAX_BYTES;
/// The same for frames that wait behind others: a copy costs less than the
/// wait.
const FRAME_COPY_WAITING_BYTES: usize = 16 * 1024;

/// Who owns a stream id: the fingerprint of the orchestrator's static key,
/// which its ticket carries. The same orchestrator may come back on another
/// websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyFingerprint(pub [u8; 32]);

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
    pub(crate) fn next_len(&self) -> Option<usize> {
        self.frames.front().map(Bytes::len)
    }

    /// What waits costs, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }
}

/// What a frame that waits is charged with.
pub(crate) fn cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_COST_BYTES
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

/// How far the handshake of a stream has come. See `handshakes`.
#[derive(Debug)]
pub(crate) enum Handshake {
    /// None passed; the stream may have begun at another relay.
    None,
    /// Message 1 is here, and may not go to the executor yet.
    Waiting { message: Bytes, since: Instant },
    /// Message 1 went to the executor; when, the first and the last time.
    Offered { since: Instant, at: Instant },
    /// The executor has answered, or will not.
    Over,
}

/// One stream id and who owns it.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) stream: StreamId,
    pub(crate) fingerprint: KeyFingerprint,
    /// Whether its endpoints resend and resume (a `rendez_` profile).
    pub(crate) resends: bool,
    pub(crate) holder: Holder,
    pub(crate) to_executor: Lane,
    pub(crate) to_orchestrator: Lane,
    /// When a stalled stream is reset.
    pub(crate) stalled_until: Option<Instant>,
    pub(crate) ending: Ending,
    handshake: Handshake,
    /// Those of the orchestrator's websocket, also for the way to the executor.
    accounts: Accounts,
}

impl Claim {
    /// # Errors
    /// The account that has no place for another stream.
    pub(crate) fn new(
        stream: StreamId,
        fingerprint: KeyFingerprint,
        resends: bool,
        port: PortKey,
        accounts: Accounts,
    ) -> Result<Self, Level> {
        accounts.open_stream()?;
        Ok(Self {
            stream,
            fingerprint,
            resends,
            holder: Holder::Port(port),
            to_executor: Lane::default(),
            to_orchestrator: Lane::default(),
            stalled_until: None,
            ending: Ending::No,
            handshake: Handshake::None,
            accounts,
        })
    }

    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Whether its bearer has memory left for a frame.
    pub(crate) fn can_pay(&self, frame: &Bytes) -> bool {
        cost(frame) <= self.accounts.own_free_memory()
    }

    /// From here on another websocket of the same orchestrator pays.
    ///
    /// # Errors
    /// The account that has no place for another stream; nothing has changed.
    pub(crate) fn charge_to(&mut self, accounts: Accounts) -> Result<(), Level> {
        // First, or a stream that only moves would need two places.
        self.accounts.close_stream();
        if let Err(level) = accounts.open_stream() {
            // Nobody else can have taken the place: its hub is locked, but for
            // accounts that hubs share. Then the stream is one too many.
            self.accounts.restore_stream();
            return Err(level);
        }
        let waiting = self.to_executor.bytes + self.to_orchestrator.bytes + self.handshake.cost();
        self.accounts.sub_memory(waiting);
        accounts.add_memory(waiting);
        self.accounts = accounts;
        Ok(())
    }

    pub(crate) fn handshake(&self) -> &Handshake {
        &self.handshake
    }

    /// How far the handshake has come now; a message that waits is paid for.
    pub(crate) fn set_handshake(&mut self, handshake: Handshake) -> Handshake {
        self.accounts.add_memory(handshake.cost());
        let before = std::mem::replace(&mut self.handshake, handshake);
        self.accounts.sub_memory(before.cost());
        before
    }

    pub(crate) fn push(&mut self, direction: Direction, frame: Bytes) {
        let lane = self.lane(direction);
        let copied = match lane.is_empty() {
            true => FRAME_COPY_BYTES,
            false => FRAME_COPY_WAITING_BYTES,
        };
        let frame = if frame.len() <= copied { Bytes::copy_from_slice(&frame) } else { frame };
        let cost = cost(&frame);
        lane.bytes += cost;
        lane.frames.push_back(frame);
        self.accounts.add_memory(cost);
    }

    pub(crate) fn pop(&mut self, direction: Direction) -> Option<Bytes> {
        let lane = self.lane(direction);
        let frame = lane.frames.pop_front()?;
        let cost = cost(&frame);
        lane.bytes -= cost;
        self.accounts.sub_memory(cost);
        Some(frame)
    }

    /// Empties a lane; returns how many frames are lost.
    pub(crate) fn clear(&mut self, direction: Direction) -> u64 {
        let lane = self.lane(direction);
        let lost = lane.frames.len() as u64;
        let bytes = std::mem::take(&mut lane.bytes);
        lane.frames = VecDeque::new();
        self.accounts.sub_memory(bytes);
        lost
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
        [grace, linger, self.stalled_until, self.handshake.deadline()].into_iter().flatten().min()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.clear(Direction::ToExecutor);
        self.clear(Direction::ToOrchestrator);
        self.set_handshake(Handshake::Over);
        self.accounts.close_stream();
    }
}
