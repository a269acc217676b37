//! Environments: their current state and their history.

use std::collections::BTreeMap;

use rendez_proto::audit::AuditKind;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::environments::{
    ConnectionRecord, EndReason, EnvironmentDetail, EnvironmentEntry, EnvironmentList,
    EnvironmentState, LiveExecutor,
};
use rendez_proto::registry::error::{Absence, AbsenceState};

use tokio::time::timeout;

use super::context::Context;
use crate::model::{Caller, Environment, Forbidden, Role, Subject};
use crate::page;
use crate::store;
use crate::store::StoreError;
use crate::store::connections::ConnectionRow;
use crate::traits::EnvironmentConnections;

/// Why an operation on environments failed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The caller is at fault.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The roles that may read environments.
const READERS: [Role; 2] = [Role::Admin, Role::Orchestrator];

/// The environments of a registry.
#[derive(Clone, Copy)]
pub struct Environments<'a> {
    ctx: &'a Context,
}

impl<'a> Environments<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl Environments<'_> {
    /// Returns one page of the environments that the caller's token covers.
    ///
    /// # Errors
    /// See [`ListError`].
    pub async fn list(
        self,
        caller: &Caller,
        after: Option<&EnvironmentId>,
    ) -> Result<EnvironmentList, ListError> {
        caller.require_role(&READERS)?;
        let covered = caller.patterns(&READERS);
        let mut page =
            self.ctx.store().environments(&covered, after, limits::LIST_PAGE_MAX).await?;
        // the store applies the same patterns; this check decides
        page.retain(|environment| caller.has_role_in(&READERS, &environment.id));
        let next = page::next_cursor(&page, |last| last.id.clone());
        let ids: Vec<_> = page.iter().map(|environment| environment.id.clone()).collect();
        let mut connections = BTreeMap::new();
        if !ids.is_empty() {
            self.flush_history().await;
            for connection in self.ctx.store().last_connections(&ids).await? {
                connections.insert(connection.environment.clone(), connection);
            }
        }
        let mut environments = Vec::new();
        for environment in page {
            let id = environment.id.clone();
            let live = self.ctx.presence().environment_connections(&id).await;
            environments.push(entry(environment, connections.get(&id), &live));
        }
        Ok(EnvironmentList { environments, next })
    }

    /// Returns the details of one environment. With `probe`, pings its executor
    /// first.
    ///
    /// # Errors
    /// See [`ListError`].
    pub async fn get(
        self,
        caller: &Caller,
        id: &EnvironmentId,
        probe: bool,
    ) -> Result<EnvironmentDetail, ListError> {
        caller.require_role(&READERS)?;
        if !caller.has_role_in(&READERS, id) {
            return Err(Forbidden::Environment.into());
        }
        if probe {
            // a missing pong shows as the age of the last one
            self.ctx.presence().probe(id).await;
        }
        let Some(environment) = self.ctx.store().environment(id).await? else {
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
        self.flush_history().await;
        let limit = self.ctx.history().retention().connections;
        let history = self.ctx.store().connections(id, limit).await?;
        let live = self.ctx.presence().environment_connections(id).await;
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

    /// Returns why an environment's executor is offline, and since when.
    pub(super) async fn absence(self, environment: &Environment) -> Result<Absence, StoreError> {
        self.flush_history().await;
        let last = self.ctx.store().connections(&environment.id, 1).await?;
        let (since, because) = offline_since(environment, last.first());
        Ok(Absence { state: AbsenceState::Offline, since_unix_secs: since, away_because: because })
    }

    /// Flushes the history, so that a connection that has just ended is not shown
    /// as open. If the database is slow or unavailable, the older state is shown.
    async fn flush_history(self) {
        if !matches!(
            timeout(store::WRITE_RETRY_PAUSE, self.ctx.history().flush()).await,
            Ok(Ok(()))
        ) {
            tracing::debug!(
                "reading the history of connections before its last entries are written"
            );
        }
    }

    /// Revokes an environment: its registration ends, all its websockets close
    /// within seconds, and no existing credential can register in it again.
    /// Returns `false` if it was never registered. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke(
        self,
        actor: Option<&Subject>,
        environment: &EnvironmentId,
    ) -> Result<bool, StoreError> {
        let what = format!("environment_revoked {environment}");
        let event = self.ctx.operator_event(AuditKind::Revoke, actor, what).await?;
        let found =
            self.ctx.store().revoke_environment(environment, self.ctx.now(), &event).await?;
        if found {
            tracing::info!(%environment, "environment revoked");
        }
        Ok(found)
    }
}

/// Returns since when an executor is offline, and why, as far as both are known.
fn offline_since(
    environment: &Environment,
    last: Option<&ConnectionRow>,
) -> (Option<u64>, Option<EndReason>) {
    let ended = last.and_then(|last| last.ended);
    let Some(registration) = &environment.registration else {
        // it may have been offline before; otherwise the end of its websocket has
        // the time
        let since = ended.filter(|(_, why)| *why == EndReason::Revoked).map(|(at, _)| at);
        return (since, Some(EndReason::Revoked));
    };
    match (ended, last) {
        (Some((at, why)), _) => (Some(at), Some(why)),
        // it is open, or its end is not written yet
        (None, Some(last)) if last.registration == registration.id => (None, None),
        // no connection under this registration, although an older one may be open
        (None, _) => (Some(registration.registered_at), None),
    }
}

fn entry(
    environment: Environment,
    last: Option<&ConnectionRow>,
    live: &EnvironmentConnections,
) -> EnvironmentEntry {
    let registration = environment.registration.as_ref();
    let current = |live: &&LiveExecutor| {
        registration.is_some_and(|own| own.id == live.executor_registration_id)
    };
    let executor = live.executor.as_ref().filter(current);
    let (state, since, because) = match executor {
        Some(executor) => {
            let state = match live.draining {
                true => EnvironmentState::Draining,
                false => EnvironmentState::Connected,
            };
            (state, Some(executor.connected_at_unix_secs), None)
        }
        None => {
            let (since, because) = offline_since(&environment, last);
            (EnvironmentState::Offline, since, because)
        }
    };
    let online = executor.is_some();
    let Environment { id, created_at, generation, registration } = environment;
    let registered_at = registration.as_ref().map(|registration| registration.registered_at);
    let (registration, profiles) =
        registration.map(|registration| (registration.id, registration.profiles)).unzip();
    EnvironmentEntry {
        environment_id: id,
        online,
        state,
        since_unix_secs: since,
        away_because: because,
        executor_registration_id: registration,
        generation,
        profiles: profiles.unwrap_or_default(),
        created_at_unix_secs: created_at,
        registered_at_unix_secs: registered_at,
    }
}

fn record(connection: ConnectionRow) -> ConnectionRecord {
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
    use rendez_proto::ids::Generation;

    use super::*;
    use crate::model::Grant;
    use crate::testing::{Fixture, START, env};

    #[tokio::test]
    async fn caller_lists_only_environments_of_its_pattern() {
        let fixture = Fixture::new().await;
        let executor = fixture.caller(Role::Executor, "*").await;
        for name in ["dev-1", "dev-2", "prod"] {
            fixture.register(&executor, name).await;
        }
        fixture.online(&executor, "dev-2").await;
        let list = async |role, pattern: &str, after: Option<&str>| {
            let caller = fixture.caller(role, pattern).await;
            let after = after.map(env);
            fixture.registry.environments().list(&caller, after.as_ref()).await.map(|list| {
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

    #[tokio::test]
    async fn page_cursor_is_visible_to_the_caller() {
        let fixture = Fixture::new().await;
        let path = fixture.dir.path().join(crate::registry::DATABASE_FILE);
        let store = crate::store::sqlite::SqliteStore::open(&path).await.unwrap();
        for (name, count) in [("a-hidden", 1500), ("ci", 1001), ("d-hidden", 1500)] {
            let sql = format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) \
                 INSERT INTO environments (id, generation, created_at) \
                 SELECT printf('{name}-%04d', i), 1, 0 FROM n"
            );
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
        }
        let pages = async |caller: &Caller| {
            let (mut after, mut pages) = (None, Vec::new());
            loop {
                let list =
                    fixture.registry.environments().list(caller, after.as_ref()).await.unwrap();
                let seen =
                    |entry: &EnvironmentEntry| caller.has_role_in(&READERS, &entry.environment_id);
                assert!(list.environments.iter().all(seen));
                pages.push(list.environments.len());
                after = list.next;
                match &after {
                    None => return pages,
                    Some(next) => assert!(caller.has_role_in(&READERS, next), "{next}"),
                }
            }
        };
        let some = fixture.caller(Role::Orchestrator, "c*-*").await;
        assert_eq!(pages(&some).await, [1000, 1]);
        let none = fixture.caller(Role::Orchestrator, "b-*").await;
        assert_eq!(pages(&none).await, [0]);
        let two = ["ci-000*", "ci-100*"].map(|pattern| Grant {
            role: Role::Orchestrator,
            environments: pattern.parse().unwrap(),
        });
        let hidden = Grant { role: Role::Executor, environments: "*".parse().unwrap() };
        let grants = two.into_iter().chain([hidden]).collect();
        assert_eq!(pages(&Caller { grants, ..some }).await, [11]);
        let admin = fixture.caller(Role::Admin, "*").await;
        assert_eq!(pages(&admin).await, [1000, 1000, 1000, 1000, 1]);
    }

    #[tokio::test]
    async fn environment_stays_listed_after_registration_ends() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let executor = fixture.caller(Role::Executor, "*").await;
        let admin = fixture.caller(Role::Admin, "*").await;
        for (whole, name) in [(false, "dev"), (true, "prod")] {
            let registered = fixture.online(&executor, name).await.executor_registration_id;
            let history = registry.history();
            let connection = ConnectionRow {
                id: history.next_id(),
                environment: env(name),
                registration: registered.clone(),
                generation: Generation(1),
                connected_at: START,
                ended: Some((START + 3, EndReason::Revoked)),
                received_bytes: 1,
                sent_bytes: 2,
            };
            history.record(connection.clone());
            let detail = registry.environments().get(&admin, &env(name), false).await.unwrap();
            let entry = detail.entry.unwrap();
            assert_eq!((entry.online, entry.executor_registration_id), (true, Some(registered)));

            match whole {
                true => assert!(registry.environments().revoke(None, &env(name)).await.unwrap()),
                false => {
                    drop(registry.registrations().end(None, &env(name)).await.unwrap().unwrap())
                }
            }
            let detail = registry.environments().get(&admin, &env(name), false).await.unwrap();
            assert_eq!(detail.state, EnvironmentState::Offline);
            assert_eq!(detail.history, [record(connection)]);
            let expected = EnvironmentEntry {
                environment_id: env(name),
                online: false,
                state: EnvironmentState::Offline,
                since_unix_secs: Some(START + 3),
                away_because: Some(EndReason::Revoked),
                executor_registration_id: None,
                generation: Generation(1),
                profiles: vec![],
                created_at_unix_secs: START,
                registered_at_unix_secs: None,
            };
            assert_eq!(detail.entry.as_ref(), Some(&expected));
            let list = registry.environments().list(&admin, None).await.unwrap().environments;
            assert_eq!(list.last(), Some(&expected));
        }
        assert_eq!(registry.environments().list(&admin, None).await.unwrap().environments.len(), 2);
        assert!(registry.registrations().list(None).await.unwrap().registrations.is_empty());
        let never = registry.environments().get(&admin, &env("never"), false).await.unwrap();
        assert_eq!((never.state, never.entry), (EnvironmentState::NeverSeen, None));
    }
}
