//! The registry's questions about connected executors.

use std::pin::pin;

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::limits;
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry};
use rendez_registry::{EnvironmentConnections, NodeConnections, Presence, WaitRefused};
use tokio::time::timeout;

use super::table::ConnectionTable;

#[async_trait]
impl Presence for ConnectionTable {
    async fn connected(&self, environment: &EnvironmentId) -> Option<RegistrationId> {
        self.joined_registration(environment)
    }

    async fn wait_for_executor(
        &self,
        environment: &EnvironmentId,
        other_than: Option<&RegistrationId>,
    ) -> Result<RegistrationId, WaitRefused> {
        let waiter = self.waiters().wait(environment)?;
        // One round per join.
        loop {
            let mut joined = pin!(waiter.joined().notified());
            joined.as_mut().enable();
            match self.joined_registration(environment) {
                Some(found) if Some(&found) != other_than => return Ok(found),
                _ if self.waiters().is_closed() => return Err(WaitRefused),
                _ => joined.await,
            }
        }
    }

    async fn environment_connections(&self, environment: &EnvironmentId) -> EnvironmentConnections {
        let Some((orchestrators, streams)) = self.environment_counts(environment) else {
            return EnvironmentConnections::default();
        };
        // A superseded websocket is in the table until it has closed.
        let current = self.joined_registration(environment);
        let executor = self.executor(environment);
        let executor = executor.filter(|found| Some(&found.registration) == current.as_ref());
        let executor = executor.map(|executor| executor.live());
        EnvironmentConnections { executor, orchestrators, streams, draining: self.is_draining() }
    }

    async fn node_connections(&self) -> NodeConnections {
        let counts = self.counts();
        NodeConnections {
            executors: counts.executors,
            orchestrators: counts.orchestrators,
            streams: counts.streams,
            draining: self.is_draining(),
        }
    }

    async fn connections(
        &self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
        limit: usize,
    ) -> Vec<ConnectionEntry> {
        let page = self.page(environment, after, limit);
        page.iter().map(|connection| connection.entry()).collect()
    }

    async fn probe(&self, environment: &EnvironmentId) -> bool {
        match self.executor(environment) {
            Some(executor) => timeout(limits::PROBE_TIMEOUT, executor.ping()).await.is_ok(),
            None => false,
        }
    }
}
