//! What is known about environments: what was registered, what is connected
//! now, and what was before.

use std::collections::BTreeMap;

use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::environments::{
    ConnectionRecord, EndReason, EnvironmentDetail, EnvironmentEntry, EnvironmentList,
    EnvironmentState,
};
use rendez_proto::registry::error::{Absence, AbsenceState};

use tokio::time::timeout;

use super::Registry;
use crate::model::{Caller, Environment, Forbidden, Registration, Role};
use crate::seam::Live;
use crate::store::StoreError;
use crate::store::records::Connection;

/// Why environments were not shown.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The caller's fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// Ours, for now.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Who may look at environments.
const READERS: [Role; 2] = [Role::Admin, Role::Orchestrator];

impl Registry {
    /// The environments that the caller's token covers, one page of them.
    ///
    /// # Errors
    /// See [`ListError`].
    pub async fn environments(
        &self,
        caller: &Caller,
        after: Option<&EnvironmentId>,
    ) -> Result<EnvironmentList, ListError> {
        caller.must_be(&READERS)?;
        let page = self.store().environments(after, limits::LIST_PAGE_MAX).await?;
        // a full page may have a successor, even if the caller sees none of it
        let full = page.len() >= limits::LIST_PAGE_MAX as usize;
        let id = |environment: &Environment| environment.registration.environment.clone();
        let (first, last) = (page.first().map(id), page.last().map(id));
        let mut connections = BTreeMap::new();
        if let (Some(first), Some(last)) = (&first, &last) {
            self.settle_history().await;
            for connection in self.records().last_connections(first, last).await? {
                connections.insert(connection.environment.clone(), connection);
            }
        }
        let mut environments = Vec::new();
        for environment in page {
            let id = environment.registration.environment.clone();
            if caller.sees(&READERS, &id) {
                let live = self.presence().live(&id).await;
                environments.push(entry(environment, connections.get(&id), &live));
            }
        }
        Ok(EnvironmentList { environments, next: last.filter(|_| full) })
    }

    /// All about one environment. With `probe`, its executor is pinged first.
    ///
    /// # Errors
    /// See [`ListError`].
    pub async fn environment(
        &self,
        caller: &Caller,
        id: &EnvironmentId,
        probe: bool,
    ) -> Result<EnvironmentDetail, ListError> {
        caller.must_be(&READERS)?;
        if !caller.sees(&READERS, id) {
            return Err(Forbidden::Environment.into());
        }
        if probe {
            // without an answer, the age of the last one says so
            self.presence().probe(id).await;
        }
        let Some(environment) = self.store().environment(id).await? else {
            return Ok(EnvironmentDetail {
                environment_id: id.clone(),
                state: EnvironmentState::NeverSeen,
                entry: None,
                executor: None,
                orchestrators: 0,
                streams: 0,
                history: vec![],
            });
        };
        self.settle_history().await;
        let limit = self.history().kept().connections;
        let history = self.records().connections(id, limit).await?;
        let live = self.presence().live(id).await;
        let entry = entry(environment, history.first(), &live);
        Ok(EnvironmentDetail {
            environment_id: id.clone(),
            state: entry.state,
            entry: Some(entry),
            executor: live.executor,
            orchestrators: live.orchestrators as u64,
            streams: live.streams as u64,
            history: history.into_iter().map(record).collect(),
        })
    }

    /// Why a registered environment's executor is away, and since when.
    pub(super) async fn absence(&self, registration: &Registration) -> Result<Absence, StoreError> {
        self.settle_history().await;
        let last = self.records().connections(&registration.environment, 1).await?;
        let (since, because) = away(registration, last.first());
        Ok(Absence {
            state: AbsenceState::Offline,
            since_unix_secs: Some(since),
            away_because: because,
        })
    }

    /// So that what has just ended is not shown as open. A database that takes
    /// nothing now still answers, with what it knew before.
    async fn settle_history(&self) {
        if !matches!(timeout(limits::WRITE_RETRY_PAUSE, self.history().flush()).await, Ok(Ok(()))) {
            tracing::debug!("the history of connections is read before it is written");
        }
    }

    /// For a relay that starts: connections that are open in the history are
    /// those of one that died.
    ///
    /// # Errors
    /// The store's.
    pub async fn take_over_history(&self) -> Result<u64, StoreError> {
        let why = EndReason::RelayRestarted;
        let ended = self.records().end_open_connections(self.now(), why).await?;
        if ended > 0 {
            tracing::info!(ended, "connections of a relay that did not stop in good order");
        }
        Ok(ended)
    }
}

/// Since when an executor that is not connected is away, and why: since its
/// last connection ended, or, if it never had one, since it registered.
fn away(registration: &Registration, last: Option<&Connection>) -> (u64, Option<EndReason>) {
    match last.and_then(|last| last.ended) {
        Some((at, why)) => (at, Some(why)),
        None => (registration.registered_at, None),
    }
}

fn entry(environment: Environment, last: Option<&Connection>, live: &Live) -> EnvironmentEntry {
    let Environment { created_at, registration } = environment;
    let executor =
        live.executor.as_ref().filter(|live| live.executor_registration_id == registration.id);
    let (state, since, because) = match executor {
        Some(executor) => {
            let state = match live.draining {
                true => EnvironmentState::Draining,
                false => EnvironmentState::Connected,
            };
            (state, executor.connected_at_unix_secs, None)
        }
        None => {
            let (since, because) = away(&registration, last);
            (EnvironmentState::Offline, since, because)
        }
    };
    EnvironmentEntry {
        environment_id: registration.environment,
        online: executor.is_some(),
        state,
        since_unix_secs: Some(since),
        away_because: because,
        executor_registration_id: registration.id,
        generation: registration.generation,
        profiles: registration.profiles,
        created_at_unix_secs: created_at,
        registered_at_unix_secs: registration.registered_at,
    }
}

fn record(connection: Connection) -> ConnectionRecord {
    ConnectionRecord {
        executor_registration_id: connection.registration,
        generation: connection.generation,
        connected_at_unix_secs: connection.connected_at,
        ended_at_unix_secs: connection.ended.map(|(at, _)| at),
        ended_because: connection.ended.map(|(_, why)| why),
        received_bytes: connection.received_bytes,
        sent_bytes: connection.sent_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fixture, env};

    #[tokio::test]
    async fn a_caller_sees_the_environments_of_its_pattern() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "*").await;
        for name in ["dev-1", "dev-2", "prod"] {
            fixture.register(&executor, name).await;
        }
        fixture.online(&executor, "dev-2").await;
        let list = async |role, pattern: &str, after: Option<&str>| {
            let caller = fixture.caller(role, pattern).await;
            let after = after.map(env);
            fixture.registry.environments(&caller, after.as_ref()).await.map(|list| {
                let seen = |e: EnvironmentEntry| (e.environment_id.to_string(), e.online);
                list.environments.into_iter().map(seen).collect::<Vec<_>>()
            })
        };
        let (one, two, prod) =
            (("dev-1".to_owned(), false), ("dev-2".to_owned(), true), ("prod".to_owned(), false));
        let all = list(Role::Admin, "*", None).await.unwrap();
        assert_eq!(all, [one.clone(), two.clone(), prod]);
        assert_eq!(list(Role::Orchestrator, "dev-*", None).await.unwrap(), [one, two.clone()]);
        assert_eq!(list(Role::Orchestrator, "dev-*", Some("dev-1")).await.unwrap(), [two]);
        let refused = list(Role::Executor, "*", None).await;
        assert!(matches!(refused, Err(ListError::Forbidden(Forbidden::Role))));
    }
}
