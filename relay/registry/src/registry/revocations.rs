//! Revocations, which relays read to close websockets.

use rendez_proto::limits;

use super::context::Context;
use crate::store::{RevocationPage, StoreError};

/// The revocations, in order.
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
    /// Returns the number of the last revocation: the position from which a relay
    /// reads.
    ///
    /// # Errors
    /// The store's.
    pub async fn last(self) -> Result<u64, StoreError> {
        self.ctx.store().last_revocation().await
    }

    /// Returns one page of the revocations after this number, by any process.
    ///
    /// # Errors
    /// The store's.
    pub async fn after(self, after: u64) -> Result<RevocationPage, StoreError> {
        self.ctx.store().revocations(after, limits::REVOCATIONS_PAGE).await
    }
}
