//! Claims: stream ids, their owners, and their two lanes.

use std::collections::HashMap;
use std::ops::{Index, IndexMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::ids::StreamId;
use rendez_proto::peek::Kind;
use slab::Slab;

use crate::account::{Account, Accounts, Level};
use crate::handshake::HandshakeState;
use crate::ids::{KeyFingerprint, PortKey};
use crate::lane::{FRAME_COPY_BYTES, Lane, cost};
use crate::overflow::Direction;
use crate::stats::Dropped;

/// How long a relay remembers a stream after a reset passed, for the far end's
/// answer: a few round trips.
pub(crate) const RESET_LINGER: Duration = Duration::from_secs(2);

/// The orchestrator's websocket of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    Port(PortKey),
    /// The websocket has left; the id stays reserved until then.
    Away {
        until: Instant,
    },
    /// The stream is over: the claim is removed when its lanes are empty.
    Vacant,
}

/// The progress of a stream's end. Once it has begun, the claim does not count
/// as one of its port's streams.
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

/// One stream id and its owner.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) stream: StreamId,
    pub(crate) fingerprint: KeyFingerprint,
    /// Whether its endpoints resend and resume (a `rendez_` profile).
    pub(crate) resends: bool,
    pub(crate) holder: Holder,
    to_executor: Lane,
    to_orchestrator: Lane,
    /// When a stalled stream is reset.
    pub(crate) stalled_until: Option<Instant>,
    pub(crate) ending: Ending,
    handshake: HandshakeState,
    /// The accounts of the orchestrator's websocket, for both lanes.
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
            handshake: HandshakeState::None,
            accounts,
        })
    }

    /// The orchestrator's port, while it is connected.
    pub(crate) fn port(&self) -> Option<PortKey> {
        match self.holder {
            Holder::Port(key) => Some(key),
            Holder::Away { .. } | Holder::Vacant => None,
        }
    }

    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The account of the orchestrator's token.
    pub(crate) fn token(&self) -> &Arc<Account> {
        &self.accounts.token
    }

    /// Whether the token and the websocket have memory left for a frame.
    pub(crate) fn can_pay(&self, frame: &Bytes) -> bool {
        cost(frame) <= self.accounts.own_free_memory()
    }

    /// Whether a frame of this kind may wait. A handshake was paid for while it
    /// waited for its turn. The end of a stream is owed to the other side, once,
    /// whatever memory is left.
    pub(crate) fn may_wait(&self, kind: Kind, frame: &Bytes) -> bool {
        let is_paid = match kind {
            Kind::Handshake => true,
            Kind::Reset => self.ending == Ending::No && frame.len() <= FRAME_COPY_BYTES,
            _ => false,
        };
        is_paid || self.can_pay(frame)
    }

    /// Charges everything to another websocket of the same orchestrator.
    ///
    /// # Errors
    /// The account that has no place for another stream; nothing has changed.
    pub(crate) fn charge_to(&mut self, accounts: Accounts) -> Result<(), Level> {
        // First, or a stream that only moves would need two places.
        self.accounts.close_stream();
        if let Err(level) = accounts.open_stream() {
            // The place is still free in the accounts of this hub, which is
            // locked. In accounts that hubs share, another stream may have taken
            // it: then there is one too many.
            self.accounts.restore_stream();
            return Err(level);
        }
        let lanes = [&self.to_executor, &self.to_orchestrator];
        let lanes: usize = lanes.map(|lane| lane.bytes() + lane.overtaking_bytes()).iter().sum();
        let waiting = lanes + self.handshake.cost();
        self.accounts.sub_memory(waiting);
        accounts.add_memory(waiting);
        self.accounts = accounts;
        Ok(())
    }

    /// Moves the stream to another port of its owner.
    pub(crate) fn move_to(&mut self, port: PortKey) {
        self.holder = Holder::Port(port);
        self.ending = Ending::No;
    }

    pub(crate) fn handshake(&self) -> &HandshakeState {
        &self.handshake
    }

    /// Changes the state of the handshake, and charges a message that waits.
    /// Returns the state before.
    pub(crate) fn set_handshake(&mut self, handshake: HandshakeState) -> HandshakeState {
        self.accounts.add_memory(handshake.cost());
        let before = std::mem::replace(&mut self.handshake, handshake);
        self.accounts.sub_memory(before.cost());
        before
    }

    pub(crate) fn push(&mut self, direction: Direction, frame: Bytes) {
        let cost = self.lane_mut(direction).push(frame);
        self.accounts.add_memory(cost);
    }

    pub(crate) fn pop(&mut self, direction: Direction) -> Option<Bytes> {
        let frame = self.lane_mut(direction).pop()?;
        self.accounts.sub_memory(cost(&frame));
        Some(frame)
    }

    /// Puts an ack or heartbeat ahead of a lane. It replaces an older one of its
    /// kind. Returns why a frame was dropped, if one was.
    pub(crate) fn overtake(
        &mut self,
        direction: Direction,
        kind: Kind,
        frame: &Bytes,
    ) -> Result<(), Dropped> {
        let free = self.accounts.own_free_memory();
        let waiting = self.lane_mut(direction).overtaking_mut(kind);
        let replaced = waiting.as_ref().map_or(0, cost);
        if cost(frame) > free.saturating_add(replaced) {
            return Err(Dropped::Quota);
        }
        // copied, or it would keep the buffer that it was read into
        let replaces = waiting.replace(Bytes::copy_from_slice(frame)).is_some();
        self.accounts.add_memory(cost(frame));
        self.accounts.sub_memory(replaced);
        if replaces { Err(Dropped::ExpressFull) } else { Ok(()) }
    }

    /// Removes the next ack or heartbeat.
    pub(crate) fn pop_overtaking(&mut self, direction: Direction) -> Option<Bytes> {
        let frame = self.lane_mut(direction).pop_overtaking()?;
        self.accounts.sub_memory(cost(&frame));
        Some(frame)
    }

    /// Empties a lane; returns how many frames are lost.
    pub(crate) fn clear(&mut self, direction: Direction) -> u64 {
        let (lost, bytes) = self.lane_mut(direction).clear();
        self.accounts.sub_memory(bytes);
        lost
    }

    pub(crate) fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::ToExecutor => &self.to_executor,
            Direction::ToOrchestrator => &self.to_orchestrator,
        }
    }

    pub(crate) fn lane_mut(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::ToExecutor => &mut self.to_executor,
            Direction::ToOrchestrator => &mut self.to_orchestrator,
        }
    }

    /// How many bytes make a lane of this claim full.
    pub(crate) fn full_threshold(&self) -> usize {
        self.accounts.full_threshold()
    }

    /// Whether a lane is full.
    pub(crate) fn is_full(&self, direction: Direction) -> bool {
        self.lane(direction).bytes() >= self.full_threshold()
    }

    /// Whether the source of a full lane may be read again. Not at the first
    /// byte of room, so that it is not stopped and started for every message.
    pub(crate) fn has_drained(&self, direction: Direction) -> bool {
        let lane = self.lane(direction);
        lane.full && lane.bytes() <= self.full_threshold() / 2
    }

    /// Notes that a reset passes.
    pub(crate) fn reset_passes(&mut self, direction: Direction, now: Instant) {
        match self.ending {
            Ending::No => self.ending = Ending::Passed { direction, until: now + RESET_LINGER },
            Ending::Passed { direction: first, .. } if first != direction => {
                self.ending = Ending::Over;
            }
            Ending::Passed { .. } | Ending::Over => {}
        }
    }

    /// The port that reads a lane has left: drops its frames. Returns how many.
    pub(crate) fn sink_left(&mut self, direction: Direction) -> u64 {
        self.clear(direction)
    }

    /// The port that fills a lane has left, and its count of full lanes with it.
    pub(crate) fn source_left(&mut self, direction: Direction) {
        self.lane_mut(direction).full = false;
        if direction == Direction::ToOrchestrator {
            self.stalled_until = None;
        }
    }

    /// Ends the grace of a stream whose orchestrator is away, and the wait for an
    /// answer to a reset.
    pub(crate) fn expire(&mut self, now: Instant) {
        if matches!(self.holder, Holder::Away { until } if until <= now) {
            self.holder = Holder::Vacant;
        }
        if matches!(self.ending, Ending::Passed { until, .. } if until <= now) {
            self.ending = Ending::Over;
        }
    }

    /// Whether nothing keeps the claim any more.
    pub(crate) fn is_over(&self) -> bool {
        (self.ending == Ending::Over || self.holder == Holder::Vacant)
            && [&self.to_executor, &self.to_orchestrator]
                .into_iter()
                .all(|lane| lane.is_empty() && !lane.has_overtaking())
    }

    /// When the sweeper must look at the claim.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let grace = match self.holder {
            Holder::Away { until } => Some(until),
            Holder::Port(_) | Holder::Vacant => None,
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
        self.set_handshake(HandshakeState::Over);
        self.accounts.close_stream();
    }
}

/// The claims of a hub, by index and by stream id.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    claims: Slab<Claim>,
    by_stream: HashMap<StreamId, usize>,
}

impl Claims {
    pub(crate) fn len(&self) -> usize {
        self.claims.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    pub(crate) fn find(&self, stream: &str) -> Option<usize> {
        self.by_stream.get(stream).copied()
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Claim> {
        self.claims.get_mut(index)
    }

    pub(crate) fn insert(&mut self, claim: Claim) -> usize {
        let stream = claim.stream.clone();
        let index = self.claims.insert(claim);
        self.by_stream.insert(stream, index);
        index
    }

    pub(crate) fn remove(&mut self, index: usize) {
        let claim = self.claims.remove(index);
        self.by_stream.remove(claim.stream.as_str());
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.claims.iter().map(|(_, claim)| claim)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Claim> {
        self.claims.iter_mut().map(|(_, claim)| claim)
    }

    /// The indices of the claims for which `wanted` is true.
    pub(crate) fn select(&self, wanted: impl Fn(&Claim) -> bool) -> Vec<usize> {
        self.claims.iter().filter(|(_, claim)| wanted(claim)).map(|(index, _)| index).collect()
    }
}

impl Index<usize> for Claims {
    type Output = Claim;
    fn index(&self, index: usize) -> &Claim {
        &self.claims[index]
    }
}

impl IndexMut<usize> for Claims {
    fn index_mut(&mut self, index: usize) -> &mut Claim {
        &mut self.claims[index]
    }
}
