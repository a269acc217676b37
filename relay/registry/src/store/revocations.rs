//! Revocations in a store, for relays to read.

use async_trait::async_trait;

use super::StoreError;
use crate::model::Revocation;

/// Some of what was withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationPage {
    /// In order, with their numbers.
    pub revocations: Vec<(u64, Revocation)>,
    /// Whether nothing is missing between the number asked for and the list:
    /// old ones are not kept.
    pub complete: bool,
}

/// Revocations, in order. One transaction per method.
#[async_trait]
pub trait RevocationStore: Send + Sync + 'static {
    /// The number of the last withdrawal, 0 if there was none.
    async fn last_revocation(&self) -> Result<u64, StoreError>;

    /// At most `limit` withdrawals with a greater number than `after`.
    async fn revocations(&self, after: u64, limit: u32) -> Result<RevocationPage, StoreError>;
}
