//! The connections to the database, and the write lock.
//!
//! SQLite permits one writing transaction at a time, and a second one holds a
//! connection while it waits. So a writer first takes the write lock and then a
//! connection: however many writers wait, they hold at most one connection, and
//! the others are for readers. The lock is fair.
//!
//! Lists have connections of their own, so that lists in flight cannot delay
//! authentication, admission, validation or registration, which take others.
//!
//! The audit log must survive a power failure, and only that is worth waiting for
//! the disk. [`DurableTransaction`] proves that a transaction waits, and rows of
//! the log can only be written with one.

use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Sqlite, Transaction};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout};

use crate::store::StoreError;
use crate::store::call_timer::CallTimer;
use crate::store::capacity::Capacity;

/// How long a writer waits for others of its process, several of which may have
/// waited for [`DATABASE_BUSY_TIMEOUT`](super::DATABASE_BUSY_TIMEOUT). Stock
/// clients give up after 6 s and more (docs/codex-wire.md#registry-api).
pub(crate) const DATABASE_WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// An open database. Clones share it, and the write lock.
#[derive(Clone)]
pub(super) struct Database {
    /// The connections for reading one row or a few: authentication, admission,
    /// validation, registration. Writers call [`write`](Self::write).
    pub(super) pool: SqlitePool,
    /// The connections for lists, pruning and backups, which may read many rows.
    pub(super) lists: SqlitePool,
    /// The connection whose commits wait for the disk.
    pub(super) durable: SqlitePool,
    pub(super) timer: CallTimer,
    write_lock: Arc<Mutex<()>>,
    /// How long a writer waits for the write lock.
    pub(super) write_timeout: Duration,
    pub(super) capacity: Capacity,
    /// When a purge of environments last found none. Held during a purge.
    pub(super) purge_found_none: Arc<Mutex<Option<Instant>>>,
}

impl Database {
    pub(super) fn new(pool: SqlitePool, lists: SqlitePool, durable: SqlitePool) -> Self {
        let capacity = Capacity::default();
        let purge_found_none = Arc::default();
        let write_timeout = DATABASE_WRITE_TIMEOUT;
        let timer = CallTimer::default();
        Self {
            pool,
            lists,
            durable,
            timer,
            write_lock: Arc::default(),
            write_timeout,
            capacity,
            purge_found_none,
        }
    }

    /// Begins a transaction that holds the write lock: first that of this process,
    /// then, with `BEGIN IMMEDIATE`, that of the database.
    ///
    /// A power failure may undo it after its commit, unless a
    /// [`DurableTransaction`] was committed after it.
    pub(super) async fn write(&self) -> Result<WriteTransaction, StoreError> {
        self.begin(&self.pool).await
    }

    /// Begins a transaction that survives a power failure after its commit.
    pub(super) async fn write_durable(&self) -> Result<DurableTransaction, StoreError> {
        Ok(DurableTransaction(self.begin(&self.durable).await?))
    }

    pub(super) async fn begin(&self, pool: &SqlitePool) -> Result<WriteTransaction, StoreError> {
        let write_lock = timeout(self.write_timeout, self.write_lock.clone().lock_owned()).await;
        let write_lock = write_lock
            .map_err(|_| StoreError::Unavailable("timed out waiting for the write lock".into()))?;
        Ok(WriteTransaction {
            tx: pool.begin_with("BEGIN IMMEDIATE").await?,
            _write_lock: write_lock,
        })
    }
}

/// A writing transaction. It is rolled back unless it is committed.
pub(super) struct WriteTransaction {
    // dropped first, so that the next writer finds the connection returned
    tx: Transaction<'static, Sqlite>,
    _write_lock: OwnedMutexGuard<()>,
}

impl WriteTransaction {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit().await?)
    }
}

impl Deref for WriteTransaction {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        &self.tx
    }
}

impl DerefMut for WriteTransaction {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }
}

/// A writing transaction that is on disk when its commit returns, and visible to
/// readers only then.
pub(super) struct DurableTransaction(WriteTransaction);

impl DurableTransaction {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.0.commit().await
    }
}

impl Deref for DurableTransaction {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        &self.0
    }
}

impl DerefMut for DurableTransaction {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use rendez_proto::registry::admin::Role;

    use crate::store::sqlite::SqliteStore;
    use crate::store::{
        RedeemOutcome, Redemption, RegisterOutcome, RegistrationStore as _, RevocationStore as _,
        TicketStore as _, TokenStore as _,
    };

    use super::*;
    use crate::testing::{audit_event, env, key, token};

    /// Longer than any machine is busy.
    const PATIENT: Duration = Duration::from_secs(60);

    async fn store(write_timeout: Duration) -> (SqliteStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        store.db.write_timeout = write_timeout;
        (store, dir)
    }

    #[tokio::test]
    async fn readers_do_not_wait_for_writers() {
        let (store, _dir) = store(PATIENT).await;
        let held = store.db.write().await.unwrap();
        let writers: Vec<_> = (1..=2 * crate::store::sqlite::DATABASE_CONNECTIONS as u8)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.insert_token(&token(n, Role::Admin), &audit_event()).await
                })
            })
            .collect();
        // lets each writer begin to wait
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            assert!(store.tokens(None, 1).await.unwrap().is_empty());
        }
        assert!(
            writers.iter().all(|writer| !writer.is_finished()),
            "they wait for their write_lock"
        );
        drop(held);
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
    }

    /// Takes every connection of the pool.
    async fn take_all(pool: &SqlitePool) -> Vec<sqlx::pool::PoolConnection<Sqlite>> {
        let mut taken = Vec::new();
        for _ in 0..pool.options().get_max_connections() {
            taken.push(pool.acquire().await.unwrap());
        }
        taken
    }

    fn pattern() -> [crate::model::TokenPattern; 1] {
        [crate::model::TokenPattern::everything()]
    }

    /// The lists in flight hold each connection of their pool, and more wait.
    #[tokio::test]
    async fn lists_do_not_delay_authentication() {
        let (store, _dir) = store(PATIENT).await;
        let executor = token(1, Role::Executor);
        store.insert_token(&executor, &audit_event()).await.unwrap();
        let slow_lists = take_all(&store.db.lists).await;
        let waiting: Vec<_> = (0..60)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.environments(&pattern(), None, 1).await })
            })
            .collect();
        // lets each list begin to wait
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.token(&executor.id).await.unwrap(), Some(executor.clone()));
        assert_eq!(store.token(&token(2, Role::Admin).id).await.unwrap(), None, "a stranger");
        let subject = crate::model::Subject::from(executor.id.clone());
        let claim = crate::model::NewRegistration {
            environment: env("dev"),
            id: "reg_a".parse().unwrap(),
            key: key(1),
            profiles: vec![],
            subject: subject.clone(),
        };
        let claimed = store.put_registration(&claim, 20).await.unwrap();
        assert!(matches!(claimed, RegisterOutcome::Registered(_)), "{claimed:?}");
        assert!(store.registration(&env("dev")).await.unwrap().is_some());
        let ticket = Redemption { ticket: [1; 16], expires_at: 60, subject: subject.clone() };
        assert_eq!(store.redeem(&ticket, 20).await.unwrap(), RedeemOutcome::Redeemed);
        assert!(store.revoke(&subject, 20, &audit_event()).await.unwrap());
        assert_eq!(store.last_revocation().await.unwrap(), 1);
        assert!(waiting.iter().all(|list| !list.is_finished()), "they wait for a connection");
        drop(slow_lists);
        for list in waiting {
            assert_eq!(list.await.unwrap().unwrap().len(), 1);
        }
    }

    /// The effect that the lists' own connections prevent.
    #[tokio::test]
    async fn lists_on_shared_connections_delay_authentication() {
        let (mut store, _dir) = store(PATIENT).await;
        store.db.lists = store.db.pool.clone();
        let slow_lists = take_all(&store.db.lists).await;
        let refused = store.token(&token(2, Role::Admin).id).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(slow_lists);
        assert_eq!(store.token(&token(2, Role::Admin).id).await.unwrap(), None);
    }

    /// The synchronous mode of this transaction.
    async fn synchronous(tx: &mut SqliteConnection) -> i64 {
        sqlx::query_scalar("PRAGMA synchronous").fetch_one(tx).await.unwrap()
    }

    /// The type system ensures that rows of the audit log are written with nothing
    /// else.
    #[tokio::test]
    async fn durable_transactions_wait_for_the_disk() {
        let (store, _dir) = store(PATIENT).await;
        for _ in 0..2 {
            let mut durable = store.db.write_durable().await.unwrap();
            assert_eq!(synchronous(&mut durable).await, 2, "FULL");
            durable.commit().await.unwrap();
            let mut quick = store.db.write().await.unwrap();
            assert_eq!(synchronous(&mut quick).await, 1, "NORMAL");
            quick.commit().await.unwrap();
        }
        let journal: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(store.pool()).await.unwrap();
        assert_eq!(journal, "wal", "in others the two would mean something else");
    }

    #[tokio::test]
    async fn writer_times_out_waiting_for_write_lock() {
        let (store, _dir) = store(Duration::ZERO).await;
        let held = store.db.write().await.unwrap();
        let token = token(1, Role::Admin);
        let refused = store.insert_token(&token, &audit_event()).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(held);
        store.insert_token(&token, &audit_event()).await.unwrap();
    }
}
