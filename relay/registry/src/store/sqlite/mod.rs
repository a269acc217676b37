//! The store in one SQLite file, which the processes of one machine share.
//!
//! In WAL mode readers never wait. Writers take turns: those of one process in
//! order, before they take a connection; those of several processes at `BEGIN
//! IMMEDIATE`, so that no transaction fails half way because of the lock order.
//!
//! Rows of the audit log are on disk before the caller gets the result or a reader
//! sees them (`synchronous=FULL`): an acknowledged revocation is never undone, and
//! a noted end of the log is never missing. Frequent writes without such a row do
//! not wait for the disk (`NORMAL`): registrations, used tickets, uses, the
//! history. After a power failure the last of those may be lost, unless a durable
//! transaction followed. That is safe: the ticket of a lost registration names an
//! id that is not current, whatever its generation; a used ticket would have to be
//! replayed within its one-minute life; and a token with counted uses may regain a
//! few.

mod audit;
mod connections;
mod database;
mod environment_purge;
mod error;
pub mod migrations;
mod registrations;
mod revocations;
mod rows;
mod tickets;
mod tokens;

use std::fmt;
use std::fs::{OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::time::{Instant, sleep};

use self::database::Database;
pub use self::error::SqliteOpenError;
use super::StoreError;
use crate::store::call_timer::CallTimer;
use crate::store_retry;
use crate::traits::StoreMetrics;

/// How long one statement waits for another writer of the database.
pub(crate) const DATABASE_BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a starting process waits for others that start on the same database.
pub(crate) const DATABASE_OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a command waits for a relay that is starting to migrate a database of
/// an older schema.
pub(crate) const DATABASE_SCHEMA_TIMEOUT: Duration = Duration::from_secs(2);

/// The connections to the database: one writes, the others read meanwhile.
pub(crate) const DATABASE_CONNECTIONS: u32 = 4;

/// The connections for lists and backups: a second one, so that lists go on
/// during a backup. Each of them may keep a processor busy.
pub(crate) const DATABASE_LIST_CONNECTIONS: u32 = 2;

/// How long a list waits for one of its connections: longer than other calls wait
/// for theirs, since a list may read all environments.
pub(crate) const DATABASE_LIST_TIMEOUT: Duration = Duration::from_secs(10);

const _: () =
    assert!(DATABASE_BUSY_TIMEOUT.as_secs() < store_retry::REGISTER_RETRY_TIMEOUT.as_secs());

/// The SQLite store.
#[derive(Clone)]
pub struct SqliteStore {
    db: Database,
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").finish_non_exhaustive()
    }
}

/// How a database is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Schema {
    /// The schema is migrated to the newest version.
    Migrate,
    /// The schema must be the newest version.
    Current,
    /// The schema may be any version and stays as it is.
    Any,
}

impl SqliteStore {
    /// Opens the database, creates it (mode 0600) if it does not exist, and
    /// migrates its schema. Waits for other processes that do the same: the switch
    /// to WAL fails at once if another connection is open, whatever the busy
    /// timeout.
    ///
    /// # Errors
    /// See [`SqliteOpenError`].
    pub async fn open(path: &Path) -> Result<Self, SqliteOpenError> {
        create_private(path)?;
        Self::connect_with_retry(path, Schema::Migrate).await
    }

    /// Opens an existing database with the current schema and changes nothing in
    /// it, since an older relay may be using it. Waits for one that is being
    /// created.
    ///
    /// # Errors
    /// See [`SqliteOpenError`].
    pub async fn open_current(path: &Path) -> Result<Self, SqliteOpenError> {
        let deadline = Instant::now() + DATABASE_SCHEMA_TIMEOUT;
        loop {
            match Self::connect_with_retry(path, Schema::Current).await {
                Err(SqliteOpenError::Older { .. }) if Instant::now() < deadline => {
                    sleep(store_retry::REGISTER_RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// Opens an existing database to copy it, whatever its version, and changes
    /// nothing in it.
    ///
    /// # Errors
    /// See [`SqliteOpenError`].
    pub(crate) async fn open_any(path: &Path) -> Result<Self, SqliteOpenError> {
        Self::connect_with_retry(path, Schema::Any).await
    }

    async fn connect_with_retry(path: &Path, schema: Schema) -> Result<Self, SqliteOpenError> {
        let deadline = Instant::now() + DATABASE_OPEN_TIMEOUT;
        loop {
            match Self::connect(path, schema).await {
                Err(error) if error.is_busy() && Instant::now() < deadline => {
                    sleep(store_retry::REGISTER_RETRY_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    async fn connect(path: &Path, schema: Schema) -> Result<Self, SqliteOpenError> {
        let mut options = SqliteConnectOptions::new()
            .filename(path)
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(DATABASE_BUSY_TIMEOUT);
        if schema != Schema::Any {
            options = options.journal_mode(SqliteJournalMode::Wal);
        }
        let pool = SqlitePoolOptions::new().acquire_timeout(DATABASE_BUSY_TIMEOUT);
        // SQLite rolls a transaction back by itself when the disk is full or
        // broken, but the library then considers its connection in the transaction
        // forever: such a connection is closed.
        let pool = pool.after_release(|connection, _| {
            Box::pin(async move {
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        });
        // one, since writers take turns, opened when it is needed
        let durable = pool
            .clone()
            .max_connections(1)
            .connect_lazy_with(options.clone().synchronous(SqliteSynchronous::Full));
        let lists = pool
            .clone()
            .max_connections(DATABASE_LIST_CONNECTIONS)
            .acquire_timeout(DATABASE_LIST_TIMEOUT)
            .connect_lazy_with(options.clone());
        let pool = pool.max_connections(DATABASE_CONNECTIONS).connect_with(options).await?;
        let checked = match schema {
            Schema::Migrate => migrations::run(&pool).await.map_err(SqliteOpenError::from),
            Schema::Current => migrations::check(&pool).await,
            Schema::Any => migrations::applied(&pool).await.map(drop).map_err(Into::into),
        };
        if let Err(error) = checked {
            pool.close().await;
            return Err(error);
        }
        Ok(Self { db: Database::new(pool, lists, durable) })
    }

    /// Returns the store with `store_metrics`, which receive the duration of each
    /// call.
    #[must_use]
    pub fn with_metrics(mut self, store_metrics: Arc<dyn StoreMetrics>) -> Self {
        self.db.timer = CallTimer::new(store_metrics);
        self
    }

    /// For tests that change the database directly.
    #[cfg(test)]
    pub(crate) fn pool(&self) -> &sqlx::SqlitePool {
        &self.db.pool
    }

    /// Writes a copy, as it is at one moment, to an empty file. Blocks neither
    /// readers nor writers.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn copy_into(&self, file: &Path) -> Result<(), StoreError> {
        let name =
            file.to_str().ok_or(StoreError::Corrupt("name of a file, which is not UTF-8"))?;
        sqlx::query("VACUUM INTO ?").bind(name).execute(&self.db.lists).await?;
        Ok(())
    }

    /// Waits for transactions to end and closes the file.
    pub async fn close(&self) {
        tokio::join!(self.db.pool.close(), self.db.lists.close(), self.db.durable.close());
    }
}

/// Creates the file with a private mode; SQLite gives its WAL and index files the
/// same one. An existing file is not opened: closing it would release the locks
/// that SQLite holds on it elsewhere in this process.
fn create_private(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            std::fs::set_permissions(path, Permissions::from_mode(0o600))
        }
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rendez_proto::ids::Generation;
    use rendez_proto::profile::Profile;
    use rendez_proto::registry::admin::Role;

    use super::*;
    use crate::OpenError;
    use crate::model::{Credential, NewRegistration, Registration, Token, TokenId};
    use crate::store::capacity::Capacity;
    use crate::store::{
        EnrolOutcome, RegisterOutcome, RegistrationStore as _, TokenStore as _, capacity,
    };
    use crate::testing::{audit_event, env, key, token};

    fn claimed(claimed: RegisterOutcome) -> Registration {
        match claimed {
            RegisterOutcome::Registered(registration) => registration,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn data_persists_in_private_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let token = Token { expires_at: Some(i64::MAX as u64), ..token(1, Role::Executor) };
        let claim = |id: &str| NewRegistration {
            environment: env("dev"),
            id: id.parse().unwrap(),
            key: key(1),
            profiles: vec![Profile::NoiseHybridIkV1],
            subject: token.id.clone().into(),
        };
        let store = SqliteStore::open(&path).await.unwrap();
        store.insert_token(&token, &audit_event()).await.unwrap();
        let first = claimed(store.put_registration(&claim("a"), 5).await.unwrap());
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let file = file.unwrap();
            let mode = file.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{:?}", file.file_name());
        }
        store.close().await;

        let store = SqliteStore::open(&path).await.unwrap();
        assert_eq!(store.registration(&env("dev")).await.unwrap().as_ref(), Some(&first));
        let second = claimed(store.put_registration(&claim("b"), 6).await.unwrap());
        assert_eq!(second.generation, Generation(2));
    }

    /// Repeated, since it tests a race.
    #[tokio::test]
    async fn several_processes_can_open_at_once() {
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
    async fn write_waits_for_lock_of_other_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = SqliteStore::open(&path).await.unwrap();
        let writing = store.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
        let options = SqliteConnectOptions::new().filename(&path).busy_timeout(Duration::ZERO);
        let other = sqlx::SqlitePool::connect_with(options).await.unwrap();
        let locked = other.begin_with("BEGIN IMMEDIATE").await.unwrap_err();
        let source = SqliteOpenError::from(locked);
        assert!(source.is_busy());
        assert!(OpenError::Database { path, source }.is_temporary());
        drop(writing);
        let source = SqliteOpenError::from(sqlx::migrate::MigrateError::VersionMismatch(1));
        assert!(!OpenError::Database { path: dir.path().into(), source }.is_temporary());
    }

    #[tokio::test]
    async fn invalid_row_is_reported_as_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        sqlx::query(
            "INSERT INTO tokens (id, role, environments, label, secret_sha256, created_at) \
             VALUES ('not-hex', 'admin', '*', '', zeroblob(32), 0)",
        )
        .execute(store.pool())
        .await
        .unwrap();
        assert!(matches!(store.tokens(None, 1).await, Err(StoreError::Corrupt("id"))));
    }

    /// Inserts tokens from number `first` on, with or without a key.
    async fn fill(store: &SqliteStore, first: u32, count: u32, key: bool, revoked: Option<u64>) {
        let columns = if key { "ed25519, enrolled_by" } else { "secret_sha256, enrolled_by" };
        let secret = "CAST(printf('%032d', i) AS BLOB), '0000000000000000'";
        let revoked = revoked.map_or("NULL".to_owned(), |at| at.to_string());
        let sql = format!(
            "WITH RECURSIVE n(i) AS (SELECT {first} UNION ALL SELECT i + 1 FROM n \
             WHERE i < {}) INSERT INTO tokens (id, role, environments, label, created_at, \
             revoked_at, {columns}) SELECT printf('%016x', i), 'executor', 'dev', '', 0, \
             {revoked}, {secret} FROM n",
            first + count - 1
        );
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(store.pool()).await.unwrap();
    }

    async fn count(store: &SqliteStore) -> u32 {
        sqlx::query_scalar("SELECT count(*) FROM tokens").fetch_one(store.pool()).await.unwrap()
    }

    #[tokio::test]
    async fn ended_tokens_are_purged_but_keys_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let (now, batch) = (1_800_000_000, capacity::TOKENS_PURGE_BATCH);
        let old = now - capacity::TOKENS_ENDED_KEPT.as_secs();
        fill(&store, 1, batch + 1, false, Some(old - 1)).await;
        fill(&store, 1000, 1, false, Some(old)).await;
        fill(&store, 2000, 1, true, Some(1)).await;
        let expired = Token { expires_at: Some(old - 1), ..token(1, Role::Admin) };
        let expiring = Token { expires_at: Some(old), ..token(2, Role::Admin) };
        for token in [&expired, &expiring] {
            store.insert_token(token, &audit_event()).await.unwrap();
        }
        assert_eq!(count(&store).await, batch + 5, "in their own time they had not ended");

        let made = |n| Token { created_at: now, ..token(n, Role::Admin) };
        store.insert_token(&made(3), &audit_event()).await.unwrap();
        assert_eq!(count(&store).await, 6, "as many as one creation removes");
        store.insert_token(&made(4), &audit_event()).await.unwrap();
        let left = store.tokens(None, 10).await.unwrap();
        let left: Vec<_> = left.iter().map(|token| token.id.as_str()).collect();
        let ids = [&expiring.id, &made(3).id, &made(4).id].map(|id| id.as_str().to_owned());
        let [expiring, three, four] = &ids;
        let expected = ["00000000000003e8", "00000000000007d0", expiring, three, four];
        assert_eq!(left, expected);
    }

    #[tokio::test]
    async fn ended_tokens_make_room_for_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let full = store.db.capacity;
        assert_eq!((full.tokens, full.enrolled), (capacity::TOKENS_MAX, capacity::ENROLLED_MAX));
        store.db.capacity = Capacity { tokens: 5, enrolled: 3, ..full };
        let now = 1_800_000_000;
        let made = |n| Token { created_at: now, ..token(n, Role::Join) };
        let join = Token { max_uses: Some(9), ..made(1) };
        store.insert_token(&join, &audit_event()).await.unwrap();
        fill(&store, 1, 3, false, None).await;
        fill(&store, 10, 1, false, Some(now - 1)).await;
        // the one that ended just before, as there is no other
        store.insert_token(&made(3), &audit_event()).await.unwrap();
        assert_eq!(count(&store).await, 5);
        let gone: TokenId = "000000000000000a".parse().unwrap();
        assert_eq!(store.token(&gone).await.unwrap(), None);
        let refused = store.insert_token(&made(4), &audit_event()).await;
        assert!(matches!(refused, Err(StoreError::LimitReached { what: "tokens", max: 5 })));

        // enrolled executors have a capacity of their own and do not make room
        let enrolled = |n: u8| Token {
            credential: Credential::Key { public: [n; 32], enrolled_by: join.id.clone() },
            environments: "dev".parse().unwrap(),
            role: Role::Executor,
            ..made(n)
        };
        let enrol = async |n| store.enrol(&enrolled(n), &join.id, now, &audit_event()).await;
        assert_eq!(enrol(5).await.unwrap(), EnrolOutcome::Enrolled);
        fill(&store, 20, 2, true, Some(1)).await;
        let refused = enrol(6).await;
        let what = "enrolled executors";
        assert!(
            matches!(refused, Err(StoreError::LimitReached { what: of, max: 3 }) if of == what)
        );
        assert_eq!(count(&store).await, 8);
        let uses = store.token(&join.id).await.unwrap().unwrap().uses;
        assert_eq!(uses, 1, "what was refused used nothing up");
    }

    #[tokio::test]
    async fn environments_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let full = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
             INSERT INTO environments (id, generation, created_at, revoked_seq) \
             SELECT 'e' || i, 1, 0, 1 FROM n",
            capacity::ENVIRONMENTS_MAX
        );
        sqlx::query(sqlx::AssertSqlSafe(full)).execute(store.pool()).await.unwrap();
        let token = token(1, Role::Executor);
        store.insert_token(&token, &audit_event()).await.unwrap();
        let new = NewRegistration {
            environment: env("one-more"),
            id: "r".parse().unwrap(),
            key: key(1),
            profiles: vec![],
            subject: token.id.into(),
        };
        let error = store.put_registration(&new, 0).await.unwrap_err();
        assert!(matches!(error, StoreError::LimitReached { what: "environments", .. }));
    }

    /// SQLite rolls the transaction back, whatever the library's state.
    #[tokio::test]
    async fn writes_resume_after_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        sqlx::query("CREATE TABLE filler (bytes)").execute(store.pool()).await.unwrap();
        let fill = "INSERT INTO filler VALUES (randomblob(1000000))";
        for pool in [&store.db.pool, &store.db.durable] {
            // each of its connections finds the disk full
            let mut connections = Vec::new();
            for _ in 0..pool.options().get_max_connections() {
                connections.push(pool.acquire().await.unwrap());
            }
            for connection in &mut connections {
                sqlx::query("PRAGMA max_page_count = 1").execute(&mut **connection).await.unwrap();
            }
            drop(connections);
            let mut full = 0;
            loop {
                let mut tx = store.db.begin(pool).await.unwrap();
                match sqlx::query(fill).execute(&mut *tx).await {
                    Ok(_) => break,
                    Err(error) => assert!(error.to_string().contains("disk is full"), "{error}"),
                }
                full += 1;
            }
            assert!((1..=pool.options().get_max_connections()).contains(&full), "{full} times");
        }
    }
}
