//! What only grows and is cut at its old end: the history of connections.
//!
//! It is written in the background, in batches, by [`History`]; nothing that
//! decides reads it.
//!
//! [`History`]: crate::history::History

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::registry::environments::EndReason;

use super::StoreError;

/// Names one connection for good: what one start of a relay drew by lot, and a
/// number. Not secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId {
    /// Random, drawn once per start.
    pub instance: u64,
    /// Counts from 1 in each run.
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
    /// Its name.
    pub id: ConnectionId,
    /// Where the executor serves.
    pub environment: EnvironmentId,
    /// Under which registration.
    pub registration: RegistrationId,
    /// The registration's place in the environment's order.
    pub generation: Generation,
    /// When it began, in seconds since 1970.
    pub connected_at: u64,
    /// When it ended, in seconds since 1970, and why.
    pub ended: Option<(u64, EndReason)>,
    /// Bytes of messages from the executor, at the end.
    pub received_bytes: u64,
    /// Bytes of messages to the executor, at the end.
    pub sent_bytes: u64,
}

/// What a connection is now, to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionUpdate {
    /// The connection.
    pub connection: ConnectionRow,
    /// Its beginning was written before. Then it never begins again, also if its
    /// row is gone: newer ones have pushed it out while it lasted.
    pub inserted: bool,
}

/// Of a connection that begins, why the one before it in its environment had
/// ended; `None`: there was none.
pub type PreviousEnd = Option<EndReason>;

/// The memory of connections. One transaction per method.
#[async_trait]
pub trait ConnectionStore: Send + Sync + 'static {
    /// Writes connections, new or changed, in this order. An older one of the
    /// same environment that is open still was superseded. Of these
    /// environments, only the newest `keep` connections each stay. An entry for
    /// each that is new.
    async fn write_connections(
        &self,
        updates: &[ConnectionUpdate],
        keep: u32,
    ) -> Result<Vec<PreviousEnd>, StoreError>;

    /// Removes at most `limit` of the oldest connections that ended before this
    /// time, in seconds since 1970, but the last one of an environment that is
    /// there still. How many went.
    async fn prune_connections(&self, before: u64, limit: u32) -> Result<u64, StoreError>;

    /// An environment's connections, the newest first.
    async fn connections(
        &self,
        environment: &EnvironmentId,
        limit: u32,
    ) -> Result<Vec<ConnectionRow>, StoreError>;

    /// The newest connection of each of these environments that has any, ordered
    /// by environment.
    async fn last_connections(
        &self,
        environments: &[EnvironmentId],
    ) -> Result<Vec<ConnectionRow>, StoreError>;

    /// Ends what is open still, for a relay that starts: whoever wrote that is
    /// gone. How many there were.
    async fn end_open_connections(&self, now: u64, why: EndReason) -> Result<u64, StoreError>;
}
