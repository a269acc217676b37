//! Revocations, as relays read them to close websockets.

use rendez_proto::limits;

use super::context::Context;
use crate::store::{RevocationPage, StoreError};

/// What was revoked, in order.
#[derive(Clone, Copy)]
pub struct Revocations<'a> {
    ctx: &'a Context,
}

impl<'a> Revocations<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl Revocations<'_> {
    /// The number of the last withdrawal so far: where a relay begins to read.
    ///
    /// # Errors
    /// The store's.
    pub async fn last(self) -> Result<u64, StoreError> {
        self.ctx.store().last_revocation().await
    }

    /// What was withdrawn after the withdrawal with this number, by whichever
    /// process, one page of it.
    ///
    /// # Errors
    /// The store's.
    pub async fn after(self, after: u64) -> Result<RevocationPage, StoreError> {
        self.ctx.store().revocations(after, limits::REVOCATIONS_PAGE).await
    }
}
