//! The table of hubs and websockets.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::registry::status::ConnectionCursor;
use rendez_proto::ticket::Purpose;
use rendez_registry::{Admitted, Registry};
use rendez_relay_core::{Capabilities, JoinError, KeyFingerprint, SWEEP_INTERVAL, Stats};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::Connection;
use super::hub::SharedHub;
use super::quota::QuotaAccounts;
use super::stats::ConnectionStats;
use super::traffic::Traffic;
use super::waiters::Waiters;

/// All hubs and websockets of a node.
///
/// A hub exists while it has a port or remembers a stream. Websockets join under
/// the table's lock, so the sweeper never removes a hub that is about to be
/// joined.
#[derive(Default)]
pub struct ConnectionTable {
    rows: Mutex<Rows>,
    quotas: QuotaAccounts,
    waiters: Arc<Waiters>,
    stats: ConnectionStats,
    /// One token per websocket.
    tasks: TaskTracker,
    draining: AtomicBool,
    closed: AtomicBool,
}

#[derive(Default)]
struct Rows {
    hubs: HashMap<EnvironmentId, HubRow>,
    /// Counters of the hubs that were removed.
    removed: Stats,
    /// Admitted websockets, by environment and number.
    connections: BTreeMap<(EnvironmentId, u64), Arc<Connection>>,
    /// The same, of tokens that expire, by expiry and number.
    expiring: BTreeMap<(u64, u64), Arc<Connection>>,
}

struct HubRow {
    hub: Arc<SharedHub>,
    /// The registration of the executor that joined last.
    registration: Option<RegistrationId>,
}

impl ConnectionTable {
    /// An empty table whose hubs are charged to `quotas`.
    pub fn new(quotas: QuotaAccounts) -> Self {
        Self { quotas, ..Self::default() }
    }

    /// Joins an admitted websocket to its environment's hub and adds its row. An
    /// executor's supersedes an older one.
    ///
    /// # Errors
    /// [`JoinError`]: the registration is stale, or a quota is used up.
    pub(super) fn insert(
        &self,
        registry: &Registry,
        Admitted { claims, subject, until }: &Admitted,
    ) -> Result<Arc<Connection>, JoinError> {
        let is_executor = claims.purpose == Purpose::Executor;
        let token = match is_executor {
            true => self.quotas.executor_token(&subject.to_string()),
            false => self.quotas.token(&subject.to_string()),
        };
        let mut rows = self.rows();
        let row = rows.hubs.entry(claims.environment.clone()).or_insert_with(|| {
            let hub = SharedHub::new(self.quotas.shared(claims.environment.as_str()));
            HubRow { hub: Arc::new(hub), registration: None }
        });
        let port = if is_executor {
            let port = row.hub.join_executor(claims.generation, token, Instant::now())?;
            row.registration = Some(claims.registration.clone());
            port
        } else {
            // The ticket names the orchestrator's key, which owns its streams.
            let can = Capabilities { resends: claims.profile.is_reliable() };
            row.hub.join_orchestrator(KeyFingerprint(claims.binding), can, token)?
        };
        let connection = Arc::new(Connection {
            id: registry.history().next_id(),
            is_executor,
            environment: claims.environment.clone(),
            registration: claims.registration.clone(),
            generation: claims.generation,
            subject: subject.clone(),
            profile: claims.profile,
            connected_at: registry.unix_now(),
            expires_at: *until,
            hub: row.hub.clone(),
            port,
            traffic: Traffic::default(),
            is_open: AtomicBool::new(false),
            eviction: OnceLock::new(),
            evicted: CancellationToken::new(),
        });
        rows.connections.insert(connection.key(), connection.clone());
        if let Some(expires_at) = until {
            rows.expiring.insert((*expires_at, connection.id.number), connection.clone());
        }
        drop(rows);
        if is_executor {
            self.waiters.wake(&claims.environment);
        }
        Ok(connection)
    }

    /// Removes a websocket that has ended.
    pub(super) fn remove(&self, connection: &Connection) {
        let mut rows = self.rows();
        rows.connections.remove(&connection.key());
        if let Some(expires_at) = connection.expires_at {
            rows.expiring.remove(&(expires_at, connection.id.number));
        }
    }

    /// Runs the timers of all hubs until cancelled.
    pub(crate) async fn sweep(self: Arc<Self>, cancel: CancellationToken) {
        let mut tick = tokio::time::interval(SWEEP_INTERVAL);
        while cancel.run_until_cancelled(tick.tick()).await.is_some() {
            let now = Instant::now();
            self.quotas.sweep(now);
            let Rows { hubs, removed, .. } = &mut *self.rows();
            hubs.retain(|_, row| {
                let stays = row.hub.sweep(now);
                if !stays {
                    row.hub.read(|hub| removed.add(hub.stats()));
                }
                stays
            });
        }
    }

    /// All hubs, in no order.
    pub(crate) fn hubs(&self) -> Vec<Arc<SharedHub>> {
        self.rows().hubs.values().map(|row| row.hub.clone()).collect()
    }

    /// All admitted websockets.
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.rows().connections.values().cloned().collect()
    }

    /// The websockets whose token has expired. Each is returned once.
    pub(super) fn take_expired(&self, now: u64) -> Vec<Arc<Connection>> {
        let mut rows = self.rows();
        let later = rows.expiring.split_off(&(now.saturating_add(1), 0));
        std::mem::replace(&mut rows.expiring, later).into_values().collect()
    }

    /// At most `limit` open websockets after `after`, ordered by environment and
    /// number; of one environment or of all.
    pub(super) fn page(
        &self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
        limit: usize,
    ) -> Vec<Arc<Connection>> {
        let first = match (after, environment) {
            (Some(after), _) => Bound::Excluded((after.environment.clone(), after.number)),
            (None, Some(environment)) => Bound::Included((environment.clone(), 0)),
            (None, None) => Bound::Unbounded,
        };
        let rows = self.rows();
        let page = rows.connections.range((first, Bound::Unbounded));
        page.map(|(_, connection)| connection)
            .take_while(|found| environment.is_none_or(|wanted| *wanted == found.environment))
            .filter(|connection| connection.is_open())
            .take(limit)
            .cloned()
            .collect()
    }

    /// The open websocket of the executor that joined last.
    pub(super) fn executor(&self, environment: &EnvironmentId) -> Option<Arc<Connection>> {
        let range = (environment.clone(), 0)..=(environment.clone(), u64::MAX);
        let rows = self.rows();
        let mut newest_first = rows.connections.range(range).rev();
        let found = newest_first.find(|(_, found)| found.is_executor && found.is_open());
        found.map(|(_, connection)| connection.clone())
    }

    /// The registration of the executor that is part of the environment's hub.
    pub(super) fn joined_registration(
        &self,
        environment: &EnvironmentId,
    ) -> Option<RegistrationId> {
        let rows = self.rows();
        let row = rows.hubs.get(environment)?;
        row.hub.read(|hub| hub.has_executor()).then(|| row.registration.clone())?
    }

    /// Orchestrators and streams of an environment that has a hub.
    pub(super) fn environment_counts(&self, environment: &EnvironmentId) -> Option<(usize, usize)> {
        let rows = self.rows();
        let row = rows.hubs.get(environment)?;
        Some(row.hub.read(|hub| (hub.orchestrators(), hub.streams())))
    }

    /// Hubs, executors, orchestrators and streams of this node.
    pub fn counts(&self) -> ConnectionCounts {
        let rows = self.rows();
        let mut counts = ConnectionCounts { hubs: rows.hubs.len(), ..Default::default() };
        for row in rows.hubs.values() {
            row.hub.read(|hub| {
                counts.executors += usize::from(hub.has_executor());
                counts.orchestrators += hub.orchestrators();
                counts.streams += hub.streams();
            });
        }
        counts
    }

    /// The counters of all hubs since the relay started.
    pub fn hub_stats(&self) -> Stats {
        let rows = self.rows();
        let mut total = rows.removed.clone();
        for row in rows.hubs.values() {
            row.hub.read(|hub| total.add(hub.stats()));
        }
        total
    }

    /// The counters of connections since the relay started.
    pub fn connection_stats(&self) -> &ConnectionStats {
        &self.stats
    }

    /// The accounts of node, environments and tokens.
    pub fn quotas(&self) -> &QuotaAccounts {
        &self.quotas
    }

    /// The number of calls of `/connect` that wait for an executor.
    pub fn waiting(&self) -> usize {
        self.waiters.waiting()
    }

    pub(super) fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock()
    }
}

/// Shutdown.
impl ConnectionTable {
    /// Marks the node as draining; it still admits websockets.
    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Refuses new websockets, and ends all waits for an executor.
    pub(crate) fn close(&self) {
        self.start_draining();
        self.closed.store(true, Ordering::Relaxed);
        self.waiters.close();
    }

    /// Whether the relay is about to stop: balancers should not send clients here.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether new websockets are refused.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn task(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// The number of websockets whose guard exists.
    pub(crate) fn guards(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until no guard exists.
    pub(crate) async fn all_ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The hubs and connections of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Hubs, including those that only remember streams.
    pub hubs: usize,
    /// Connected executors.
    pub executors: usize,
    /// Connected orchestrators.
    pub orchestrators: usize,
    /// Known streams.
    pub streams: usize,
}
