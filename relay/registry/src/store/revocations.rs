//! Revocations in a store, which relays read.

use async_trait::async_trait;

use super::StoreError;
use crate::model::Revocation;

/// One page of revocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationPage {
    /// The revocations with their numbers, in order.
    pub revocations: Vec<(u64, Revocation)>,
    /// Whether none is missing between the requested number and the first entry:
    /// old ones are not kept.
    pub complete: bool,
}

/// Revocations, in order. One transaction per method.
#[async_trait]
pub trait RevocationStore: Send + Sync + 'static {
    /// Returns the number of the last revocation, 0 if there was none.
    async fn last_revocation(&self) -> Result<u64, StoreError>;

    /// Returns at most `limit` revocations with a greater number than `after`.
    async fn revocations(&self, after: u64, limit: u32) -> Result<RevocationPage, StoreError>;
}
