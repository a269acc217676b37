//! Which hub serves which environment, on this node.
//!
//! Touched when a websocket opens or closes and by the sweeper, never per
//! frame. A hub exists while it has a port or remembers a stream; joining
//! happens under the directory's lock, so the sweeper never removes a hub that
//! somebody is about to join.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_registry::Presence;
use rendez_relay_core::{Capabilities, JoinError, SWEEP_INTERVAL, Stats, Subject};
use tokio_util::sync::CancellationToken;

use crate::edge::port::{HubPort, SharedHub};
use crate::ledger::Ledger;

/// All hubs of a node.
#[derive(Default)]
pub struct Directory {
    entries: Mutex<HashMap<EnvironmentId, Entry>>,
    /// Counters of hubs that are gone.
    past: Mutex<Stats>,
    ledger: Ledger,
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
        Ok(port)
    }

    /// Joins an orchestrator's websocket.
    ///
    /// # Errors
    /// [`JoinError::TooManyOrchestrators`], [`JoinError::Quota`]
    pub fn join_orchestrator(
        &self,
        environment: &EnvironmentId,
        subject: Subject,
        can: Capabilities,
        token: &str,
    ) -> Result<HubPort, JoinError> {
        let token = self.ledger.token(token);
        let mut entries = self.lock();
        self.entry(&mut entries, environment).hub.join_orchestrator(subject, can, token)
    }

    /// Runs the timers of all hubs until cancelled.
    pub async fn sweep(self: Arc<Self>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            let now = Instant::now();
            self.ledger.sweep();
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
        let entries = self.lock();
        let entry = entries.get(environment)?;
        entry.hub.read(|hub| hub.has_executor()).then(|| entry.registration.clone())?
    }
}
