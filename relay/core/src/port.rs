//! Ports: the websockets of a hub, and the lanes that they fill and empty.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::peek::Kind;
use slab::Slab;

use crate::account::Accounts;
use crate::claim::{Claim, Ending};
use crate::ids::{KeyFingerprint, PortKey};
use crate::lane::cost;
use crate::outbox::{Outbox, RESETS_MAX_FRAMES};
use crate::overflow::Direction;
use crate::stats::Dropped;

/// The abilities of an endpoint, from its ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Its streams resend what is lost and may resume on another websocket.
    pub resends: bool,
}

/// The kind of endpoint at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Executor,
    Orchestrator { fingerprint: KeyFingerprint, capabilities: Capabilities },
}

impl Side {
    /// The direction of the lanes that empty into such a port.
    pub(crate) fn direction(self) -> Direction {
        match self {
            Side::Executor => Direction::ToExecutor,
            Side::Orchestrator { .. } => Direction::ToOrchestrator,
        }
    }
}

/// One websocket.
#[derive(Debug)]
pub(crate) struct Port {
    epoch: u64,
    pub(crate) side: Side,
    pub(crate) outbox: Outbox,
    /// Full lanes that this port fills; it is not read while there are any.
    full_lanes: usize,
    /// Claims that this port holds.
    pub(crate) streams: usize,
    wake_pending: bool,
    pub(crate) accounts: Accounts,
    /// Whether it counts as a websocket of its accounts.
    has_place: bool,
    /// Not read until then, because of a rate.
    pub(crate) paused_until: Option<Instant>,
}

impl Port {
    /// Whether the port's socket should be read.
    pub(crate) fn wants_read(&self) -> bool {
        self.full_lanes == 0 && self.paused_until.is_none()
    }

    /// Gives the port's place up for a moment, or takes it back. Accounts are
    /// shared with other hubs: if a port of theirs took it meanwhile, there is
    /// one too many.
    pub(crate) fn set_place(&mut self, has_place: bool) {
        self.has_place = has_place;
        match has_place {
            true => self.accounts.restore_connection(),
            false => self.accounts.disconnect(),
        }
    }

    /// Queues a reset; `false` if too many wait, or if one waits and the token or
    /// the websocket has no memory left.
    fn push_reset(&mut self, frame: Bytes) -> bool {
        let cost = cost(&frame);
        let waiting = self.outbox.resets();
        let fits = waiting < RESETS_MAX_FRAMES
            && (waiting == 0 || cost <= self.accounts.own_free_memory());
        if fits {
            self.accounts.add_memory(cost);
            self.outbox.push_reset(frame);
        }
        fits
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.accounts.sub_memory(self.outbox.reset_bytes());
        if self.has_place {
            self.accounts.disconnect();
        }
    }
}

/// The ports of a hub.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    ports: Slab<Port>,
    /// Of ports, so that a stale [`PortKey`] matches nothing.
    next_epoch: u64,
    executor: Option<PortKey>,
    orchestrators: usize,
    /// Ports whose drivers should look again. Bounded by the number of ports:
    /// each is in it once.
    wake: VecDeque<PortKey>,
}

impl Ports {
    pub(crate) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    pub(crate) fn executor(&self) -> Option<PortKey> {
        self.executor
    }

    pub(crate) fn set_executor(&mut self, key: PortKey) {
        self.executor = Some(key);
    }

    /// Connected orchestrators.
    pub(crate) fn orchestrators(&self) -> usize {
        self.orchestrators
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().map(|(_, port)| port)
    }

    pub(crate) fn get(&self, key: PortKey) -> Option<&Port> {
        self.ports.get(key.index).filter(|port| port.epoch == key.epoch)
    }

    pub(crate) fn get_mut(&mut self, key: PortKey) -> Option<&mut Port> {
        self.ports.get_mut(key.index).filter(|port| port.epoch == key.epoch)
    }

    /// Adds a port; its accounts have counted it.
    pub(crate) fn insert(&mut self, side: Side, accounts: Accounts) -> PortKey {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        if side != Side::Executor {
            self.orchestrators += 1;
        }
        let port = Port {
            epoch,
            side,
            outbox: Outbox::new(side.direction()),
            full_lanes: 0,
            streams: 0,
            wake_pending: false,
            accounts,
            has_place: true,
            paused_until: None,
        };
        PortKey { index: self.ports.insert(port), epoch }
    }

    /// Removes a port, and wakes its driver.
    pub(crate) fn remove(&mut self, key: PortKey) -> Option<Port> {
        self.get(key)?;
        let port = self.ports.remove(key.index);
        if !port.wake_pending {
            self.wake.push_back(key);
        }
        match port.side {
            Side::Executor => self.executor = None,
            Side::Orchestrator { .. } => self.orchestrators -= 1,
        }
        Some(port)
    }

    pub(crate) fn wake(&mut self, key: PortKey) {
        if let Some(port) = self.get_mut(key)
            && !port.wake_pending
        {
            port.wake_pending = true;
            self.wake.push_back(key);
        }
    }

    pub(crate) fn poll_wake(&mut self) -> Option<PortKey> {
        let key = self.wake.pop_front()?;
        if let Some(port) = self.get_mut(key) {
            port.wake_pending = false;
        }
        Some(key)
    }

    /// The port that a claim's lane empties into.
    pub(crate) fn sink(&self, claim: &Claim, direction: Direction) -> Option<PortKey> {
        match direction {
            Direction::ToExecutor => self.executor,
            Direction::ToOrchestrator => claim.port(),
        }
    }

    /// The port that a claim's lane is filled from.
    fn source(&self, claim: &Claim, direction: Direction) -> Option<PortKey> {
        match direction {
            Direction::ToExecutor => claim.port(),
            Direction::ToOrchestrator => self.executor,
        }
    }

    /// Appends a frame to a claim's lane; `false` if that end is not connected.
    pub(crate) fn push(
        &mut self,
        index: usize,
        claim: &mut Claim,
        direction: Direction,
        frame: Bytes,
    ) -> bool {
        let Some(key) = self.sink(claim, direction) else { return false };
        let Some(port) = self.get_mut(key) else { return false };
        port.outbox.push(index, claim, frame);
        self.wake(key);
        true
    }

    /// Puts an ack or heartbeat ahead of a claim's lane. Returns why a frame was
    /// dropped, if one was.
    pub(crate) fn overtake(
        &mut self,
        index: usize,
        claim: &mut Claim,
        direction: Direction,
        kind: Kind,
        frame: &Bytes,
    ) -> Result<(), Dropped> {
        let key = self.sink(claim, direction).ok_or(Dropped::PeerAway)?;
        let port = self.get_mut(key).ok_or(Dropped::PeerAway)?;
        let result = claim.overtake(direction, kind, frame);
        port.outbox.push_overtaking(index, claim);
        self.wake(key);
        result
    }

    /// Queues a reset of a stream that has no lane at this port; `false` if it
    /// was dropped.
    pub(crate) fn push_reset(&mut self, key: PortKey, frame: Bytes) -> bool {
        let pushed = self.get_mut(key).is_some_and(|port| port.push_reset(frame));
        if pushed {
            self.wake(key);
        }
        pushed
    }

    /// Stops reading the source of a full lane.
    pub(crate) fn stop_reading(&mut self, claim: &mut Claim, direction: Direction) {
        let source = self.source(claim, direction);
        let lane = claim.lane_mut(direction);
        if !lane.full
            && let Some(source) = source
        {
            lane.full = true;
            if let Some(port) = self.get_mut(source) {
                port.full_lanes += 1;
            }
        }
    }

    /// Reads the source of a lane again.
    pub(crate) fn resume_reading(&mut self, claim: &mut Claim, direction: Direction) {
        let source = self.source(claim, direction);
        if direction == Direction::ToOrchestrator {
            claim.stalled_until = None;
        }
        if std::mem::take(&mut claim.lane_mut(direction).full)
            && let Some(source) = source
        {
            if let Some(port) = self.get_mut(source) {
                port.full_lanes -= 1;
            }
            self.wake(source);
        }
    }

    /// Empties a lane; returns how many frames are lost.
    pub(crate) fn clear(&mut self, index: usize, claim: &mut Claim, direction: Direction) -> u64 {
        self.resume_reading(claim, direction);
        if let Some(sink) = self.sink(claim, direction)
            && let Some(port) = self.get_mut(sink)
        {
            port.outbox.forget(index);
        }
        claim.clear(direction)
    }

    /// Takes a claim off its port's count of streams.
    pub(crate) fn uncount(&mut self, claim: &Claim) {
        if claim.ending == Ending::No
            && let Some(port) = claim.port()
            && let Some(port) = self.get_mut(port)
        {
            port.streams -= 1;
        }
    }
}
