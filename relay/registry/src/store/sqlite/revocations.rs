//! The table of revocations.
use async_trait::async_trait;
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::SqliteStore;
use super::rows::{number, seconds};
use crate::model::Revocation;
use crate::stats::StoreCall;
use crate::store::capacity;
use crate::store::{RevocationPage, RevocationStore, StoreError};

#[async_trait]
impl RevocationStore for SqliteStore {
    async fn last_revocation(&self) -> Result<u64, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadRevocations, async {
                Ok(latest(&self.db.pool).await?.unsigned_abs())
            })
            .await
    }

    async fn revocations(&self, after: u64, limit: u32) -> Result<RevocationPage, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadRevocations, async {
                let rows =
                    sqlx::query("SELECT * FROM withdrawals WHERE seq > ? ORDER BY seq LIMIT ?")
                        .bind(seconds(after))
                        .bind(limit)
                        .fetch_all(&self.db.pool)
                        .await?;
                let list: Vec<_> = rows
                    .iter()
                    .map(|row| Ok((number(row, "seq")?, revocation(row)?)))
                    .collect::<Result<_, StoreError>>()?;
                // numbers have no gaps, so missing ones were purged
                let complete = list.first().is_none_or(|(seq, _)| *seq <= after.saturating_add(1));
                Ok(RevocationPage { revocations: list, complete })
            })
            .await
    }
}

/// Returns the number of the last revocation ever made, 0 if there was none.
pub(super) async fn latest(db: impl sqlx::SqliteExecutor<'_>) -> Result<i64, StoreError> {
    // outlives the rows
    let found: Option<i64> =
        sqlx::query_scalar("SELECT seq FROM sqlite_sequence WHERE name = 'withdrawals'")
            .fetch_optional(db)
            .await?;
    Ok(found.unwrap_or(0))
}

/// Adds a revocation and returns its number.
pub(super) async fn insert(
    tx: &mut SqliteConnection,
    revocation: &Revocation,
    now: u64,
) -> Result<i64, StoreError> {
    let (kind, what) = revocation.to_columns();
    let seq: i64 = sqlx::query_scalar(
        "INSERT INTO withdrawals (at, kind, what) VALUES (?, ?, ?) RETURNING seq",
    )
    .bind(seconds(now))
    .bind(kind)
    .bind(what)
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query("DELETE FROM withdrawals WHERE seq <= ?")
        .bind(seq - i64::from(capacity::REVOCATIONS_KEPT))
        .execute(tx)
        .await?;
    Ok(seq)
}

fn revocation(row: &SqliteRow) -> Result<Revocation, StoreError> {
    Revocation::from_columns(row.try_get("kind")?, row.try_get("what")?)
        .ok_or(StoreError::Corrupt("withdrawal"))
}
