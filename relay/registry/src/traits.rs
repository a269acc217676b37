//! The surroundings of a registry: clock, randomness, metrics, and the relay's
//! knowledge of connected executors. Tests replace them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::registry::environments::LiveExecutor;
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry};

use crate::stats::StoreCall;

/// A source of the time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the seconds since 1970.
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

/// Receives the duration of each call of the store.
pub trait StoreMetrics: Send + Sync + 'static {
    /// Records a call that has ended after this time, successfully or not.
    fn observe_call(&self, call: StoreCall, elapsed: Duration, succeeded: bool);
}

/// Discards all durations.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStoreMetrics;

impl StoreMetrics for NoStoreMetrics {
    fn observe_call(&self, _: StoreCall, _: Duration, _: bool) {}
}

/// A source of ids and secrets.
pub trait Random: Send + Sync + 'static {
    /// Fills `bytes` with unpredictable ones.
    ///
    /// # Errors
    /// The system has no randomness.
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness>;
}

/// The operating system has no randomness, so nothing can be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system has no randomness")]
pub struct NoRandomness;

/// The operating system's generator.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), NoRandomness> {
        getrandom::fill(bytes).map_err(|_| NoRandomness)
    }
}

/// Returns `N` bytes from `random`.
pub(crate) fn random_bytes<const N: usize>(random: &dyn Random) -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    random.fill(&mut bytes)?;
    Ok(bytes)
}

/// The relay's knowledge of connected executors.
///
/// The default methods report that no executor is connected and that none will
/// connect.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Returns the registration whose executor's websocket is open, if there is
    /// one.
    async fn connected(&self, environment: &EnvironmentId) -> Option<RegistrationId>;

    /// Waits until the connected registration differs from `other_than`; returns
    /// at once if it does. Wakes when an executor joins, without polling. Cancel
    /// it to stop waiting.
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

    /// Returns the open connections of an environment.
    async fn environment_connections(
        &self,
        _environment: &EnvironmentId,
    ) -> EnvironmentConnections {
        EnvironmentConnections::default()
    }

    /// Returns the totals of this node.
    async fn node_connections(&self) -> NodeConnections {
        NodeConnections::default()
    }

    /// Returns at most `limit` open websockets after this cursor, which may be
    /// closed meanwhile, ordered by environment; of one environment or of all.
    async fn connections(
        &self,
        _environment: Option<&EnvironmentId>,
        _after: Option<&ConnectionCursor>,
        _limit: usize,
    ) -> Vec<ConnectionEntry> {
        vec![]
    }

    /// Pings the executor's websocket and waits for its pong, for at most
    /// [`rendez_proto::limits::PROBE_TIMEOUT`]. Returns `false` if none came.
    async fn probe(&self, _environment: &EnvironmentId) -> bool {
        false
    }
}

/// The totals of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeConnections {
    /// The websockets of executors.
    pub executors: usize,
    /// The websockets of orchestrators.
    pub orchestrators: usize,
    /// The known streams.
    pub streams: usize,
    /// Whether the relay is draining.
    pub draining: bool,
}

/// Waiting is refused: too many callers wait, or the relay is shutting down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("waiting for an executor is refused at the moment")]
pub struct WaitRefused;

/// The open connections of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnvironmentConnections {
    /// The executor's websocket.
    pub executor: Option<LiveExecutor>,
    /// The websockets of orchestrators.
    pub orchestrators: usize,
    /// The known streams, including those whose endpoints may reconnect.
    pub streams: usize,
    /// Whether the relay is draining.
    pub draining: bool,
}

/// The presence of a registry without a relay, such as that of `rendez token
/// create`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPresence;

#[async_trait]
impl Presence for NoPresence {
    async fn connected(&self, _: &EnvironmentId) -> Option<RegistrationId> {
        None
    }
}

/// Fetches the public keys of issuers.
#[async_trait]
pub trait FetchKeys: Send + Sync + 'static {
    /// Returns the body at an `https://` URL, at most
    /// [`rendez_proto::limits::JWKS_MAX_BYTES`], within
    /// [`rendez_proto::limits::JWKS_FETCH_TIMEOUT`].
    ///
    /// # Errors
    /// The reason, for the log.
    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String>;
}

/// Fetches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFetch;

#[async_trait]
impl FetchKeys for NoFetch {
    async fn fetch(&self, _: &str) -> Result<Vec<u8>, String> {
        Err("this process fetches no keys".to_owned())
    }
}
