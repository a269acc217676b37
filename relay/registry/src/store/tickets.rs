//! Used tickets in a store.

use async_trait::async_trait;
use rendez_proto::ticket;

use super::StoreError;
use crate::model::Subject;

/// A ticket to be used up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redemption {
    /// The id of the ticket.
    pub ticket: [u8; ticket::ID_BYTES],
    /// When the ticket expires. Its record is kept at least until then.
    pub expires_at: u64,
    /// The subject that requested it, which must still be active.
    pub subject: Subject,
}

/// The outcome of a [`Redemption`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RedeemOutcome {
    /// The ticket is used now.
    Redeemed,
    /// The ticket was used before.
    AlreadyRedeemed,
    /// Its subject is gone, revoked or expired. The ticket is not used.
    TokenInactive,
}

/// Used tickets. One transaction per method.
#[async_trait]
pub trait TicketStore: Send + Sync + 'static {
    /// Uses up a ticket. Of any number of calls with the same ticket, one gets
    /// [`RedeemOutcome::Redeemed`].
    async fn redeem(&self, redemption: &Redemption, now: u64) -> Result<RedeemOutcome, StoreError>;
}
