//! Purging environments: when a registry is full, the environments that are
//! offline longest make room, with their history.
//!
//! Invariants
//!
//! * No decision is undone. A revoked environment stays, since only it records
//!   which credentials are refused; so do tokens and enrolled keys.
//! * A purged registration ends like any other: its ticket is refused, and a
//!   websocket that is open under it although the history does not have it is
//!   closed. Its executor registers again by itself.
//! * A name that comes back gets a generation above those of all purged
//!   environments.
//! * The search for environments to purge blocks no writer, and only one runs at a
//!   time. After one that found nothing, the next starts no earlier than
//!   [`capacity::ENVIRONMENTS_PURGE_PAUSE`] later.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use tokio::time::Instant;

use super::database::{Database, DurableTransaction};
use super::rows::{seconds, text};
use super::{audit, revocations};
use crate::model::Revocation;
use crate::store::StoreError;
use crate::store::capacity;

/// Selects the environments that may be purged, with their registrations if they
/// have any. `$rest` narrows and orders them. An environment without a
/// registration may be purged at once, one with a registration if it is offline
/// since `?1` or longer.
macro_rules! purgeable {
    ($rest:literal) => {
        concat!(
            "SELECT environments.id AS name, registrations.id AS registration \
             FROM environments \
             LEFT JOIN registrations ON registrations.environment = environments.id \
             LEFT JOIN connections ON connections.seq = \
                 (SELECT max(seq) FROM connections WHERE environment = environments.id) \
             WHERE environments.revoked_seq IS NULL \
             AND (connections.seq IS NULL OR connections.ended_at IS NOT NULL) \
             AND (registrations.id IS NULL \
                 OR max(coalesce(connections.ended_at, 0), registrations.registered_at) <= ?1) ",
            $rest
        )
    };
}

/// Purges the environments that are offline longest, unless there is room. Returns
/// `false` if none may be purged.
pub(super) async fn make_room(db: &Database, now: u64) -> Result<bool, StoreError> {
    let mut found_none = db.purge_found_none.lock().await;
    let mut reading = db.pool.acquire().await?;
    if count(&mut reading).await? < i64::from(db.capacity.environments) {
        return Ok(true);
    }
    if found_none.is_some_and(|at| at.elapsed() < capacity::ENVIRONMENTS_PURGE_PAUSE) {
        return Ok(false);
    }
    let since = seconds(now.saturating_sub(capacity::ENVIRONMENTS_OFFLINE_KEPT.as_secs()));
    let found: Vec<(String, Option<String>)> = sqlx::query_as(purgeable!(
        "ORDER BY registrations.id IS NOT NULL, max(coalesce(connections.ended_at, 0), \
         coalesce(registrations.registered_at, environments.created_at)) LIMIT ?2"
    ))
    .bind(since)
    .bind(capacity::ENVIRONMENTS_PURGE_BATCH)
    .fetch_all(&mut *reading)
    .await?;
    drop(reading);

    let mut tx = db.write_durable().await?;
    let (mut environments, mut connections) = (0_u32, 0);
    for (name, _) in found {
        // an environment that has come back meanwhile stays
        let again = sqlx::query(purgeable!("AND environments.id = ?2")).bind(since).bind(name);
        let Some(row) = again.fetch_optional(&mut *tx).await? else { continue };
        connections += purge(&mut tx, &row, now).await?;
        environments += 1;
        if connections >= u64::from(capacity::CONNECTIONS_PRUNE_BATCH) {
            break;
        }
    }
    tx.commit().await?;
    *found_none = (environments == 0).then(Instant::now);
    if environments > 0 {
        tracing::info!(environments, "purged the environments that were offline longest");
    }
    Ok(environments > 0)
}

/// Returns the number of environments.
pub(super) async fn count(db: &mut SqliteConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM environments").fetch_one(db).await?)
}

/// Returns the highest generation of all purged environments.
pub(super) async fn last_generation(tx: &mut SqliteConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar("SELECT generation FROM forgotten").fetch_one(tx).await?)
}

/// Purges one row of `purgeable` and returns the number of its connections.
async fn purge(
    tx: &mut DurableTransaction,
    found: &SqliteRow,
    now: u64,
) -> Result<u64, StoreError> {
    let name: EnvironmentId = text(found, "name")?;
    let registration = match found.try_get::<Option<&str>, _>("registration")? {
        None => None,
        Some(_) => Some(text::<RegistrationId>(found, "registration")?),
    };
    sqlx::query(
        "UPDATE forgotten SET generation = \
         max(generation, (SELECT generation FROM environments WHERE id = ?))",
    )
    .bind(name.as_str())
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM registrations WHERE environment = ?")
        .bind(name.as_str())
        .execute(&mut **tx)
        .await?;
    sqlx::query("DELETE FROM environments WHERE id = ?")
        .bind(name.as_str())
        .execute(&mut **tx)
        .await?;
    let connections = sqlx::query("DELETE FROM connections WHERE environment = ?")
        .bind(name.as_str())
        .execute(&mut **tx)
        .await?;
    if let Some(registration) = &registration {
        revocations::insert(tx, &Revocation::Registration(registration.clone()), now).await?;
    }
    let event = AuditEvent {
        environment: Some(name),
        registration,
        what: Some("forgotten".to_owned()),
        ..AuditEvent::new(AuditKind::Register, now)
    };
    audit::append_event(tx, &event).await?;
    Ok(connections.rows_affected())
}

#[cfg(test)]
mod tests {
    use rendez_proto::ids::Generation;
    use rendez_proto::registry::admin::Role;
    use rendez_proto::registry::environments::EndReason;

    use super::*;
    use crate::model::{NewRegistration, Registration};
    use crate::store::connections::{ConnectionId, ConnectionRow, ConnectionUpdate};
    use crate::store::sqlite::SqliteStore;
    use crate::store::{
        AuditStore as _, ConnectionStore as _, RegisterOutcome, RegistrationStore as _,
        RevocationStore as _, TokenStore as _,
    };
    use crate::testing::{audit_event, env, key, token};

    const NOW: u64 = 1_800_000_000;
    const DAY: u64 = capacity::ENVIRONMENTS_OFFLINE_KEPT.as_secs();

    struct Full {
        store: SqliteStore,
        _dir: tempfile::TempDir,
    }

    impl Full {
        /// A store with room for this many environments.
        async fn new(environments: u32) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
            store.db.capacity.environments = environments;
            let token = token(1, Role::Executor);
            store.insert_token(&token, &audit_event()).await.unwrap();
            Self { store, _dir: dir }
        }

        async fn claim(&self, name: &str, now: u64) -> Result<Registration, StoreError> {
            let new = NewRegistration {
                environment: env(name),
                id: format!("reg_{name}-{now}").parse().unwrap(),
                key: key(1),
                profiles: vec![],
                subject: token(1, Role::Executor).id.into(),
            };
            match self.store.put_registration(&new, now).await? {
                RegisterOutcome::Registered(registration) => Ok(registration),
                other => panic!("{other:?}"),
            }
        }

        async fn connected(&self, number: u64, name: &str, ended: Option<u64>) {
            let connection = ConnectionRow {
                id: ConnectionId { instance: 1, number },
                environment: env(name),
                registration: "reg_a".parse().unwrap(),
                generation: Generation(1),
                connected_at: 1,
                ended: ended.map(|at| (at, EndReason::SocketError)),
                received_bytes: 0,
                sent_bytes: 0,
            };
            let note = ConnectionUpdate { connection, inserted: false };
            self.store.write_connections(&[note], 50).await.unwrap();
        }

        async fn names(&self) -> Vec<String> {
            let all = [crate::model::TokenPattern::everything()];
            let list = self.store.environments(&all, None, 1000).await.unwrap();
            list.iter().map(|environment| environment.id.to_string()).collect()
        }
    }

    #[tokio::test]
    async fn longest_offline_environments_are_purged() {
        let full = Full::new(6).await;
        let store = &full.store;
        for name in ["here", "back", "fresh", "gone", "revoked", "ended"] {
            full.claim(name, NOW - 9 * DAY).await.unwrap();
        }
        full.claim("gone", NOW - 9 * DAY).await.unwrap();
        full.connected(1, "here", None).await;
        full.connected(2, "gone", Some(NOW - DAY)).await;
        // offline for long, but registered a moment ago
        full.connected(3, "fresh", Some(NOW - 8 * DAY)).await;
        full.claim("fresh", NOW - DAY + 1).await.unwrap();
        // came back
        full.connected(4, "back", Some(NOW - 8 * DAY)).await;
        full.connected(5, "back", None).await;
        assert!(store.revoke_environment(&env("revoked"), NOW, &audit_event()).await.unwrap());
        store.remove_registration(&env("ended"), NOW, &audit_event()).await.unwrap().unwrap();
        full.connected(6, "ended", Some(NOW - 1)).await;

        let before = store.last_revocation().await.unwrap();
        let new = full.claim("new", NOW).await.unwrap();
        assert_eq!(new.generation, Generation(3), "above that of all that were forgotten");
        assert_eq!(full.names().await, ["back", "fresh", "here", "new", "revoked"]);
        assert!(store.connections(&env("gone"), 9).await.unwrap().is_empty());
        let revoked = store.revocations(before, 9).await.unwrap().revocations;
        let gone = format!("reg_gone-{}", NOW - 9 * DAY).parse().unwrap();
        let revoked: Vec<_> = revoked.into_iter().map(|(_, what)| what).collect();
        assert_eq!(revoked, [Revocation::Registration(gone)]);
        let rows = store.audit_rows(0, 100).await.unwrap();
        let forgotten = rows.into_iter().filter_map(|row| {
            let AuditEvent { kind, what, environment, .. } = row.event;
            let what = what.filter(|what| what == "forgotten")?;
            Some(format!("{} {what} {}", kind.as_str(), environment?))
        });
        let forgotten: Vec<_> = forgotten.collect();
        assert_eq!(forgotten, ["register forgotten ended", "register forgotten gone"]);

        // a purged environment can register again, a revoked one cannot
        let again = full.claim("gone", NOW).await.unwrap();
        assert_eq!(again.generation, Generation(3));
        let refused = full.claim("more", NOW).await;
        let what = "environments";
        assert!(
            matches!(refused, Err(StoreError::LimitReached { what: of, max: 6 }) if of == what)
        );
        full.claim("here", NOW).await.unwrap();
    }

    #[tokio::test]
    async fn fruitless_purge_is_not_repeated_at_once() {
        let full = Full::new(2).await;
        for name in ["one", "two"] {
            full.claim(name, NOW).await.unwrap();
        }
        let looked = async || *full.store.db.purge_found_none.lock().await;
        assert_eq!(looked().await, None);
        assert!(full.claim("new", NOW).await.is_err());
        let first = looked().await;
        assert!(first.is_some());
        // a day later by the registry's clock, but within the pause
        assert!(full.claim("new", NOW + DAY).await.is_err());
        assert_eq!(looked().await, first);
        let pause = capacity::ENVIRONMENTS_PURGE_PAUSE;
        *full.store.db.purge_found_none.lock().await = first.and_then(|at| at.checked_sub(pause));
        full.claim("new", NOW + DAY).await.unwrap();
        assert_eq!((full.names().await, looked().await), (vec!["new".to_owned()], None));
    }

    #[tokio::test]
    async fn concurrent_registrations_all_find_room() {
        let full = Full::new(70).await;
        for n in 0..70 {
            full.claim(&format!("old-{n}"), NOW).await.unwrap();
        }
        let names: Vec<_> = (0..10).map(|n| format!("new-{n}")).collect();
        let claims = names.iter().map(|name| full.claim(name, NOW + DAY));
        for claimed in futures_util::future::join_all(claims).await {
            claimed.unwrap();
        }
        let names = full.names().await;
        assert_eq!(names.iter().filter(|name| name.starts_with("new")).count(), 10);
        assert_eq!(names.len() as u32, 70 - capacity::ENVIRONMENTS_PURGE_BATCH + 10);
    }
}
