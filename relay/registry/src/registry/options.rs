//! What a registry is given besides its state.

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

/// What a registry is given besides its state.
#[derive(Clone)]
pub struct Options {
    /// Base of the websocket URLs in replies.
    pub public_url: PublicUrl,
    /// How long `/connect` waits for an executor that is away; zero: not at
    /// all. At most [`limits::CONNECT_WAIT_MAX`] counts.
    pub connect_wait: Duration,
    /// How much of the audit log is kept.
    pub audit_retention: AuditRetention,
    /// How much of the history of connections is kept.
    pub history_retention: HistoryRetention,
    /// Other issuers whose tokens are accepted.
    pub issuers: Vec<IssuerConfig>,
    /// Gets their keys.
    pub fetch_keys: Arc<dyn FetchKeys>,
    /// Proxies whose `X-Forwarded-For` is believed; by default none.
    pub trusted_proxies: Vec<IpNet>,
    /// Who knows which executors are connected.
    pub presence: Arc<dyn Presence>,
    /// Who is told how long the database takes.
    pub store_metrics: Arc<dyn StoreMetrics>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Ids and secrets.
    pub random: Arc<dyn Random>,
}

impl Default for Options {
    /// The system's time and randomness, URLs from the Host header, and nobody
    /// connected.
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
