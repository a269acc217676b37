//! The hub: it routes frames between one executor and its orchestrators.

mod ends;
mod handshakes;
pub(crate) mod routing;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::ids::Generation;
use rendez_proto::limits;
use rendez_proto::peek::{PeekError, peek};

use crate::account::{Account, Accounts, Level, MemoryCharge, Quota};
use crate::claim::{Claim, Claims};
use crate::handshake_guard::HandshakeGuard;
use crate::ids::{KeyFingerprint, PortKey};
use crate::lane::cost;
use crate::overflow::Direction;
use crate::port::{Capabilities, Port, Ports, Side};
use crate::refusal::Refusal;
use crate::stats::{Dropped, Stats};

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
    /// An account's quota of connections is used up.
    #[error("the {0}'s quota of connections is used up")]
    Quota(Level),
}

/// A message that ends its sender's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the orchestrator sent an invalid frame: {0}")]
pub struct Violation(#[from] pub PeekError);

/// The accounts that all websockets of a hub are charged to.
#[derive(Debug, Clone, Default)]
pub struct HubAccounts {
    /// The relay's account.
    pub node: Arc<Account>,
    /// The environment's account.
    pub environment: Arc<Account>,
    /// The quota of each websocket's own account.
    pub connection: Quota,
}

/// All ports, claims and lanes around one executor.
#[derive(Debug, Default)]
pub struct Hub {
    accounts: HubAccounts,
    guard: HandshakeGuard,
    ports: Ports,
    generation: Generation,
    claims: Claims,
    stats: Stats,
}

impl Hub {
    /// A hub whose websockets are charged to these accounts. The hub of
    /// [`Default`] has no quotas.
    pub fn new(accounts: HubAccounts) -> Self {
        Self { accounts, ..Self::default() }
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
        // The new websocket may use the place of the old one. If the new one is
        // refused all the same, the old one stays.
        let old = self.ports.executor();
        self.set_place(old, false);
        let joined = self.insert(Side::Executor, token);
        self.set_place(old, true);
        let key = joined?;
        if let Some(old) = old {
            self.leave(old, now);
        }
        if generation > self.generation {
            self.guard.registration_changed(now);
        }
        self.generation = generation;
        self.ports.set_executor(key);
        Ok(key)
    }

    fn set_place(&mut self, key: Option<PortKey>, has_place: bool) {
        if let Some(port) = key.and_then(|key| self.ports.get_mut(key)) {
            port.set_place(has_place);
        }
    }

    /// Adds an orchestrator's websocket.
    ///
    /// # Errors
    /// [`JoinError::TooManyOrchestrators`], [`JoinError::Quota`]
    pub fn join_orchestrator(
        &mut self,
        fingerprint: KeyFingerprint,
        capabilities: Capabilities,
        token: Arc<Account>,
    ) -> Result<PortKey, JoinError> {
        if self.ports.orchestrators() >= limits::ORCHESTRATORS_PER_EXECUTOR {
            return Err(JoinError::TooManyOrchestrators);
        }
        self.insert(Side::Orchestrator { fingerprint, capabilities }, token)
    }

    /// Removes a websocket and resets its streams at their far ends.
    pub fn leave(&mut self, key: PortKey, now: Instant) {
        // dropped at the end: its frames are charged until then
        let Some(port) = self.ports.remove(key) else { return };
        match port.side {
            Side::Executor => self.executor_left(),
            Side::Orchestrator { .. } => self.orchestrator_left(key, now),
        }
    }

    /// Takes one message of a port. Returns the limit that it ran into, if it
    /// did.
    ///
    /// # Errors
    /// [`Violation`] ends an orchestrator's connection. An executor's frame
    /// that cannot be routed is only dropped: its connection carries the
    /// streams of other orchestrators.
    pub fn handle_message(
        &mut self,
        from: PortKey,
        message: Bytes,
        now: Instant,
    ) -> Result<Option<Refusal>, Violation> {
        let Some(port) = self.ports.get_mut(from) else { return Ok(None) };
        let side = port.side;
        let wait = port.accounts.read(now, message.len());
        if !wait.is_zero() {
            self.stats.throttled += u64::from(port.paused_until.is_none());
            port.paused_until = Some(now + wait);
        }
        match (peek(&message), side) {
            (Ok(frame), Side::Executor) => {
                Ok(self.route_from_executor(frame, message.clone(), now))
            }
            (Ok(frame), Side::Orchestrator { fingerprint, capabilities }) => {
                let message = message.clone();
                Ok(self.route_from_orchestrator(
                    from,
                    fingerprint,
                    capabilities,
                    frame,
                    message,
                    now,
                ))
            }
            (Err(error), side) => {
                self.stats.count_dropped(Dropped::Malformed, 1);
                if side == Side::Executor { Ok(None) } else { Err(Violation(error)) }
            }
        }
    }

    /// A charge to the accounts of a port, for the bytes that its socket buffers.
    pub fn memory_charge(&self, key: PortKey) -> MemoryCharge {
        let accounts = self.ports.get(key).map(|port| port.accounts.clone());
        MemoryCharge::new(accounts.unwrap_or_default())
    }

    /// Whether the port's socket should be read.
    pub fn wants_read(&self, key: PortKey) -> bool {
        self.ports.get(key).is_none_or(Port::wants_read)
    }

    /// When to call [`handle_port_timeout`](Self::handle_port_timeout).
    pub fn poll_port_timeout(&self, key: PortKey) -> Option<Instant> {
        self.ports.get(key)?.paused_until
    }

    /// Resumes reading a websocket that a rate has paused.
    pub fn handle_port_timeout(&mut self, key: PortKey, now: Instant) {
        if let Some(port) = self.ports.get_mut(key)
            && port.paused_until.is_some_and(|until| until <= now)
        {
            port.paused_until = None;
        }
    }

    /// Whether the port is part of the hub. A port that is not was superseded by
    /// another websocket of the same executor or by a newer registration, and
    /// should close.
    pub fn is_joined(&self, key: PortKey) -> bool {
        self.ports.get(key).is_some()
    }

    /// The next message for the port's socket.
    pub fn poll_transmit(&mut self, key: PortKey) -> Option<Bytes> {
        let port = self.ports.get_mut(key)?;
        let direction = port.side.direction();
        let (frame, index) = port.outbox.pop(&mut self.claims)?;
        match index {
            None => port.accounts.sub_memory(cost(&frame)),
            Some(index) => {
                let claim = &mut self.claims[index];
                if claim.has_drained(direction) {
                    self.ports.resume_reading(claim, direction);
                }
                self.remove_if_over(index);
            }
        }
        Some(frame)
    }

    /// The next port whose driver must be woken: it has something to send, may
    /// read again, or is superseded.
    pub fn poll_wake(&mut self) -> Option<PortKey> {
        self.ports.poll_wake()
    }

    /// Resets stalled streams, and removes those whose grace or end is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        // A sweep over at most CLAIMS_PER_EXECUTOR claims, off the frame path.
        let is_due = |claim: &Claim| claim.deadline().is_some_and(|deadline| deadline <= now);
        for index in self.claims.select(is_due) {
            self.sweep(index, now);
        }
        self.offer_waiting(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.claims.iter().filter_map(Claim::deadline).min()
    }

    /// Counters since the hub was made.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether an executor is connected.
    pub fn has_executor(&self) -> bool {
        self.ports.executor().is_some()
    }

    /// Connected orchestrators.
    pub fn orchestrators(&self) -> usize {
        self.ports.orchestrators()
    }

    /// Stream ids that are known, those in their grace included.
    pub fn streams(&self) -> usize {
        self.claims.len()
    }

    /// Whether the hub has no port and no claim: it may be dropped.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.claims.is_empty()
    }
}

impl Hub {
    fn insert(&mut self, side: Side, token: Arc<Account>) -> Result<PortKey, JoinError> {
        let accounts = Accounts {
            node: self.accounts.node.clone(),
            environment: self.accounts.environment.clone(),
            token,
            connection: Account::new(self.accounts.connection),
        };
        accounts.connect().map_err(JoinError::Quota)?;
        Ok(self.ports.insert(side, accounts))
    }

    /// Appends a frame to a claim's lane; `false` if that end is not connected.
    fn push(&mut self, index: usize, direction: Direction, frame: Bytes) -> bool {
        let bytes = frame.len() as u64;
        let pushed = self.ports.push(index, &mut self.claims[index], direction, frame);
        if pushed {
            self.stats.forwarded_frames[direction as usize] += 1;
            self.stats.forwarded_bytes[direction as usize] += bytes;
        }
        pushed
    }
}

#[cfg(test)]
mod quota_tests;
#[cfg(test)]
mod tests;
