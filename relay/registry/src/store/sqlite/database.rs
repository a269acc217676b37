//! The connections to the database, and the turn to write.
//!
//! SQLite lets one transaction write at a time, and whoever begins one while
//! another is under way holds a connection and waits. So a writer takes its
//! turn first and a connection then: however many wait to write, one connection
//! at most is theirs, and the others are for readers. Turns are given in the
//! order in which they were asked for.
//!
//! What is in the audit log must outlive a power cut, and only that is worth
//! waiting for the disk: [`Lasting`] is the proof that a transaction does, and
//! rows of the log are written with nothing else.

use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Sqlite, Transaction};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout};

use crate::store::StoreError;
use crate::store::capacity::Capacity;
use crate::store::timing::CallTimer;

/// How long a writer waits for others of its process: several of them may have
/// waited for [`DATABASE_BUSY_TIMEOUT`](super::DATABASE_BUSY_TIMEOUT). Codex, section 1: clients give up after
/// 6 s and more.
pub(crate) const DATABASE_TURN_PATIENCE: Duration = Duration::from_secs(5);

/// An open database. Clones share it, and the turn.
#[derive(Clone)]
pub(super) struct Database {
    /// For reading; whoever writes asks for [`write`](Self::write).
    pub(super) pool: SqlitePool,
    /// Of connections whose commits wait for the disk.
    pub(super) lasting: SqlitePool,
    pub(super) timer: CallTimer,
    turn: Arc<Mutex<()>>,
    /// How long a writer waits for its turn.
    pub(super) patience: Duration,
    pub(super) capacity: Capacity,
    /// When a look for environments that may be forgotten found none; whoever has
    /// this looks.
    pub(super) looked_in_vain: Arc<Mutex<Option<Instant>>>,
}

impl Database {
    pub(super) fn new(pool: SqlitePool, lasting: SqlitePool) -> Self {
        let capacity = Capacity::default();
        let looked_in_vain = Arc::default();
        let patience = DATABASE_TURN_PATIENCE;
        let timer = CallTimer::default();
        Self { pool, lasting, timer, turn: Arc::default(), patience, capacity, looked_in_vain }
    }

    /// A transaction that has its turn among the writers from the start: first
    /// among those of this process, then, at `BEGIN IMMEDIATE`, among all.
    ///
    /// A power cut may undo it after its commit, as long as no [`Lasting`] one
    /// was committed after it.
    pub(super) async fn write(&self) -> Result<Write, StoreError> {
        self.begin(&self.pool).await
    }

    /// The same for what stays, whatever happens after its commit.
    pub(super) async fn write_lasting(&self) -> Result<Lasting, StoreError> {
        Ok(Lasting(self.begin(&self.lasting).await?))
    }

    pub(super) async fn begin(&self, pool: &SqlitePool) -> Result<Write, StoreError> {
        let turn = timeout(self.patience, self.turn.clone().lock_owned()).await;
        let turn =
            turn.map_err(|_| StoreError::Unavailable("too many writers are before this".into()))?;
        Ok(Write { tx: pool.begin_with("BEGIN IMMEDIATE").await?, _turn: turn })
    }
}

/// A transaction that may write. Undone, unless it is committed.
pub(super) struct Write {
    // goes first: the next in turn finds the connection given back, or nearly
    tx: Transaction<'static, Sqlite>,
    _turn: OwnedMutexGuard<()>,
}

impl Write {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        Ok(self.tx.commit().await?)
    }
}

impl Deref for Write {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        &self.tx
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.tx
    }
}

/// A transaction that is on disk when it is committed, and seen by nobody before
/// it is.
pub(super) struct Lasting(Write);

impl Lasting {
    pub(super) async fn commit(self) -> Result<(), StoreError> {
        self.0.commit().await
    }
}

impl Deref for Lasting {
    type Target = SqliteConnection;
    fn deref(&self) -> &SqliteConnection {
        &self.0
    }
}

impl DerefMut for Lasting {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use rendez_proto::registry::admin::Role;

    use crate::store::TokenStore as _;
    use crate::store::sqlite::SqliteStore;

    use super::*;
    use crate::testing::{act, token};

    /// Longer than any machine is busy.
    const PATIENT: Duration = Duration::from_secs(60);

    async fn store(patience: Duration) -> (SqliteStore, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        store.db.patience = patience;
        (store, dir)
    }

    #[tokio::test]
    async fn readers_do_not_wait_for_writers_however_many_those_are() {
        let (store, _dir) = store(PATIENT).await;
        let held = store.db.write().await.unwrap();
        let writers: Vec<_> = (1..=2 * crate::store::sqlite::DATABASE_CONNECTIONS as u8)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(
                    async move { store.insert_token(&token(n, Role::Admin), &act()).await },
                )
            })
            .collect();
        // each has begun to wait for something
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        for _ in 0..10 {
            assert!(store.tokens(None, 1).await.unwrap().is_empty());
        }
        assert!(writers.iter().all(|writer| !writer.is_finished()), "they wait for their turn");
        drop(held);
        for writer in writers {
            writer.await.unwrap().unwrap();
        }
    }

    /// What SQLite does at a commit of this transaction.
    async fn synchronous(tx: &mut SqliteConnection) -> i64 {
        sqlx::query_scalar("PRAGMA synchronous").fetch_one(tx).await.unwrap()
    }

    /// That rows of the audit log are written with nothing else, the compiler
    /// sees to.
    #[tokio::test]
    async fn what_must_outlive_a_power_cut_waits_for_the_disk_and_the_rest_does_not() {
        let (store, _dir) = store(PATIENT).await;
        for _ in 0..2 {
            let mut lasting = store.db.write_lasting().await.unwrap();
            assert_eq!(synchronous(&mut lasting).await, 2, "FULL");
            lasting.commit().await.unwrap();
            let mut quick = store.db.write().await.unwrap();
            assert_eq!(synchronous(&mut quick).await, 1, "NORMAL");
            quick.commit().await.unwrap();
        }
        let journal: String =
            sqlx::query_scalar("PRAGMA journal_mode").fetch_one(store.pool()).await.unwrap();
        assert_eq!(journal, "wal", "in others the two would mean something else");
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_turn_for_a_while_and_whoever_gives_up_leaves_it() {
        let (store, _dir) = store(Duration::ZERO).await;
        let held = store.db.write().await.unwrap();
        let token = token(1, Role::Admin);
        let refused = store.insert_token(&token, &act()).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(held);
        store.insert_token(&token, &act()).await.unwrap();
    }
}
