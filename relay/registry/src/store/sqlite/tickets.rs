//! The table of used tickets.

use async_trait::async_trait;

use super::SqliteStore;
use super::rows::seconds;
use super::tokens;
use crate::stats::StoreCall;
use crate::store::capacity;
use crate::store::{RedeemOutcome, Redemption, StoreError, TicketStore};

#[async_trait]
impl TicketStore for SqliteStore {
    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<RedeemOutcome, StoreError> {
        self.db
            .timer
            .time(StoreCall::Redeem, async {
                let mut tx = self.db.write().await?;
                if !tokens::is_active(&mut tx, &redemption.subject, now).await? {
                    return Ok(RedeemOutcome::TokenInactive);
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
                .bind(seconds(now.saturating_sub(capacity::REDEEMED_TICKET_MARGIN.as_secs())))
                .bind(capacity::REDEEMED_PURGE_BATCH)
                .execute(&mut *tx)
                .await?;
                tx.commit().await?;
                Ok(if done.rows_affected() == 1 {
                    RedeemOutcome::Redeemed
                } else {
                    RedeemOutcome::AlreadyRedeemed
                })
            })
            .await
    }
}
