//! The accounts of a node: its own, and one per token and environment that is
//! connected.
//!
//! Accounts live as long as somebody uses them or has to pay off what was used:
//! whoever hangs up and comes back finds the same account. So the ledger holds
//! as many as there are live tokens and environments, and a few that ended a
//! minute ago at most. Quotas may be replaced at any time and apply at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rendez_proto::limits;
use rendez_relay_core::{Account, Quota, Shared};

/// Bytes that wait at one relay, unless its configuration says otherwise.
const NODE_MEMORY_BYTES: u64 = 1024 * 1024 * 1024;
/// Bytes that wait around one executor: smallest windows of a quarter of its
/// streams, or two of the largest.
const ENVIRONMENT_MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes that wait for or from the bearers of one token.
const TOKEN_MEMORY_BYTES: u64 = 256 * 1024 * 1024;
/// Bytes that wait for one orchestrator's websocket.
const CONNECTION_MEMORY_BYTES: u64 = 32 * 1024 * 1024;
/// Handshakes that the orchestrators of one environment may begin per minute:
/// an executor does a few hundred a second, and its registry is asked each time.
const ENVIRONMENT_HANDSHAKES_PER_MINUTE: u64 = 1200;
/// Handshakes that the bearers of one token may begin per minute, over all
/// environments.
const TOKEN_HANDSHAKES_PER_MINUTE: u64 = 600;

/// The bounds of everything on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas {
    /// The node as a whole.
    pub node: Quota,
    /// Each environment, unless it is named below.
    pub environment: Quota,
    /// Each token, unless it is named below.
    pub token: Quota,
    /// Each websocket: memory and rates.
    pub connection: Quota,
    /// Environments with quotas of their own, by id.
    pub environments: BTreeMap<String, Quota>,
    /// Tokens with quotas of their own, by id.
    pub tokens: BTreeMap<String, Quota>,
}

impl Default for Quotas {
    /// Memory is bounded, and handshakes, which cost executors the most; no
    /// other rate is.
    fn default() -> Self {
        let memory = |memory_bytes| Quota { memory_bytes, ..Quota::UNLIMITED };
        Self {
            node: memory(NODE_MEMORY_BYTES),
            environment: Quota {
                handshakes_per_minute: ENVIRONMENT_HANDSHAKES_PER_MINUTE,
                ..memory(ENVIRONMENT_MEMORY_BYTES)
            },
            token: Quota {
                handshakes_per_minute: TOKEN_HANDSHAKES_PER_MINUTE,
                handshake_failures: limits::HANDSHAKE_FAILURES_PER_TOKEN,
                ..memory(TOKEN_MEMORY_BYTES)
            },
            connection: memory(CONNECTION_MEMORY_BYTES),
            environments: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }
}

/// See the module.
pub struct Ledger {
    node: Arc<Account>,
    quotas: Mutex<Quotas>,
    environments: Shelf,
    tokens: Shelf,
}

#[derive(Default)]
struct Shelf(Mutex<HashMap<Box<str>, Arc<Account>>>);

impl Ledger {
    /// A ledger with these quotas.
    pub fn new(quotas: Quotas) -> Self {
        Self {
            node: Account::new(quotas.node),
            quotas: Mutex::new(quotas),
            environments: Shelf::default(),
            tokens: Shelf::default(),
        }
    }

    /// What the hub of an environment draws on.
    pub fn shared(&self, environment: &str) -> Shared {
        let quotas = self.quotas();
        let own = quotas.environments.get(environment).copied();
        let quota = own.unwrap_or(quotas.environment);
        Shared {
            node: self.node.clone(),
            environment: self.environments.account(environment, quota),
            connection: quotas.connection,
        }
    }

    /// The account of a token.
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
        // Held on to, so that no account is made by the old ones meanwhile.
        let mut held = self.quotas();
        self.node.set_quota(quotas.node);
        self.environments.apply(&quotas.environments, quotas.environment);
        self.tokens.apply(&quotas.tokens, quotas.token);
        *held = quotas;
    }

    /// Forgets accounts that nobody uses any more and that owe nothing.
    pub fn sweep(&self, now: Instant) {
        self.environments.sweep(now);
        self.tokens.sweep(now);
    }

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Ledger {
    fn default() -> Self {
        Self::new(Quotas::default())
    }
}

impl Shelf {
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn one_account_per_name_while_it_is_used() {
        let ledger = Ledger::default();
        let (a, b) = (ledger.token("a"), ledger.token("b"));
        assert!(Arc::ptr_eq(&a, &ledger.token("a")) && !Arc::ptr_eq(&a, &b));
        let environment = ledger.shared("a").environment;
        assert!(!Arc::ptr_eq(&environment, &a));
        drop(a);
        ledger.sweep(Instant::now());
        assert_eq!((ledger.tokens.lock().len(), ledger.environments.lock().len()), (1, 1));
    }

    #[test]
    fn who_hangs_up_has_still_to_pay() {
        let rate = Quota { bytes_per_second: 1000, ..Quota::UNLIMITED };
        let ledger = Ledger::new(Quotas { token: rate, ..Quotas::default() });
        let now = Instant::now();
        let mut hub = Hub::new(Shared::default());
        let token = ledger.token("a");
        let executor = hub.join_executor(Generation(1), token.clone(), now).unwrap();
        hub.handle_message(executor, vec![0; 5000].into(), now).unwrap();
        drop((hub, token));
        ledger.sweep(now + Duration::from_secs(4));
        assert_eq!(ledger.tokens.lock().len(), 1);
        ledger.sweep(now + Duration::from_secs(6));
        assert_eq!(ledger.tokens.lock().len(), 0);
    }

    #[test]
    fn quotas_have_exceptions_and_change_while_in_use() {
        let ledger = Ledger::new(Quotas {
            token: connections(5),
            tokens: [("big".to_owned(), connections(50))].into(),
            ..Quotas::default()
        });
        let (small, big) = (ledger.token("small"), ledger.token("big"));
        assert_eq!((small.quota().connections, big.quota().connections), (5, 50));
        ledger.set_quotas(Quotas {
            node: connections(1000),
            token: connections(6),
            tokens: [("small".to_owned(), connections(1))].into(),
            ..Quotas::default()
        });
        assert_eq!((small.quota().connections, big.quota().connections), (1, 6));
        assert_eq!(ledger.node().quota().connections, 1000);
        assert_eq!(ledger.token("new").quota().connections, 6);
    }
}
