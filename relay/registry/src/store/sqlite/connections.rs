//! The history of connections in SQLite.

use async_trait::async_trait;
use rendez_proto::ids::{EnvironmentId, Generation};
use rendez_proto::registry::environments::EndReason;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::SqliteStore;
use super::rows::{number, optional_number, seconds, text, texts};
use crate::stats::StoreCall;
use crate::store::connections::{ConnectionRow, ConnectionUpdate, PreviousEnd};
use crate::store::{ConnectionStore, StoreError};

#[async_trait]
impl ConnectionStore for SqliteStore {
    async fn write_connections(
        &self,
        updates: &[ConnectionUpdate],
        keep: u32,
    ) -> Result<Vec<PreviousEnd>, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteHistory, async {
                let mut tx = self.db.write().await?;
                let mut began = Vec::new();
                for ConnectionUpdate { connection, inserted } in updates {
                    let environment = connection.environment.as_str();
                    let id = connection.id.to_string();
                    let done = sqlx::query(
                "UPDATE connections SET ended_at = ?, ended_because = ?, received_bytes = ?, \
                 sent_bytes = ? WHERE id = ?",
            )
            .bind(connection.ended.map(|(at, _)| seconds(at)))
            .bind(connection.ended.map(|(_, why)| why.as_str()))
            .bind(seconds(connection.received_bytes))
            .bind(seconds(connection.sent_bytes))
            .bind(&id)
            .execute(&mut *tx)
            .await?;
                    if done.rows_affected() > 0 || *inserted {
                        continue;
                    }
                    sqlx::query(
                        "UPDATE connections SET ended_at = ?, ended_because = ? \
                 WHERE environment = ? AND ended_at IS NULL",
                    )
                    .bind(seconds(connection.connected_at))
                    .bind(EndReason::Superseded.as_str())
                    .bind(environment)
                    .execute(&mut *tx)
                    .await?;
                    let before: Option<String> = sqlx::query_scalar(
                        "SELECT ended_because FROM connections WHERE environment = ? \
                 ORDER BY seq DESC LIMIT 1",
                    )
                    .bind(environment)
                    .fetch_optional(&mut *tx)
                    .await?;
                    began.push(before.as_deref().map(end_reason).transpose()?);
                    sqlx::query(
                        "INSERT INTO connections (id, environment, registration, generation, \
                 connected_at, ended_at, ended_because, received_bytes, sent_bytes) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    )
                    .bind(&id)
                    .bind(environment)
                    .bind(connection.registration.as_str())
                    .bind(seconds(connection.generation.0))
                    .bind(seconds(connection.connected_at))
                    .bind(connection.ended.map(|(at, _)| seconds(at)))
                    .bind(connection.ended.map(|(_, why)| why.as_str()))
                    .bind(seconds(connection.received_bytes))
                    .bind(seconds(connection.sent_bytes))
                    .execute(&mut *tx)
                    .await?;
                    sqlx::query(
                        "DELETE FROM connections WHERE environment = ?1 AND seq <= \
                 (SELECT seq FROM connections WHERE environment = ?1 \
                  ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                    )
                    .bind(environment)
                    .bind(keep)
                    .execute(&mut *tx)
                    .await?;
                }
                tx.commit().await?;
                Ok(began)
            })
            .await
    }

    async fn prune_connections(&self, before: u64, limit: u32) -> Result<u64, StoreError> {
        self.db
            .timer
            .time(StoreCall::PruneHistory, async {
                // Selected before the transaction: a scan of all connections must
                // not block writers.
                let old: Vec<i64> = sqlx::query_scalar(
                    "SELECT seq FROM connections AS old WHERE ended_at < ? AND (EXISTS \
             (SELECT 1 FROM connections WHERE environment = old.environment AND seq > old.seq) \
             OR NOT EXISTS (SELECT 1 FROM environments WHERE id = old.environment)) \
             ORDER BY seq LIMIT ?",
                )
                .bind(seconds(before))
                .bind(limit)
                .fetch_all(&self.db.lists)
                .await?;
                if old.is_empty() {
                    return Ok(0);
                }
                let mut tx = self.db.write().await?;
                for seq in &old {
                    sqlx::query("DELETE FROM connections WHERE seq = ?")
                        .bind(seq)
                        .execute(&mut *tx)
                        .await?;
                }
                tx.commit().await?;
                Ok(old.len() as u64)
            })
            .await
    }

    async fn connections(
        &self,
        environment: &EnvironmentId,
        limit: u32,
    ) -> Result<Vec<ConnectionRow>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadHistory, async {
                sqlx::query(
                    "SELECT * FROM connections WHERE environment = ? ORDER BY seq DESC LIMIT ?",
                )
                .bind(environment.as_str())
                .bind(limit)
                .fetch_all(&self.db.pool)
                .await?
                .iter()
                .map(connection)
                .collect()
            })
            .await
    }

    async fn last_connections(
        &self,
        environments: &[EnvironmentId],
    ) -> Result<Vec<ConnectionRow>, StoreError> {
        self.db
            .timer
            .time(StoreCall::ReadHistory, async {
                sqlx::query(
                    "SELECT connections.* FROM environments JOIN connections ON connections.seq = \
             (SELECT max(seq) FROM connections WHERE environment = environments.id) \
             WHERE environments.id IN (SELECT value FROM json_each(?)) ORDER BY environments.id",
                )
                .bind(texts(environments.iter().map(EnvironmentId::as_str)))
                .fetch_all(&self.db.lists)
                .await?
                .iter()
                .map(connection)
                .collect()
            })
            .await
    }

    async fn end_open_connections(&self, now: u64, why: EndReason) -> Result<u64, StoreError> {
        self.db
            .timer
            .time(StoreCall::WriteHistory, async {
                let mut tx = self.db.write().await?;
                let done = sqlx::query(
                    "UPDATE connections SET ended_at = max(?, connected_at), ended_because = ? \
             WHERE ended_at IS NULL",
                )
                .bind(seconds(now))
                .bind(why.as_str())
                .execute(&mut *tx)
                .await?;
                tx.commit().await?;
                Ok(done.rows_affected())
            })
            .await
    }
}

fn end_reason(text: &str) -> Result<EndReason, StoreError> {
    EndReason::parse(text).ok_or(StoreError::Corrupt("reason of a connection's end"))
}

fn connection(row: &SqliteRow) -> Result<ConnectionRow, StoreError> {
    let why = match row.try_get::<Option<&str>, _>("ended_because")? {
        None => None,
        Some(text) => Some(end_reason(text)?),
    };
    Ok(ConnectionRow {
        id: row.try_get::<&str, _>("id")?.parse()?,
        environment: text(row, "environment")?,
        registration: text(row, "registration")?,
        generation: Generation(number(row, "generation")?),
        connected_at: number(row, "connected_at")?,
        ended: optional_number(row, "ended_at")?.zip(why),
        received_bytes: number(row, "received_bytes")?,
        sent_bytes: number(row, "sent_bytes")?,
    })
}
