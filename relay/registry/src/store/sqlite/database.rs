//! The connections to the database, and the turn to write.
//!
//! SQLite lets one transaction write at a time, and whoever begins one while
//! another is under way holds a connection and waits. So a writer takes its
//! turn first and a connection then: however many wait to write, one connection
//! at most is theirs, and the others are for readers. Turns are given in the
//! order in which they were asked for.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use rendez_proto::limits;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use sqlx::{Sqlite, Transaction};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use crate::store::StoreError;

/// An open database. Clones share it, and the turn.
#[derive(Debug, Clone)]
pub(super) struct Database {
    /// For reading; whoever writes asks for [`write`](Self::write).
    pub(super) pool: SqlitePool,
    turn: Arc<Mutex<()>>,
    /// How long a writer waits for its turn.
    pub(super) patience: Duration,
    pub(super) room: Room,
}

/// How many of what grows there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Tokens without a key.
    pub(super) tokens: u32,
    /// Tokens with one.
    pub(super) enrolled: u32,
}

impl Database {
    pub(super) fn new(pool: SqlitePool) -> Self {
        let room = Room { tokens: limits::TOKENS_MAX, enrolled: limits::ENROLLED_MAX };
        Self { pool, turn: Arc::default(), patience: limits::DATABASE_TURN_PATIENCE, room }
    }

    /// A transaction that has its turn among the writers from the start: first
    /// among those of this process, then, at `BEGIN IMMEDIATE`, among all.
    pub(super) async fn write(&self) -> Result<Write, StoreError> {
        let turn = timeout(self.patience, self.turn.clone().lock_owned()).await;
        let turn =
            turn.map_err(|_| StoreError::Unavailable("too many writers are before this".into()))?;
        Ok(Write { tx: self.pool.begin_with("BEGIN IMMEDIATE").await?, _turn: turn })
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

#[cfg(test)]
mod tests {
    use rendez_proto::registry::admin::Role;

    use crate::store::sqlite::SqliteStore;
    use crate::store::{Store as _, contract};

    use super::*;
    use crate::testing::act;

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
        let writers: Vec<_> = (1..=2 * limits::DATABASE_CONNECTIONS as u8)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.insert_token(&contract::token(n, Role::Admin), &act()).await
                })
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

    #[tokio::test]
    async fn a_writer_waits_for_its_turn_for_a_while_and_whoever_gives_up_leaves_it() {
        let (store, _dir) = store(Duration::ZERO).await;
        let held = store.db.write().await.unwrap();
        let token = contract::token(1, Role::Admin);
        let refused = store.insert_token(&token, &act()).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        drop(held);
        store.insert_token(&token, &act()).await.unwrap();
    }
}
