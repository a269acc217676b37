//! The memory of the audit log. [`Audit`] decides what is written when.
//!
//! [`Audit`]: crate::audit::Audit

use async_trait::async_trait;
use rendez_proto::audit::{AuditEvent, AuditRow, Head};

use super::StoreError;

/// The audit log's rows. One transaction per method.
#[async_trait]
pub trait AuditStore: Send + Sync + 'static {
    /// Chains events behind the last row, whichever process wrote that. The new
    /// end.
    async fn append_audit(&self, events: &[AuditEvent]) -> Result<Head, StoreError>;

    /// At most `limit` rows after number `after`, in order.
    async fn audit_rows(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// The end of the chain.
    async fn audit_head(&self) -> Result<Head, StoreError>;

    /// Removes at most `limit` of the oldest rows: those beyond the newest
    /// `keep_rows`, and those from before `keep_since`. A checkpoint, written at
    /// `now`, vouches for them. How many went.
    async fn prune_audit(
        &self,
        keep_rows: u64,
        keep_since: u64,
        limit: u32,
        now: u64,
    ) -> Result<u64, StoreError>;
}
