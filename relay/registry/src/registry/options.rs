//! The options of a registry.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rendez_proto::limits;

use crate::audit::AuditRetention;
use crate::history::HistoryRetention;
use crate::jwt::config::IssuerConfig;
use crate::public_url::PublicUrl;
use crate::traits::{
    Clock, FetchKeys, NoFetch, NoPresence, NoStoreMetrics, Presence, Random, StoreMetrics,
    SystemClock, SystemRandom,
};

/// The options of a registry.
#[derive(Clone)]
pub struct Options {
    /// The base of the websocket URLs in replies.
    pub public_url: PublicUrl,
    /// How long `/connect` waits for an offline executor; zero disables waiting.
    /// At most [`limits::CONNECT_WAIT_MAX`].
    pub connect_wait: Duration,
    /// How much of the audit log is kept.
    pub audit_retention: AuditRetention,
    /// How much of the history of connections is kept.
    pub history_retention: HistoryRetention,
    /// Other issuers whose tokens are accepted.
    pub issuers: Vec<IssuerConfig>,
    /// Fetches the keys of the issuers.
    pub fetch_keys: Arc<dyn FetchKeys>,
    /// The proxies whose `X-Forwarded-For` is trusted; by default none.
    pub trusted_proxies: Vec<IpNet>,
    /// Which executors are connected.
    pub presence: Arc<dyn Presence>,
    /// Receives the duration of each call of the store.
    pub store_metrics: Arc<dyn StoreMetrics>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The source of ids and secrets.
    pub random: Arc<dyn Random>,
}

impl Default for Options {
    /// The system's clock and randomness, URLs from the Host header, and no
    /// connected executor.
    fn default() -> Self {
        Self {
            public_url: PublicUrl::default(),
            connect_wait: limits::CONNECT_WAIT,
            audit_retention: AuditRetention::default(),
            history_retention: HistoryRetention::default(),
            issuers: Vec::new(),
            fetch_keys: Arc::new(NoFetch),
            trusted_proxies: Vec::new(),
            presence: Arc::new(NoPresence),
            store_metrics: Arc::new(NoStoreMetrics),
            clock: Arc::new(SystemClock),
            random: Arc::new(SystemRandom),
        }
    }
}
