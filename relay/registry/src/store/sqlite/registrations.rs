//! The tables of environments and registrations.

use async_trait::async_trait;
use rendez_proto::audit::AuditEvent;
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::database::Database;
use super::rows::{bytes, number, seconds, text, texts};
use super::{SqliteStore, audit, environment_purge, revocations, tokens};
use crate::model::{Environment, NewRegistration, Registration, Revocation, Subject, TokenPattern};
use crate::stats::StoreCall;
use crate::store::{RegisterOutcome, RegistrationStore, StoreError, UseOutcome};

/// Selects environments, with their registrations if they have any. The arguments
/// go before and behind. Columns of the same name are those of the registration.
macro_rules! environments {
    ($rest:literal) => {
        environments!("", $rest)
    };
    ($before:literal, $rest:literal) => {
        concat!(
            $before,
            "SELECT environments.id AS name, environments.generation AS last_generation, \
             environments.created_at, registrations.* FROM environments \
             LEFT JOIN registrations ON registrations.environment = environments.id ",
            $rest
        )
    };
}

#[async_trait]
impl RegistrationStore for SqliteStore {
    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<RegisterOutcome, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteEnvironments, async {
                // Ends: in each further iteration another caller took the room.
                loop {
                    match put_if_there_is_room(&self.db, new, now).await {
                        Err(StoreError::LimitReached { .. })
                            if environment_purge::make_room(&self.db, now).await? => {}
                        result => return result,
                    }
                }
            })
            .await
    }

    async fn registration(
        &self,
        environment: &EnvironmentId,
    ) -> Result<Option<Registration>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadEnvironments, async { get(&self.db.pool, environment).await })
            .await
    }

    async fn environments(
        &self,
        covered: &[TokenPattern],
        after: Option<&EnvironmentId>,
        limit: u32,
    ) -> Result<Vec<Environment>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadEnvironments, async {
                // Reads all environments at most and returns only covered ones, so
                // that the last id of a page is covered too.
                let sql = environments!(
                    "WITH covered (pattern) AS MATERIALIZED (SELECT value FROM json_each(?)) ",
                    "WHERE EXISTS (SELECT 1 FROM covered WHERE environments.id GLOB pattern) \
         AND environments.id > ? ORDER BY environments.id LIMIT ?"
                );
                sqlx::query(sql)
                    .bind(texts(covered.iter().map(TokenPattern::as_str)))
                    .bind(after.map_or("", EnvironmentId::as_str))
                    .bind(limit)
                    .fetch_all(&self.db.lists)
                    .await?
                    .iter()
                    .map(listed)
                    .collect()
            })
            .await
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadEnvironments, async {
                sqlx::query(environments!("WHERE environments.id = ?"))
                    .bind(id.as_str())
                    .fetch_optional(&self.db.pool)
                    .await?
                    .map(|row| listed(&row))
                    .transpose()
            })
            .await
    }

    async fn remove_registration(
        &self,
        environment: &EnvironmentId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<Option<RegistrationId>, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteEnvironments, async {
                let mut tx = self.db.write_durable().await?;
                let Some(found) = get(&mut *tx, environment).await? else { return Ok(None) };
                delete(&mut tx, environment).await?;
                revocations::insert(&mut tx, &Revocation::Registration(found.id.clone()), now)
                    .await?;
                audit::append_event(&mut tx, event).await?;
                tx.commit().await?;
                Ok(Some(found.id))
            })
            .await
    }

    async fn revoke_environment(
        &self,
        environment: &EnvironmentId,
        now: u64,
        event: &AuditEvent,
    ) -> Result<bool, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteEnvironments, async {
                let mut tx = self.db.write_durable().await?;
                let gone = Revocation::Environment(environment.clone());
                let seq = revocations::insert(&mut tx, &gone, now).await?;
                let done = sqlx::query("UPDATE environments SET revoked_seq = ? WHERE id = ?")
                    .bind(seq)
                    .bind(environment.as_str())
                    .execute(&mut *tx)
                    .await?;
                if done.rows_affected() == 0 {
                    return Ok(false);
                }
                delete(&mut tx, environment).await?;
                // executors enrolled for this environment have no other use
                sqlx::query(
                    "UPDATE tokens SET revoked_at = ? \
         WHERE environments = ? AND ed25519 IS NOT NULL AND revoked_at IS NULL",
                )
                .bind(seconds(now))
                .bind(environment.as_str())
                .execute(&mut *tx)
                .await?;
                audit::append_event(&mut tx, event).await?;
                tx.commit().await?;
                Ok(true)
            })
            .await
    }
}

async fn put_if_there_is_room(
    db: &Database,
    new: &NewRegistration,
    now: u64,
) -> Result<RegisterOutcome, StoreError> {
    let mut tx = db.write().await?;
    match tokens::count_use(&mut tx, &new.subject, now).await? {
        UseOutcome::Allowed => {}
        UseOutcome::UsedUp => return Ok(RegisterOutcome::UsedUp),
        UseOutcome::Inactive => return Ok(RegisterOutcome::Inactive),
    }
    let last: Option<(i64, Option<i64>)> =
        sqlx::query_as("SELECT generation, revoked_seq FROM environments WHERE id = ?")
            .bind(new.environment.as_str())
            .fetch_optional(&mut *tx)
            .await?;
    if let Some((_, Some(revoked))) = last
        && made_seq(&mut tx, &new.subject).await?.is_none_or(|made| made < revoked)
    {
        return Ok(RegisterOutcome::EnvironmentRevoked);
    }
    let last = match last {
        Some((last, _)) => last,
        None => {
            let max = db.capacity.environments;
            if environment_purge::count(&mut tx).await? >= i64::from(max) {
                return Err(StoreError::LimitReached { what: "environments", max });
            }
            environment_purge::last_generation(&mut tx).await?
        }
    };
    let next = last.checked_add(1).ok_or(StoreError::Corrupt("generation"))?;
    sqlx::query(
        "INSERT INTO environments (id, generation, created_at) VALUES (?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET generation = excluded.generation",
    )
    .bind(new.environment.as_str())
    .bind(next)
    .bind(seconds(now))
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT OR REPLACE INTO registrations (environment, id, generation, x25519, \
         mlkem768, profiles, subject, registered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(new.environment.as_str())
    .bind(new.id.as_str())
    .bind(next)
    .bind(new.key.x25519().as_slice())
    .bind(new.key.mlkem768().map(|key| key.as_slice()))
    .bind(profile_names(&new.profiles))
    .bind(new.subject.to_string())
    .bind(seconds(now))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(RegisterOutcome::Registered(Registration {
        environment: new.environment.clone(),
        id: new.id.clone(),
        generation: Generation(next.unsigned_abs()),
        key: new.key.clone(),
        profiles: new.profiles.clone(),
        subject: new.subject.clone(),
        registered_at: now,
    }))
}

/// Returns the number of the last revocation before the credential was created;
/// `None` for those of other issuers, which is not known.
async fn made_seq(tx: &mut SqliteConnection, subject: &Subject) -> Result<Option<i64>, StoreError> {
    let Subject::Token(id) = subject else { return Ok(None) };
    let found = sqlx::query_scalar("SELECT made_seq FROM tokens WHERE id = ?").bind(id.as_str());
    Ok(found.fetch_optional(tx).await?)
}

async fn get(
    db: impl sqlx::SqliteExecutor<'_>,
    environment: &EnvironmentId,
) -> Result<Option<Registration>, StoreError> {
    sqlx::query("SELECT * FROM registrations WHERE environment = ?")
        .bind(environment.as_str())
        .fetch_optional(db)
        .await?
        .map(|row| registration(&row))
        .transpose()
}

fn listed(row: &SqliteRow) -> Result<Environment, StoreError> {
    let registered = row.try_get::<Option<&str>, _>("environment")?.is_some();
    Ok(Environment {
        id: text(row, "name")?,
        created_at: number(row, "created_at")?,
        generation: Generation(number(row, "last_generation")?),
        registration: if registered { Some(registration(row)?) } else { None },
    })
}

async fn delete(tx: &mut SqliteConnection, environment: &EnvironmentId) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM registrations WHERE environment = ?")
        .bind(environment.as_str())
        .execute(tx)
        .await?;
    Ok(())
}

fn registration(row: &SqliteRow) -> Result<Registration, StoreError> {
    let x25519 = bytes(row, "x25519")?;
    let key = match row.try_get::<Option<&[u8]>, _>("mlkem768")? {
        None => PublicKey::x25519_only(x25519),
        Some(mlkem768) => PublicKey::hybrid(
            x25519,
            Box::<[u8]>::from(mlkem768).try_into().map_err(|_| StoreError::Corrupt("mlkem768"))?,
        ),
    };
    Ok(Registration {
        environment: text(row, "environment")?,
        id: text(row, "id")?,
        generation: Generation(number(row, "generation")?),
        key,
        profiles: profiles(row.try_get("profiles")?)?,
        subject: text(row, "subject")?,
        registered_at: number(row, "registered_at")?,
    })
}

fn profile_names(profiles: &[Profile]) -> String {
    profiles.iter().map(|profile| profile.name()).collect::<Vec<_>>().join(" ")
}

fn profiles(names: &str) -> Result<Vec<Profile>, StoreError> {
    names
        .split_ascii_whitespace()
        .map(|name| name.parse().map_err(|_| StoreError::Corrupt("profile")))
        .collect()
}
