//! The history of connections in a store: it only grows and is pruned at its old
//! end.
//!
//! [`History`] writes it in the background, in batches. No decision depends on it.
//!
//! [`History`]: crate::history::History

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::registry::environments::EndReason;

use super::StoreError;

/// A permanent id of one connection: the random number of a relay's start, and a
/// counter. Not secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId {
    /// The random number of the start.
    pub instance: u64,
    /// Counts from 1 in each instance.
    pub number: u64,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.instance, self.number)
    }
}

impl FromStr for ConnectionId {
    type Err = StoreError;
    fn from_str(text: &str) -> Result<Self, StoreError> {
        let invalid = || StoreError::Corrupt("connection id");
        let (instance, number) = text.split_once('-').ok_or_else(invalid)?;
        let instance = u64::from_str_radix(instance, 16).map_err(|_| invalid())?;
        Ok(Self { instance, number: number.parse().map_err(|_| invalid())? })
    }
}

/// One connection of an executor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRow {
    /// Its id.
    pub id: ConnectionId,
    /// The environment of the executor.
    pub environment: EnvironmentId,
    /// The registration of the executor.
    pub registration: RegistrationId,
    /// The generation of the registration.
    pub generation: Generation,
    /// When it began, in seconds since 1970.
    pub connected_at: u64,
    /// When it ended, in seconds since 1970, and why.
    pub ended: Option<(u64, EndReason)>,
    /// The bytes of messages from the executor, at the end.
    pub received_bytes: u64,
    /// The bytes of messages to the executor, at the end.
    pub sent_bytes: u64,
}

/// The current state of a connection, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionUpdate {
    /// The connection.
    pub connection: ConnectionRow,
    /// Whether the connection was inserted before. Then it is only updated, also
    /// if its row has been pruned since.
    pub inserted: bool,
}

/// The end of the previous connection in the environment; `None` if there was
/// none.
pub type PreviousEnd = Option<EndReason>;

/// The connections of executors. One transaction per method.
#[async_trait]
pub trait ConnectionStore: Send + Sync + 'static {
    /// Writes connections, new or changed, in this order. A new connection
    /// supersedes the open one of its environment. Only the newest `keep`
    /// connections of these environments are kept. Returns one entry for each new
    /// connection.
    async fn write_connections(
        &self,
        updates: &[ConnectionUpdate],
        keep: u32,
    ) -> Result<Vec<PreviousEnd>, StoreError>;

    /// Removes at most `limit` of the oldest connections that ended before this
    /// time, in seconds since 1970, but not the last one of an existing
    /// environment. Returns their number.
    async fn prune_connections(&self, before: u64, limit: u32) -> Result<u64, StoreError>;

    /// Returns an environment's connections, newest first.
    async fn connections(
        &self,
        environment: &EnvironmentId,
        limit: u32,
    ) -> Result<Vec<ConnectionRow>, StoreError>;

    /// Returns the newest connection of each of these environments that has one,
    /// ordered by environment.
    async fn last_connections(
        &self,
        environments: &[EnvironmentId],
    ) -> Result<Vec<ConnectionRow>, StoreError>;

    /// Ends the connections that are still open, for a relay that starts. Returns
    /// their number.
    async fn end_open_connections(&self, now: u64, why: EndReason) -> Result<u64, StoreError>;
}
