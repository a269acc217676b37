//! The store in one SQLite file, shared by the processes of one machine.
//!
//! WAL: readers never wait; writers take turns, and take theirs at `BEGIN`
//! (`IMMEDIATE`), so that no transaction fails half way for lock order.
//! `synchronous=NORMAL`: after a power cut the last commits may be gone. That
//! is safe here: a lost registration's ticket names an id that is not current,
//! whatever its generation, and a lost redemption would have to be replayed
//! within the minute that the ticket lives.

mod audit;
mod migrations;
mod records;
mod rows;

use std::error::Error;
use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, Generation};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row as _, Sqlite, Transaction};
use tokio::time::{Instant, sleep};

use self::rows::{bytes, number, optional_number, seconds, text};
use super::{Redeemed, Redemption, Store, StoreError};
use crate::model::{Environment, NewRegistration, Registration, Role, Token, TokenId};

/// The SQLite store.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
}

/// The database file cannot be used. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum SqliteOpenError {
    /// The file cannot be made or is not ours.
    #[error("database file: {0}")]
    File(#[from] io::Error),
    /// SQLite refuses it.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// A newer Rendez made it, or has brought it up to its own version.
    #[error(
        "the database has schema version {found}, which this Rendez does not know (it knows \
         versions up to {newest}); start the newer Rendez that made it, or restore a backup \
         from before the upgrade"
    )]
    Newer {
        /// A version that it has.
        found: i64,
        /// The newest that we know.
        newest: i64,
    },
    /// Its schema is not one of ours.
    #[error("database schema: {0}")]
    Schema(#[source] sqlx::migrate::MigrateError),
}

impl From<MigrateError> for SqliteOpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(found) => {
                Self::Newer { found, newest: migrations::newest() }
            }
            other => Self::Schema(other),
        }
    }
}

impl SqliteStore {
    /// Opens the database, makes it (mode 0600) if it does not exist, and
    /// brings its schema up to date. Waits for other processes that do the
    /// same: the switch to WAL fails at once if another connection is in the
    /// way, whatever the busy timeout.
    ///
    /// # Errors
    /// See [`SqliteOpenError`].
    pub async fn open(path: &Path) -> Result<Self, SqliteOpenError> {
        create_private(path)?;
        let deadline = Instant::now() + limits::DATABASE_OPEN_PATIENCE;
        loop {
            match Self::connect(path).await {
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    sleep(limits::REGISTER_RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn connect(path: &Path) -> Result<Self, SqliteOpenError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(limits::DATABASE_BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(limits::DATABASE_CONNECTIONS)
            .acquire_timeout(limits::DATABASE_BUSY_TIMEOUT)
            .connect_with(options)
            .await?;

        migrations::run(&pool).await?;
        Ok(Self { pool })
    }

    /// For tests that change the database behind the store's back.
    #[cfg(test)]
    pub(crate) fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Writes a copy, as it is at one moment, to a file that is empty. Nobody
    /// waits for it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn copy_into(&self, file: &Path) -> Result<(), StoreError> {
        let name =
            file.to_str().ok_or(StoreError::Corrupt("name of a file, which is not UTF-8"))?;
        sqlx::query("VACUUM INTO ?").bind(name).execute(&self.pool).await?;
        Ok(())
    }

    /// Waits for transactions to end and closes the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

/// Makes the file, for SQLite gives its WAL and index files the same mode. An
/// existing file is not opened: closing it would drop the locks that SQLite
/// holds on it elsewhere in this process.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::set_permissions(path, Permissions::from_mode(0o600))
        }
        result => result.map(drop),
    }
}

/// Whether another connection was in the way: SQLITE_BUSY or SQLITE_LOCKED.
fn is_busy(error: &SqliteOpenError) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
            let code = error.code().and_then(|code| code.parse::<u32>().ok());
            // the low byte is the error, the rest says more about it
            return matches!(code.map(|code| code & 0xff), Some(5 | 6));
        }
        next = error.source();
    }
    false
}

#[async_trait]
impl Store for SqliteStore {
    async fn insert_token(&self, token: &Token) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let count: i64 =
            sqlx::query_scalar("SELECT count(*) FROM tokens").fetch_one(&mut *tx).await?;
        if count >= i64::from(limits::TOKENS_MAX) {
            return Err(StoreError::LimitReached { what: "tokens", max: limits::TOKENS_MAX });
        }
        sqlx::query(
            "INSERT INTO tokens (id, role, environments, label, secret_sha256, created_at, \
             expires_at, revoked_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(token.id.as_str())
        .bind(role_name(token.role))
        .bind(token.environments.as_str())
        .bind(&token.label)
        .bind(token.secret_hash.as_slice())
        .bind(seconds(token.created_at))
        .bind(token.expires_at.map(seconds))
        .bind(token.revoked_at.map(seconds))
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    async fn token(&self, id: &TokenId) -> Result<Option<Token>, StoreError> {
        sqlx::query("SELECT * FROM tokens WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.pool)
            .await?
            .map(|row| token(&row))
            .transpose()
    }

    async fn tokens(&self, after: Option<&TokenId>, limit: u32) -> Result<Vec<Token>, StoreError> {
        sqlx::query("SELECT * FROM tokens WHERE id > ? ORDER BY id LIMIT ?")
            .bind(after.map_or("", TokenId::as_str))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(token)
            .collect()
    }

    async fn revoke_token(&self, id: &TokenId, now: u64) -> Result<bool, StoreError> {
        let done =
            sqlx::query("UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE id = ?")
                .bind(seconds(now))
                .bind(id.as_str())
                .execute(&self.pool)
                .await?;
        Ok(done.rows_affected() > 0)
    }

    async fn put_registration(
        &self,
        new: &NewRegistration,
        now: u64,
    ) -> Result<Registration, StoreError> {
        let mut tx = self.write().await?;
        let last: Option<i64> =
            sqlx::query_scalar("SELECT generation FROM environments WHERE id = ?")
                .bind(new.environment.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        let next = match last {
            Some(last) => last.checked_add(1).ok_or(StoreError::Corrupt("generation"))?,
            None => {
                let count: i64 = sqlx::query_scalar("SELECT count(*) FROM environments")
                    .fetch_one(&mut *tx)
                    .await?;
                if count >= i64::from(limits::ENVIRONMENTS_MAX) {
                    let max = limits::ENVIRONMENTS_MAX;
                    return Err(StoreError::LimitReached { what: "environments", max });
                }
                1
            }
        };
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
             mlkem768, profiles, token, registered_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(new.environment.as_str())
        .bind(new.id.as_str())
        .bind(next)
        .bind(new.key.x25519().as_slice())
        .bind(new.key.mlkem768().map(|key| key.as_slice()))
        .bind(profile_names(&new.profiles))
        .bind(new.token.as_str())
        .bind(seconds(now))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Registration {
            environment: new.environment.clone(),
            id: new.id.clone(),
            generation: Generation(next.unsigned_abs()),
            key: new.key.clone(),
            profiles: new.profiles.clone(),
            token: new.token.clone(),
            registered_at: now,
        })
    }

    async fn registration(
        &self,
        environment: &EnvironmentId,
    ) -> Result<Option<Registration>, StoreError> {
        sqlx::query("SELECT * FROM registrations WHERE environment = ?")
            .bind(environment.as_str())
            .fetch_optional(&self.pool)
            .await?
            .map(|row| registration(&row))
            .transpose()
    }

    async fn environments(
        &self,
        after: Option<&EnvironmentId>,
        limit: u32,
    ) -> Result<Vec<Environment>, StoreError> {
        sqlx::query(
            "SELECT registrations.*, environments.created_at FROM registrations \
             JOIN environments ON environments.id = registrations.environment \
             WHERE registrations.environment > ? ORDER BY registrations.environment LIMIT ?",
        )
        .bind(after.map_or("", EnvironmentId::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?
        .iter()
        .map(environment)
        .collect()
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        sqlx::query(
            "SELECT registrations.*, environments.created_at FROM registrations \
             JOIN environments ON environments.id = registrations.environment \
             WHERE registrations.environment = ?",
        )
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await?
        .map(|row| environment(&row))
        .transpose()
    }

    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<Redeemed, StoreError> {
        let mut tx = self.write().await?;
        let subject = sqlx::query("SELECT * FROM tokens WHERE id = ?")
            .bind(redemption.subject.as_str())
            .fetch_optional(&mut *tx)
            .await?
            .map(|row| token(&row))
            .transpose()?;
        if !subject.is_some_and(|token| token.is_active(now)) {
            return Ok(Redeemed::TokenInactive);
        }
        let done = sqlx::query(
            "INSERT INTO redeemed_tickets (id, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(redemption.ticket.as_slice())
        .bind(seconds(redemption.expires_at))
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM redeemed_tickets WHERE id IN \
             (SELECT id FROM redeemed_tickets WHERE expires_at < ? ORDER BY expires_at LIMIT ?)",
        )
        .bind(seconds(now.saturating_sub(limits::REDEEMED_TICKET_MARGIN.as_secs())))
        .bind(limits::REDEEMED_PURGE_BATCH)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(if done.rows_affected() == 1 { Redeemed::Now } else { Redeemed::Before })
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                StoreError::Corrupt("value")
            }
            error => StoreError::Unavailable(Box::new(error)),
        }
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Executor => "executor",
        Role::Orchestrator => "orchestrator",
        Role::Admin => "admin",
    }
}

fn token(row: &SqliteRow) -> Result<Token, StoreError> {
    let role = [Role::Executor, Role::Orchestrator, Role::Admin];
    let name: &str = row.try_get("role")?;
    Ok(Token {
        id: text(row, "id")?,
        role: role
            .into_iter()
            .find(|role| role_name(*role) == name)
            .ok_or(StoreError::Corrupt("role"))?,
        environments: text(row, "environments")?,
        label: row.try_get("label")?,
        secret_hash: bytes(row, "secret_sha256")?,
        created_at: number(row, "created_at")?,
        expires_at: optional_number(row, "expires_at")?,
        revoked_at: optional_number(row, "revoked_at")?,
    })
}

fn environment(row: &SqliteRow) -> Result<Environment, StoreError> {
    Ok(Environment { created_at: number(row, "created_at")?, registration: registration(row)? })
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
        token: text(row, "token")?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract;
    use crate::testing::{env, key};

    #[tokio::test]
    async fn it_keeps_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract::all(&SqliteStore::open(&dir.path().join("db")).await.unwrap()).await;
    }

    #[tokio::test]
    async fn what_was_stored_outlives_the_process_and_its_files_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let token = Token {
            id: TokenId::from_random([1; 8]),
            role: Role::Executor,
            environments: "*".parse().unwrap(),
            label: String::new(),
            secret_hash: [1; 32],
            created_at: 0,
            expires_at: Some(u64::MAX),
            revoked_at: None,
        };
        let claim = |id: &str| NewRegistration {
            environment: env("dev"),
            id: id.parse().unwrap(),
            key: key(1),
            profiles: vec![Profile::NoiseHybridIkV1],
            token: token.id.clone(),
        };
        let store = SqliteStore::open(&path).await.unwrap();
        store.insert_token(&token).await.unwrap();
        let first = store.put_registration(&claim("a"), 5).await.unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", file.file_name());
        }
        store.close().await;

        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(store.registration(&env("dev")).await.unwrap().as_ref(), Some(&first));
        let second = store.put_registration(&claim("b"), 6).await.unwrap();
        assert_eq!(second.generation, Generation(2));
    }

    /// Repeated, since it is a race.
    #[tokio::test]
    async fn several_processes_may_start_at_once() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("db");
            let open = || SqliteStore::open(&path);
            let (a, b, c, d) = tokio::join!(open(), open(), open(), open());
            for store in [a, b, c, d] {
                assert!(store.unwrap().tokens(None, 1).await.unwrap().is_empty());
            }
        }
    }

    #[tokio::test]
    async fn a_foreign_value_is_reported_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        sqlx::query(
            "INSERT INTO tokens VALUES ('not-hex', 'admin', '*', '', zeroblob(32), 0, NULL, NULL)",
        )
        .execute(&store.pool)
        .await
        .unwrap();
        assert!(matches!(store.tokens(None, 1).await, Err(StoreError::Corrupt("id"))));
    }

    #[tokio::test]
    async fn environments_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let full = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
             INSERT INTO environments SELECT 'e' || i, 1, 0 FROM n",
            limits::ENVIRONMENTS_MAX
        );
        sqlx::query(sqlx::AssertSqlSafe(full)).execute(&store.pool).await.unwrap();
        let new = NewRegistration {
            environment: env("one-more"),
            id: "r".parse().unwrap(),
            key: key(1),
            profiles: vec![],
            token: TokenId::from_random([1; 8]),
        };
        let error = store.put_registration(&new, 0).await.unwrap_err();
        assert!(matches!(error, StoreError::LimitReached { what: "environments", .. }));
    }
}
