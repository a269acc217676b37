//! The accounts of a node: its own, and one per token and environment that is
//! connected.
//!
//! An account exists while it is used, and until its debt is paid off: a client
//! that reconnects finds the same account. So there are as many accounts as live
//! tokens and environments, and those of the last minute. Quotas may be replaced
//! at any time and apply at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};
use rendez_proto::limits;
use rendez_relay_core::{Account, CLAIMS_PER_EXECUTOR, HubAccounts, Quota};

/// Default for the bytes queued at one relay.
const NODE_MEMORY_BYTES: u64 = 1024 * 1024 * 1024;
/// Default for the bytes queued for and from one executor: the smallest windows of a
/// quarter of its streams, or two of the largest.
const ENVIRONMENT_MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// Default for the bytes queued for and from the bearers of one token.
const TOKEN_MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// Default for the bytes queued for one orchestrator's websocket.
const CONNECTION_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// Default for the handshakes per minute that the orchestrators of one environment may
/// begin. An executor computes a few hundred per second and asks its registry each
/// time.
const ENVIRONMENT_HANDSHAKES_PER_MINUTE: u64 = 1200;
/// Default for the handshakes per minute that the bearers of one token may begin, over
/// all environments.
const TOKEN_HANDSHAKES_PER_MINUTE: u64 = 600;
/// Default for the websockets of one orchestrator's token: so many commands at once.
const TOKEN_CONNECTIONS: u64 = 1_000;
/// Default for the streams of one orchestrator's token. A command has one.
const TOKEN_STREAMS: u64 = 2_000;
/// Default for the websockets of one executor's token, which may serve a whole fleet.
const EXECUTOR_TOKEN_CONNECTIONS: u64 = 10_000;
/// Default for the websockets of one environment: those that its executor's hub lets in,
/// and one of an executor that supersedes another.
const ENVIRONMENT_CONNECTIONS: u64 = limits::ORCHESTRATORS_PER_EXECUTOR as u64 + 2;
/// Default for the streams of one environment: those that its hub remembers.
const ENVIRONMENT_STREAMS: u64 = CLAIMS_PER_EXECUTOR as u64;
/// Default for the websockets of a node: the default of `connections_max`.
const NODE_CONNECTIONS: u64 = 20_000;
/// Default for the streams of a node. Each may be remembered for its grace, in about 1 KiB.
const NODE_STREAMS: u64 = 100_000;

/// The quotas of all accounts of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas {
    /// The node as a whole.
    pub node: Quota,
    /// Each environment without its own quota.
    pub environment: Quota,
    /// Each orchestrator's token without its own quota.
    pub token: Quota,
    /// Each executor's token without its own quota.
    pub executor_token: Quota,
    /// Each websocket: memory and rates.
    pub connection: Quota,
    /// Quotas of single environments, by id.
    pub environments: BTreeMap<String, Quota>,
    /// Quotas of single tokens of orchestrators, by id.
    pub tokens: BTreeMap<String, Quota>,
    /// Quotas of single tokens of executors, by id.
    pub executor_tokens: BTreeMap<String, Quota>,
}

impl Default for Quotas {
    /// Bounds memory, websockets, streams, and the rate of handshakes, which cost
    /// executors the most. All other rates are unlimited.
    fn default() -> Self {
        let memory = |memory_bytes| Quota { memory_bytes, ..Quota::UNLIMITED };
        Self {
            node: Quota {
                connections: NODE_CONNECTIONS,
                streams: NODE_STREAMS,
                ..memory(NODE_MEMORY_BYTES)
            },
            environment: Quota {
                connections: ENVIRONMENT_CONNECTIONS,
                streams: ENVIRONMENT_STREAMS,
                handshakes_per_minute: ENVIRONMENT_HANDSHAKES_PER_MINUTE,
                ..memory(ENVIRONMENT_MEMORY_BYTES)
            },
            token: Quota {
                connections: TOKEN_CONNECTIONS,
                streams: TOKEN_STREAMS,
                handshakes_per_minute: TOKEN_HANDSHAKES_PER_MINUTE,
                handshake_failures: limits::HANDSHAKE_FAILURES_PER_TOKEN,
                ..memory(TOKEN_MEMORY_BYTES)
            },
            executor_token: Quota {
                connections: EXECUTOR_TOKEN_CONNECTIONS,
                ..memory(TOKEN_MEMORY_BYTES)
            },
            connection: memory(CONNECTION_MEMORY_BYTES),
            environments: BTreeMap::new(),
            tokens: BTreeMap::new(),
            executor_tokens: BTreeMap::new(),
        }
    }
}

/// The accounts of a node.
pub struct QuotaAccounts {
    node: Arc<Account>,
    quotas: Mutex<Quotas>,
    environments: AccountMap,
    tokens: AccountMap,
    executor_tokens: AccountMap,
}

#[derive(Default)]
struct AccountMap(Mutex<HashMap<Box<str>, Arc<Account>>>);

impl QuotaAccounts {
    /// Accounts with these quotas.
    pub fn new(quotas: Quotas) -> Self {
        Self {
            node: Account::new(quotas.node),
            quotas: Mutex::new(quotas),
            environments: AccountMap::default(),
            tokens: AccountMap::default(),
            executor_tokens: AccountMap::default(),
        }
    }

    /// The accounts that the hub of an environment charges.
    pub fn shared(&self, environment: &str) -> HubAccounts {
        let quotas = self.quotas();
        let own = quotas.environments.get(environment).copied();
        let quota = own.unwrap_or(quotas.environment);
        HubAccounts {
            node: self.node.clone(),
            environment: self.environments.account(environment, quota),
            connection: quotas.connection,
        }
    }

    /// The account of an executor's token.
    pub fn executor_token(&self, id: &str) -> Arc<Account> {
        let quotas = self.quotas();
        let quota = quotas.executor_tokens.get(id).copied().unwrap_or(quotas.executor_token);
        self.executor_tokens.account(id, quota)
    }

    /// The account of an orchestrator's token.
    pub fn token(&self, id: &str) -> Arc<Account> {
        let quotas = self.quotas();
        let quota = quotas.tokens.get(id).copied().unwrap_or(quotas.token);
        self.tokens.account(id, quota)
    }

    /// The node's account.
    pub fn node(&self) -> &Arc<Account> {
        &self.node
    }

    /// Replaces all quotas. Those of websockets apply to new ones.
    pub fn set_quotas(&self, quotas: Quotas) {
        // Locked until the end, so that no account is made with the old quotas.
        let mut held = self.quotas();
        self.node.set_quota(quotas.node);
        self.environments.apply(&quotas.environments, quotas.environment);
        self.tokens.apply(&quotas.tokens, quotas.token);
        self.executor_tokens.apply(&quotas.executor_tokens, quotas.executor_token);
        *held = quotas;
    }

    /// Forgets accounts that are unused and owe nothing.
    pub fn sweep(&self, now: Instant) {
        self.environments.sweep(now);
        self.tokens.sweep(now);
        self.executor_tokens.sweep(now);
    }

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        self.quotas.lock()
    }
}

impl Default for QuotaAccounts {
    fn default() -> Self {
        Self::new(Quotas::default())
    }
}

impl AccountMap {
    fn account(&self, id: &str, quota: Quota) -> Arc<Account> {
        let mut accounts = self.lock();
        if let Some(account) = accounts.get(id) {
            return account.clone();
        }
        let account = Account::new(quota);
        accounts.insert(id.into(), account.clone());
        account
    }

    fn apply(&self, own: &BTreeMap<String, Quota>, otherwise: Quota) {
        for (id, account) in self.lock().iter() {
            account.set_quota(own.get(&**id).copied().unwrap_or(otherwise));
        }
    }

    fn sweep(&self, now: Instant) {
        self.lock().retain(|_, account| Arc::strong_count(account) > 1 || !account.is_settled(now));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Arc<Account>>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rendez_proto::ids::Generation;
    use rendez_relay_core::Hub;

    use super::*;

    fn connections(max: u64) -> Quota {
        Quota { connections: max, ..Quota::UNLIMITED }
    }

    #[test]
    fn account_is_shared_by_name_while_used() {
        let accounts = QuotaAccounts::default();
        let (a, b) = (accounts.token("a"), accounts.token("b"));
        assert!(Arc::ptr_eq(&a, &accounts.token("a")) && !Arc::ptr_eq(&a, &b));
        let environment = accounts.shared("a").environment;
        assert!(!Arc::ptr_eq(&environment, &a));
        drop(a);
        accounts.sweep(Instant::now());
        assert_eq!((accounts.tokens.lock().len(), accounts.environments.lock().len()), (1, 1));
    }

    #[test]
    fn account_outlives_its_websocket_until_debt_is_paid() {
        let rate = Quota { bytes_per_second: 1000, ..Quota::UNLIMITED };
        let accounts = QuotaAccounts::new(Quotas { token: rate, ..Quotas::default() });
        let now = Instant::now();
        let mut hub = Hub::new(HubAccounts::default());
        let token = accounts.token("a");
        let executor = hub.join_executor(Generation(1), token.clone(), now).unwrap();
        hub.handle_message(executor, vec![0; 5000].into(), now).unwrap();
        drop((hub, token));
        accounts.sweep(now + Duration::from_secs(4));
        assert_eq!(accounts.tokens.lock().len(), 1);
        accounts.sweep(now + Duration::from_secs(6));
        assert_eq!(accounts.tokens.lock().len(), 0);
    }

    #[test]
    fn quotas_by_id_override_and_change_while_used() {
        let accounts = QuotaAccounts::new(Quotas {
            token: connections(5),
            tokens: [("big".to_owned(), connections(50))].into(),
            ..Quotas::default()
        });
        let (small, big) = (accounts.token("small"), accounts.token("big"));
        assert_eq!((small.quota().connections, big.quota().connections), (5, 50));
        accounts.set_quotas(Quotas {
            node: connections(1000),
            token: connections(6),
            tokens: [("small".to_owned(), connections(1))].into(),
            ..Quotas::default()
        });
        assert_eq!((small.quota().connections, big.quota().connections), (1, 6));
        assert_eq!(accounts.node().quota().connections, 1000);
        assert_eq!(accounts.token("new").quota().connections, 6);
    }

    #[test]
    fn executors_have_quotas_of_their_own() {
        let quotas = Quotas {
            executor_token: connections(7),
            executor_tokens: [("big".to_owned(), connections(70))].into(),
            ..Quotas::default()
        };
        let accounts = QuotaAccounts::new(quotas);
        let of = |id| accounts.executor_token(id).quota().connections;
        assert_eq!((of("small"), of("big")), (7, 70));
        assert_eq!(accounts.token("big").quota().connections, TOKEN_CONNECTIONS);
    }
}
