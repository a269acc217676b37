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
    /// `now`, vouches for them. Of those that are not that old, what people did
    /// ([`AuditKind::is_act`]) is carried over: it stands behind the checkpoint
    /// again, with the number that it had at first as its `count`, the newest of
    /// it, as long as such rows are no more than one in
    /// [`AUDIT_ACTS_PART`](super::capacity::AUDIT_ACTS_PART). How many rows went.
    ///
    /// [`AuditKind::is_act`]: rendez_proto::audit::AuditKind::is_act
    async fn prune_audit(
        &self,
        keep_rows: u64,
        keep_since: u64,
        limit: u32,
        now: u64,
    ) -> Result<u64, StoreError>;
}
