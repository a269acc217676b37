//! What the registry takes from its surroundings: time, randomness, and the
//! relay's knowledge of who is connected. Tests put fixed ones in their place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::registry::environments::LiveExecutor;
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry};

use crate::stats::StoreCall;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// Seconds since 1970.
    fn now_unix_secs(&self) -> u64;
}

/// The system's clock. A clock before 1970 reads as 1970.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_unix_secs(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

/// Is told how long the database takes.
pub trait StoreMetrics: Send + Sync + 'static {
    /// A call has ended after this time, with success or without.
    fn store_call(&self, call: StoreCall, took: Duration, good: bool);
}

/// For a registry that nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStoreMetrics;

impl StoreMetrics for NoStoreMetrics {
    fn store_call(&self, _: StoreCall, _: Duration, _: bool) {}
}

/// Makes ids and secrets.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes` with unpredictable ones.
    ///
    /// # Errors
    /// The system has none to give.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The operating system gave no randomness; nothing can be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gave no randomness")]
pub struct NoRandomness;

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        getrandom::fill(bytes).map_err(|_| NoRandomness)
    }
}

/// `N` bytes from `random`.
pub(crate) fn random_bytes<const N: usize>(random: &dyn Random) -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    random.fill(&mut bytes)?;
    Ok(bytes)
}

/// Which executors are connected; the relay knows.
///
/// What has a default says that nobody is, and that nobody will come.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// The registration whose executor's websocket is open, if one is.
    async fn connected(&self, environment: &EnvironmentId) -> Option<RegistrationId>;

    /// Waits until such a registration is another one than `other_than`; at
    /// once, if it is. Wakes when an executor joins, and does not poll.
    /// Cancelling it is how to stop waiting.
    ///
    /// # Errors
    /// [`WaitRefused`]
    async fn wait_for_executor(
        &self,
        _environment: &EnvironmentId,
        _other_than: Option<&RegistrationId>,
    ) -> Result<RegistrationId, WaitRefused> {
        Err(WaitRefused)
    }

    /// What is open for an environment now.
    async fn environment_connections(
        &self,
        _environment: &EnvironmentId,
    ) -> EnvironmentConnections {
        EnvironmentConnections::default()
    }

    /// What is open on this node, all together.
    async fn node_connections(&self) -> NodeConnections {
        NodeConnections::default()
    }

    /// At most `limit` open websockets after this one, which may be gone, ordered
    /// by environment; of one environment or of all.
    async fn connections(
        &self,
        _environment: Option<&EnvironmentId>,
        _after: Option<&ConnectionCursor>,
        _limit: usize,
    ) -> Vec<ConnectionEntry> {
        vec![]
    }

    /// Sends a ping through the executor's websocket and waits for its pong,
    /// for at most [`rendez_proto::limits::PROBE_TIMEOUT`]. `false`: none came.
    async fn probe(&self, _environment: &EnvironmentId) -> bool {
        false
    }
}

/// What is open on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeConnections {
    /// Websockets of executors.
    pub executors: usize,
    /// Websockets of orchestrators.
    pub orchestrators: usize,
    /// Streams that are known.
    pub streams: usize,
    /// Whether the relay is about to send everybody elsewhere.
    pub draining: bool,
}

/// Nobody may wait: too many do already, or the relay is going away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody may wait for an executor now")]
pub struct WaitRefused;

/// What is open for an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvironmentConnections {
    /// The executor's websocket.
    pub executor: Option<LiveExecutor>,
    /// Websockets of orchestrators.
    pub orchestrators: usize,
    /// Streams that are known, those whose ends may come back included.
    pub streams: usize,
    /// Whether the relay is about to send everybody elsewhere.
    pub draining: bool,
}

/// For a registry without a relay, such as that of `rendez token create`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPresence;

#[async_trait]
impl Presence for NoPresence {
    async fn connected(&self, _: &EnvironmentId) -> Option<RegistrationId> {
        None
    }
}

/// Gets the public keys of other issuers.
#[async_trait]
pub trait FetchKeys: Send + Sync + 'static {
    /// What an `https://` URL answers, at most
    /// [`rendez_proto::limits::JWKS_MAX_BYTES`], within
    /// [`rendez_proto::limits::JWKS_FETCH_TIMEOUT`].
    ///
    /// # Errors
    /// Why not, for the log.
    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String>;
}

/// For a registry that asks nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFetch;

#[async_trait]
impl FetchKeys for NoFetch {
    async fn fetch(&self, _: &str) -> Result<Vec<u8>, String> {
        Err("this process asks nobody".to_owned())
    }
}
