//! The switchboard of one executor. See the crate's documentation.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::ids::{Generation, StreamId};
use rendez_proto::limits;
use rendez_proto::peek::{PeekError, peek};
use slab::Slab;

use crate::account::{Account, Accounts, Level, Quota};
use crate::claim::{Claim, Holder, KeyFingerprint, cost};
use crate::handshakes::Guard;
use crate::outbox::{ExpressFull, Outbox};
use crate::overflow::{Direction, full_at};
use crate::refusal::Refusal;
use crate::stats::{Dropped, Stats};

/// One websocket. A key of a port that is gone simply misses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortKey {
    index: usize,
    epoch: u64,
}

/// What an orchestrator's ticket says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Its streams resend what is lost and may resume on another websocket.
    pub resends: bool,
}

/// Why a websocket may not join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// A newer registration of the environment has joined before.
    #[error("registration generation {offered} is older than {current}")]
    Stale {
        /// The generation that wanted to join.
        offered: Generation,
        /// The newest that ever did.
        current: Generation,
    },
    /// [`limits::ORCHESTRATORS_PER_EXECUTOR`] are connected.
    #[error("too many orchestrators are connected to this executor")]
    TooManyOrchestrators,
    /// An account has no place for another websocket.
    #[error("the {0}'s quota of connections is used up")]
    Quota(Level),
}

/// A message that ends its sender's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an orchestrator sent a frame that cannot be routed: {0}")]
pub struct Violation(#[from] pub PeekError);

/// Whether a port is still wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is part of the hub.
    Joined,
    /// Another websocket of the same executor, or a newer registration, took
    /// its place; it should close.
    Superseded,
}

/// What all websockets of a hub draw on.
#[derive(Debug, Clone, Default)]
pub struct Shared {
    /// The relay's account.
    pub node: Arc<Account>,
    /// The environment's account.
    pub environment: Arc<Account>,
    /// What each websocket may use.
    pub connection: Quota,
}

/// All ports, claims and lanes around one executor.
#[derive(Debug, Default)]
pub struct Hub {
    shared: Shared,
    pub(crate) guard: Guard,
    /// Claims whose handshakes wait, in order. Bounded by the number of claims:
    /// one stands in it once.
    pub(crate) handshakes: VecDeque<usize>,
    ports: Slab<Port>,
    /// Of ports, so that a stale [`PortKey`] misses.
    next_epoch: u64,
    pub(crate) executor: Option<PortKey>,
    orchestrators: usize,
    generation: Generation,
    pub(crate) claims: Slab<Claim>,
    pub(crate) by_stream: HashMap<StreamId, usize>,
    /// Bounded by the number of ports: a port stands in it once.
    wake: VecDeque<PortKey>,
    /// Of the last message.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) stats: Stats,
}

#[derive(Debug)]
pub(crate) struct Port {
    epoch: u64,
    side: Side,
    pub(crate) outbox: Outbox,
    /// Lanes fed by this port that are full; it is not read meanwhile.
    pub(crate) full_lanes: usize,
    /// Claims that this port holds.
    pub(crate) streams: usize,
    wake_pending: bool,
    accounts: Accounts,
    /// Whether it counts as a websocket of its accounts.
    has_place: bool,
    /// Not read until then, because of a rate.
    paused_until: Option<Instant>,
}

impl Port {
    pub(crate) fn accounts(&self) -> &Accounts {
        &self.accounts
    }
}

impl Port {
    fn push_express(&mut self, frame: &Bytes) -> Result<(), ExpressFull> {
        let cost = self.outbox.push_express(frame)?;
        self.accounts.add_memory(cost);
        Ok(())
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.accounts.sub_memory(self.outbox.express_bytes());
        if self.has_place {
            self.accounts.disconnect();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Executor,
    Orchestrator { fingerprint: KeyFingerprint, can: Capabilities },
}

impl Hub {
    /// A hub whose websockets draw on these accounts. That of
    /// [`Default`] has no quotas.
    pub fn new(shared: Shared) -> Self {
        Self { shared, ..Self::default() }
    }

    /// Adds the executor's websocket. An older one, of an older registration
    /// or of the same one, is superseded.
    ///
    /// # Errors
    /// [`JoinError::Stale`], [`JoinError::Quota`]
    pub fn join_executor(
        &mut self,
        generation: Generation,
        token: Arc<Account>,
        now: Instant,
    ) -> Result<PortKey, JoinError> {
        if generation < self.generation {
            return Err(JoinError::Stale { offered: generation, current: self.generation });
        }
        // The place of the old one is free for the new one, who may be refused
        // all the same: then the old one stays.
        let old = self.executor;
        self.set_place(old, false);
        let joined = self.insert(Side::Executor, Direction::ToExecutor, token);
        self.set_place(old, true);
        let key = joined?;
        if let Some(old) = old {
            self.leave(old, now);
        }
        self.generation = generation;
        self.executor = Some(key);
        Ok(key)
    }

    /// Gives the place of a port up for a moment, or takes it back. Accounts are
    /// shared with other hubs: if one of theirs took it meanwhile, there is one
    /// too many.
    fn set_place(&mut self, key: Option<PortKey>, has_place: bool) {
        if let Some(port) = key.and_then(|key| self.port_mut(key)) {
            port.has_place = has_place;
            match has_place {
                true => port.accounts.restore_connection(),
                false => port.accounts.disconnect(),
            }
        }
    }

    /// Adds an orchestrator's websocket.
    ///
    /// # Errors
    /// [`JoinError::TooManyOrchestrators`], [`JoinError::Quota`]
    pub fn join_orchestrator(
        &mut self,
        fingerprint: KeyFingerprint,
        can: Capabilities,
        token: Arc<Account>,
    ) -> Result<PortKey, JoinError> {
        if self.orchestrators >= limits::ORCHESTRATORS_PER_EXECUTOR {
            return Err(JoinError::TooManyOrchestrators);
        }
        let side = Side::Orchestrator { fingerprint, can };
        let key = self.insert(side, Direction::ToOrchestrator, token)?;
        self.orchestrators += 1;
        Ok(key)
    }

    /// Removes a websocket and tells the far ends of its streams.
    pub fn leave(&mut self, key: PortKey, now: Instant) {
        if self.port(key).is_none() {
            return;
        }
        let port = self.ports.remove(key.index);
        if !port.wake_pending {
            // Whoever drives the port's socket learns from `standing`.
            self.wake.push_back(key);
        }
        match port.side {
            Side::Executor => self.executor_left(),
            Side::Orchestrator { .. } => {
                self.orchestrators -= 1;
                self.orchestrator_left(key, now);
            }
        }
    }

    /// Takes one message of a port.
    ///
    /// # Errors
    /// [`Violation`] ends an orchestrator's connection. An executor's frame
    /// that cannot be routed is only dropped: its connection carries the
    /// streams of others.
    pub fn handle_message(
        &mut self,
        from: PortKey,
        message: Bytes,
        now: Instant,
    ) -> Result<(), Violation> {
        self.refusal = None;
        let Some(port) = port_mut(&mut self.ports, from) else { return Ok(()) };
        let side = port.side;
        let wait = port.accounts.read(now, message.len());
        if !wait.is_zero() {
            self.stats.held_back += u64::from(port.paused_until.is_none());
            port.paused_until = Some(now + wait);
        }
        match (peek(&message), side) {
            (Ok(frame), Side::Executor) => self.route_from_executor(frame, message.clone(), now),
            (Ok(frame), Side::Orchestrator { fingerprint, can }) => {
                self.route_from_orchestrator(from, fingerprint, can, frame, message.clone(), now);
            }
            (Err(error), side) => {
                self.stats.count_dropped(Dropped::Malformed, 1);
                if side != Side::Executor {
                    return Err(Violation(error));
                }
            }
        }
        Ok(())
    }

    /// The limit that the last message ran into, if it did, once.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// Whether the port's socket should be read.
    pub fn wants_read(&self, key: PortKey) -> bool {
        self.port(key).is_none_or(|port| port.full_lanes == 0 && port.paused_until.is_none())
    }

    /// When to call [`handle_port_timeout`](Self::handle_port_timeout).
    pub fn poll_port_timeout(&self, key: PortKey) -> Option<Instant> {
        self.port(key)?.paused_until
    }

    /// Reads a websocket again that was held back by a rate.
    pub fn handle_port_timeout(&mut self, key: PortKey, now: Instant) {
        if let Some(port) = port_mut(&mut self.ports, key)
            && port.paused_until.is_some_and(|until| until <= now)
        {
            port.paused_until = None;
        }
    }

    /// Whether the port is still part of the hub.
    pub fn standing(&self, key: PortKey) -> Standing {
        if self.port(key).is_some() { Standing::Joined } else { Standing::Superseded }
    }

    /// The next message for the port's socket.
    pub fn poll_transmit(&mut self, key: PortKey) -> Option<Bytes> {
        let port = port_mut(&mut self.ports, key)?;
        let direction = match port.side {
            Side::Executor => Direction::ToExecutor,
            Side::Orchestrator { .. } => Direction::ToOrchestrator,
        };
        let (frame, index) = port.outbox.pop(&mut self.claims)?;
        if index.is_none() {
            port.accounts.sub_memory(cost(&frame));
        }
        if let Some(index) = index {
            let claim = &mut self.claims[index];
            let lane = claim.lane(direction);
            // Not at the first byte, so that a source is not stopped and
            // started for every message.
            if lane.full && lane.bytes() < self.full_at(index) / 2 {
                self.release(index, direction);
            }
            self.remove_if_over(index);
        }
        Some(frame)
    }

    /// A port whose driver should look again: it has something to send, may
    /// read again, or is superseded.
    pub fn poll_wake(&mut self) -> Option<PortKey> {
        let key = self.wake.pop_front()?;
        if let Some(port) = port_mut(&mut self.ports, key) {
            port.wake_pending = false;
        }
        Some(key)
    }

    /// Resets stalled streams, and forgets those whose grace or end is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        // A sweep over at most CLAIMS_PER_EXECUTOR claims, off the frame path.
        let is_due = |claim: &Claim| claim.deadline().is_some_and(|deadline| deadline <= now);
        for index in self.claims_where(is_due) {
            self.sweep(index, now);
        }
        self.offer_waiting(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.claims.iter().filter_map(|(_, claim)| claim.deadline()).min()
    }

    /// Counters since the hub was made.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether an executor is connected.
    pub fn has_executor(&self) -> bool {
        self.executor.is_some()
    }

    /// Connected orchestrators.
    pub fn orchestrators(&self) -> usize {
        self.orchestrators
    }

    /// Stream ids that are known, those in their grace included.
    pub fn streams(&self) -> usize {
        self.claims.len()
    }

    /// Whether nothing is left that would be lost with the hub.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.claims.is_empty()
    }
}

impl Hub {
    fn insert(
        &mut self,
        side: Side,
        direction: Direction,
        token: Arc<Account>,
    ) -> Result<PortKey, JoinError> {
        let accounts = Accounts {
            node: self.shared.node.clone(),
            environment: self.shared.environment.clone(),
            token,
            connection: Account::new(self.shared.connection),
        };
        accounts.connect().map_err(JoinError::Quota)?;
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        let port = Port {
            epoch,
            side,
            outbox: Outbox::new(direction),
            full_lanes: 0,
            streams: 0,
            wake_pending: false,
            accounts,
            has_place: true,
            paused_until: None,
        };
        Ok(PortKey { index: self.ports.insert(port), epoch })
    }

    /// How many bytes make a lane of this claim full.
    pub(crate) fn full_at(&self, index: usize) -> usize {
        full_at(self.claims[index].accounts().free_memory())
    }

    fn port(&self, key: PortKey) -> Option<&Port> {
        self.ports.get(key.index).filter(|port| port.epoch == key.epoch)
    }

    pub(crate) fn port_mut(&mut self, key: PortKey) -> Option<&mut Port> {
        port_mut(&mut self.ports, key)
    }

    pub(crate) fn wake(&mut self, key: PortKey) {
        if let Some(port) = port_mut(&mut self.ports, key)
            && !port.wake_pending
        {
            port.wake_pending = true;
            self.wake.push_back(key);
        }
    }

    /// Appends a frame to a claim's lane; `false` if that end is not connected.
    pub(crate) fn push(&mut self, index: usize, direction: Direction, frame: Bytes) -> bool {
        let Some(key) = self.sink(index, direction) else { return false };
        let Some(port) = port_mut(&mut self.ports, key) else { return false };
        self.stats.forwarded_frames[direction as usize] += 1;
        self.stats.forwarded_bytes[direction as usize] += frame.len() as u64;
        port.outbox.push(index, &mut self.claims[index], frame);
        self.wake(key);
        true
    }

    /// Puts a frame before a port's lanes.
    pub(crate) fn push_express(&mut self, key: PortKey, frame: &Bytes) -> Result<(), ExpressFull> {
        self.port_mut(key).ok_or(ExpressFull)?.push_express(frame)?;
        self.wake(key);
        Ok(())
    }

    /// The port that a claim's lane empties into.
    pub(crate) fn sink(&self, index: usize, direction: Direction) -> Option<PortKey> {
        match direction {
            Direction::ToExecutor => self.executor,
            Direction::ToOrchestrator => self.holder(index),
        }
    }

    /// The port that a claim's lane is filled from.
    pub(crate) fn source(&self, index: usize, direction: Direction) -> Option<PortKey> {
        match direction {
            Direction::ToExecutor => self.holder(index),
            Direction::ToOrchestrator => self.executor,
        }
    }

    fn holder(&self, index: usize) -> Option<PortKey> {
        match self.claims[index].holder {
            Holder::Port(key) => Some(key),
            Holder::Away { .. } | Holder::Nobody => None,
        }
    }
}

fn port_mut(ports: &mut Slab<Port>, key: PortKey) -> Option<&mut Port> {
    ports.get_mut(key.index).filter(|port| port.epoch == key.epoch)
}

#[cfg(test)]
pub(crate) use tests::t0 as test_origin;

#[cfg(test)]
mod quota_tests;
#[cfg(test)]
mod tests;
