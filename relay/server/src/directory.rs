//! Which hub serves which environment, on this node.
//!
//! Touched when a websocket opens or closes and by the sweeper, never per
//! frame. A hub exists while it has a port or remembers a stream; joining
//! happens under the directory's lock, so the sweeper never removes a hub that
//! somebody is about to join.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::limits;
use rendez_proto::registry::environments::LiveExecutor;
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry};
use rendez_registry::{Live, Node, NotWaiting, Presence};
use rendez_relay_core::{Capabilities, JoinError, KeyFingerprint, SWEEP_INTERVAL, Stats};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::edge::port::{HubPort, SharedHub};
use crate::ledger::Ledger;
use crate::roster::Roster;
use crate::waiters::Waiters;

/// All hubs of a node.
#[derive(Default)]
pub struct Directory {
    entries: Mutex<HashMap<EnvironmentId, Entry>>,
    /// Counters of hubs that are gone.
    past: Mutex<Stats>,
    ledger: Ledger,
    roster: Arc<Roster>,
    waiters: Arc<Waiters>,
    draining: AtomicBool,
}

struct Entry {
    hub: Arc<SharedHub>,
    /// Of the executor that joined last.
    registration: Option<RegistrationId>,
}

impl Directory {
    /// An empty directory whose hubs draw on `ledger`.
    pub fn new(ledger: Ledger) -> Self {
        Self { ledger, ..Self::default() }
    }

    /// Joins an executor's websocket; an older one is superseded.
    ///
    /// # Errors
    /// [`JoinError::Stale`], [`JoinError::Quota`]
    pub fn join_executor(
        &self,
        environment: &EnvironmentId,
        registration: &RegistrationId,
        generation: Generation,
        token: &str,
        now: Instant,
    ) -> Result<HubPort, JoinError> {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, environment);
        let port = entry.hub.join_executor(generation, self.ledger.token(token), now)?;
        entry.registration = Some(registration.clone());
        drop(entries);
        self.waiters.wake(environment);
        Ok(port)
    }

    /// Who is connected.
    pub fn roster(&self) -> &Arc<Roster> {
        &self.roster
    }

    /// Joins an orchestrator's websocket.
    ///
    /// # Errors
    /// [`JoinError::TooManyOrchestrators`], [`JoinError::Quota`]
    pub fn join_orchestrator(
        &self,
        environment: &EnvironmentId,
        fingerprint: KeyFingerprint,
        can: Capabilities,
        token: &str,
    ) -> Result<HubPort, JoinError> {
        let token = self.ledger.token(token);
        let mut entries = self.lock();
        self.entry(&mut entries, environment).hub.join_orchestrator(fingerprint, can, token)
    }

    /// Runs the timers of all hubs until cancelled.
    pub async fn sweep(self: Arc<Self>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            let now = Instant::now();
            self.ledger.sweep(now);
            self.lock().retain(|_, entry| {
                let stays = entry.hub.sweep(now);
                if !stays {
                    entry.hub.read(|hub| self.past().add(hub.stats()));
                }
                stays
            });
        }
    }

    /// All hubs, in no order.
    pub(crate) fn hubs(&self) -> Vec<Arc<SharedHub>> {
        self.lock().values().map(|entry| entry.hub.clone()).collect()
    }

    /// The relay is about to go: what is connected is said to be draining.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The relay is going: nobody waits for an executor any more.
    pub(crate) fn close(&self) {
        self.drain();
        self.waiters.close();
    }

    /// How many calls wait for an executor that is away.
    pub fn waiting(&self) -> usize {
        self.waiters.waiting()
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn executor_of(&self, environment: &EnvironmentId) -> Option<RegistrationId> {
        let entries = self.lock();
        let entry = entries.get(environment)?;
        entry.hub.read(|hub| hub.has_executor()).then(|| entry.registration.clone())?
    }

    /// Hubs, executors and orchestrators on this node.
    pub fn census(&self) -> Census {
        let entries = self.lock();
        let mut census = Census { hubs: entries.len(), ..Census::default() };
        for entry in entries.values() {
            entry.hub.read(|hub| {
                census.executors += usize::from(hub.has_executor());
                census.orchestrators += hub.orchestrators();
                census.streams += hub.streams();
            });
        }
        census
    }

    /// What all hubs of this node have counted since it started.
    pub fn stats(&self) -> Stats {
        let entries = self.lock();
        let mut total = self.past().clone();
        for entry in entries.values() {
            entry.hub.read(|hub| total.add(hub.stats()));
        }
        total
    }

    /// What everybody may use, and uses.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn entry<'a>(
        &self,
        entries: &'a mut HashMap<EnvironmentId, Entry>,
        environment: &EnvironmentId,
    ) -> &'a mut Entry {
        entries.entry(environment.clone()).or_insert_with(|| {
            let hub = SharedHub::new(self.ledger.shared(environment.as_str()));
            Entry { hub: Arc::new(hub), registration: None }
        })
    }

    fn past(&self) -> MutexGuard<'_, Stats> {
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EnvironmentId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Hubs, with those that only remember streams.
    pub hubs: usize,
    /// Connected executors.
    pub executors: usize,
    /// Connected orchestrators.
    pub orchestrators: usize,
    /// Known streams.
    pub streams: usize,
}

#[async_trait]
impl Presence for Directory {
    async fn connected(&self, environment: &EnvironmentId) -> Option<RegistrationId> {
        self.executor_of(environment)
    }

    async fn joined(
        &self,
        environment: &EnvironmentId,
        other_than: Option<&RegistrationId>,
    ) -> Result<RegistrationId, NotWaiting> {
        let waiter = self.waiters.wait(environment)?;
        // One round per join.
        loop {
            let mut joined = pin!(waiter.joined().notified());
            joined.as_mut().enable();
            match self.executor_of(environment) {
                Some(found) if Some(&found) != other_than => return Ok(found),
                _ if self.waiters.is_closed() => return Err(NotWaiting),
                _ => joined.await,
            }
        }
    }

    async fn live(&self, environment: &EnvironmentId) -> Live {
        let (orchestrators, streams) = match self.lock().get(environment) {
            Some(entry) => entry.hub.read(|hub| (hub.orchestrators(), hub.streams())),
            None => return Live::default(),
        };
        // One that was superseded is in the roster until it has closed.
        let current = self.executor_of(environment);
        let executor = self.roster.executor(environment);
        let executor = executor.filter(|found| Some(&found.registration) == current.as_ref());
        let executor = executor.map(|executor| {
            let traffic = executor.port.traffic();
            LiveExecutor {
                executor_registration_id: executor.registration.clone(),
                connected_at_unix_secs: executor.connected_at,
                verified: traffic.verified(),
                received_bytes: traffic.received_bytes(),
                sent_bytes: traffic.sent_bytes(),
            }
        });
        Live { executor, orchestrators, streams, draining: self.is_draining() }
    }

    async fn node(&self) -> Node {
        let census = self.census();
        Node {
            executors: census.executors,
            orchestrators: census.orchestrators,
            streams: census.streams,
            draining: self.is_draining(),
        }
    }

    async fn connections(
        &self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
        limit: usize,
    ) -> Vec<ConnectionEntry> {
        let page = self.roster.page(environment, after, limit);
        page.iter().map(|connection| connection.entry()).collect()
    }

    async fn probe(&self, environment: &EnvironmentId) -> bool {
        match self.roster.executor(environment) {
            Some(executor) => timeout(limits::PROBE_TIMEOUT, executor.port.ping()).await.is_ok(),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> RegistrationId {
        text.parse().unwrap()
    }

    fn env() -> EnvironmentId {
        "dev".parse().unwrap()
    }

    fn join(directory: &Directory, registration: &str, generation: u64) -> HubPort {
        let generation = Generation(generation);
        let joined =
            directory.join_executor(&env(), &id(registration), generation, "token", Instant::now());
        joined.map_err(|error| error.to_string()).unwrap()
    }

    #[tokio::test]
    async fn a_join_wakes_who_waits_for_it_and_only_for_another_registration() {
        let directory = Arc::<Directory>::default();
        let (old, port) = (id("reg_a"), join(&directory, "reg_a", 1));
        assert_eq!(directory.joined(&env(), None).await, Ok(old.clone()), "it is there already");

        let waiting = tokio::spawn({
            let (directory, old) = (directory.clone(), old.clone());
            async move { directory.joined(&env(), Some(&old)).await }
        });
        while directory.waiters.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        // the same one again is not what is waited for
        drop(port);
        let port = join(&directory, "reg_a", 1);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        let _newer = join(&directory, "reg_b", 2);
        assert_eq!(waiting.await.unwrap(), Ok(id("reg_b")));
        assert_eq!(directory.waiters.waiting(), 0);
        drop(port);
    }

    #[tokio::test]
    async fn a_relay_that_stops_keeps_nobody_waiting() {
        let directory = Arc::<Directory>::default();
        let waiting = tokio::spawn({
            let directory = directory.clone();
            async move { directory.joined(&env(), None).await }
        });
        while directory.waiters.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        directory.drain();
        assert_eq!(directory.waiters.waiting(), 1, "until it goes");
        assert!(directory.node().await.draining);
        directory.close();
        assert_eq!(waiting.await.unwrap(), Err(NotWaiting));
    }
}
