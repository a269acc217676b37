//! Used tickets in a store.

use async_trait::async_trait;
use rendez_proto::ticket;

use super::StoreError;
use crate::model::Subject;

/// A ticket that is about to be used, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The ticket.
    pub ticket: [u8; ticket::ID_BYTES],
    /// When it ends; its record is kept at least until then.
    pub expires_at: u64,
    /// Who asked for it, and must be active still.
    pub subject: Subject,
}

/// What became of a [`Redemption`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedeemOutcome {
    /// The ticket is used now.
    Redeemed,
    /// The ticket was used before.
    AlreadyRedeemed,
    /// Its subject is gone, revoked or expired; the ticket is not used.
    TokenInactive,
}

/// Used tickets. One transaction per method.
#[async_trait]
pub trait TicketStore: Send + Sync + 'static {
    /// Uses a ticket. Of any number of calls with the same ticket, one gets
    /// [`RedeemOutcome::Redeemed`].
    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<RedeemOutcome, StoreError>;
}
