//! The audit log in SQLite.

use async_trait::async_trait;
use rendez_proto::audit::{AuditEvent, AuditHash, AuditKind, AuditRow, Head};
use sqlx::Row as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::SqliteStore;
use super::database::DurableTransaction;
use super::rows::{bytes, number, optional_number, seconds};
use crate::stats::StoreCall;
use crate::store::StoreError;
use crate::store::audit::AuditStore;
use crate::store::capacity;

#[async_trait]
impl AuditStore for SqliteStore {
    async fn append_audit(&self, events: &[AuditEvent]) -> Result<Head, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteAudit, async {
                let mut tx = self.db.write_durable().await?;
                let mut head = head(&mut tx).await?;
                for event in events {
                    head = append(&mut tx, head, event.clone()).await?;
                }
                tx.commit().await?;
                Ok(head)
            })
            .await
    }

    async fn audit_rows(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadAudit, async {
                sqlx::query("SELECT * FROM audit WHERE seq > ? ORDER BY seq LIMIT ?")
                    .bind(seconds(after))
                    .bind(limit)
                    .fetch_all(&self.db.lists)
                    .await?
                    .iter()
                    .map(row)
                    .collect()
            })
            .await
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadAudit, async {
                let mut reading = self.db.lists.acquire().await?;
                head(&mut reading).await
            })
            .await
    }

    async fn prune_audit(
        &self,
        keep_rows: u64,
        keep_since: u64,
        limit: u32,
        now: u64,
    ) -> Result<u64, StoreError> {
        self.db
            .timer
            .time(StoreCall::PruneAudit, async {
                let mut tx = self.db.write_durable().await?;
                let head = head(&mut tx).await?;
                let first: Option<i64> =
                    sqlx::query_scalar("SELECT min(seq) FROM audit").fetch_one(&mut *tx).await?;
                let Some(first) = first else { return Ok(0) };
                let end = (first - 1).saturating_add(limit.into());
                // Times may decrease if the clock was set back: the removed rows
                // end before the first one that is young enough.
                let young: Option<i64> =
                    sqlx::query_scalar("SELECT min(seq) FROM audit WHERE seq <= ? AND at >= ?")
                        .bind(end)
                        .bind(seconds(keep_since))
                        .fetch_one(&mut *tx)
                        .await?;
                let old = young.map_or(end, |young| young - 1).min(seconds(head.seq));
                let beyond = seconds(head.seq.saturating_sub(keep_rows));
                let through = old.max(beyond).min(end);
                let hash: Option<Vec<u8>> =
                    sqlx::query_scalar("SELECT hash FROM audit WHERE seq = ?")
                        .bind(through)
                        .fetch_optional(&mut *tx)
                        .await?;
                let Some(hash) = hash else { return Ok(0) };
                let hash =
                    hash.try_into().map_err(|_| StoreError::Corrupt("hash of an audit row"))?;
                let checkpoint = AuditEvent {
                    what: Some(AuditHash(hash).to_string()),
                    count: Some(through.unsigned_abs()),
                    ..AuditEvent::new(AuditKind::Checkpoint, now)
                };
                let room = keep_rows / capacity::AUDIT_ACTS_PART;
                let carried = carried(&mut tx, through, keep_since, room).await?;
                let mut head = append(&mut tx, head, checkpoint).await?;
                for event in carried {
                    head = append(&mut tx, head, event).await?;
                }
                let done = sqlx::query("DELETE FROM audit WHERE seq <= ?")
                    .bind(through)
                    .execute(&mut *tx)
                    .await?;
                tx.commit().await?;
                Ok(done.rows_affected())
            })
            .await
    }
}

/// Selects administrative changes; the index `audit_acts` has the same condition.
macro_rules! administrative {
    ($select:literal, $rest:literal) => {
        concat!($select, " FROM audit WHERE kind IN ('enrol', 'revoke', 'admin') ", $rest)
    };
}

/// Returns the administrative changes since `keep_since` in the rows up to
/// `through`, in order, as many as fit beside those behind `through`.
async fn carried(
    tx: &mut DurableTransaction,
    through: i64,
    keep_since: u64,
    room: u64,
) -> Result<Vec<AuditEvent>, StoreError> {
    let behind: i64 = sqlx::query_scalar(administrative!("SELECT count(*)", "AND seq > ?"))
        .bind(through)
        .fetch_one(&mut **tx)
        .await?;
    let select = administrative!("SELECT *", "AND seq <= ? AND at >= ? ORDER BY seq DESC LIMIT ?");
    let rows = sqlx::query(select)
        .bind(through)
        .bind(seconds(keep_since))
        .bind(seconds(room.saturating_sub(behind.unsigned_abs())))
        .fetch_all(&mut **tx)
        .await?;
    let event = |row: &SqliteRow| {
        let AuditRow { seq, event, .. } = self::row(row)?;
        Ok(AuditEvent { count: event.count.or(Some(seq)), ..event })
    };
    rows.iter().rev().map(event).collect()
}

/// Appends an event in the transaction of the change that it describes.
pub(super) async fn append_event(
    tx: &mut DurableTransaction,
    event: &AuditEvent,
) -> Result<(), StoreError> {
    let head = head(tx).await?;
    append(tx, head, event.clone()).await.map(drop)
}

async fn head(tx: &mut SqliteConnection) -> Result<Head, StoreError> {
    let last = sqlx::query("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *tx)
        .await?;
    match last {
        None => Ok(Head::EMPTY),
        Some(row) => Ok(Head { seq: number(&row, "seq")?, hash: AuditHash(bytes(&row, "hash")?) }),
    }
}

async fn append(
    tx: &mut DurableTransaction,
    head: Head,
    event: AuditEvent,
) -> Result<Head, StoreError> {
    // as it will be read: SQLite's numbers are signed
    let signed = |number: Option<u64>| number.map(|number| seconds(number).unsigned_abs());
    let row = AuditEvent {
        at_unix_secs: seconds(event.at_unix_secs).unsigned_abs(),
        received_bytes: signed(event.received_bytes),
        sent_bytes: signed(event.sent_bytes),
        count: signed(event.count),
        ..event
    }
    .chain(head);
    let event = &row.event;
    sqlx::query(
        "INSERT INTO audit (seq, at, kind, actor, environment, registration, stream, what, \
         received_bytes, sent_bytes, count, previous, hash) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(seconds(row.seq))
    .bind(seconds(event.at_unix_secs))
    .bind(event.kind.as_str())
    .bind(event.actor.as_deref())
    .bind(event.environment.as_ref().map(|id| id.as_str()))
    .bind(event.registration.as_ref().map(|id| id.as_str()))
    .bind(event.stream.as_deref())
    .bind(event.what.as_deref())
    .bind(event.received_bytes.map(seconds))
    .bind(event.sent_bytes.map(seconds))
    .bind(event.count.map(seconds))
    .bind(row.previous.0.as_slice())
    .bind(row.hash.0.as_slice())
    .execute(&mut **tx)
    .await?;
    Ok((&row).into())
}

fn row(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    let kind: &str = row.try_get("kind")?;
    Ok(AuditRow {
        seq: number(row, "seq")?,
        event: AuditEvent {
            at_unix_secs: number(row, "at")?,
            kind: AuditKind::parse(kind).ok_or(StoreError::Corrupt("kind of an audit row"))?,
            actor: row.try_get("actor")?,
            environment: optional_text(row, "environment")?,
            registration: optional_text(row, "registration")?,
            stream: row.try_get("stream")?,
            what: row.try_get("what")?,
            received_bytes: optional_number(row, "received_bytes")?,
            sent_bytes: optional_number(row, "sent_bytes")?,
            count: optional_number(row, "count")?,
        },
        previous: AuditHash(bytes(row, "previous")?),
        hash: AuditHash(bytes(row, "hash")?),
    })
}

fn optional_text<T: std::str::FromStr>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<T>, StoreError> {
    row.try_get::<Option<&str>, _>(column)?
        .map(|text| text.parse().map_err(|_| StoreError::Corrupt(column)))
        .transpose()
}
