//! The audit log in a store. [`Audit`] decides when rows are written.
//!
//! [`Audit`]: crate::audit::Audit

use async_trait::async_trait;
use rendez_proto::audit::{AuditEvent, AuditRow, Head};

use super::StoreError;

/// The audit log's rows. One transaction per method.
#[async_trait]
pub trait AuditStore: Send + Sync + 'static {
    /// Appends events to the chain, which other processes may have extended.
    /// Returns the new end.
    async fn append_audit(&self, events: &[AuditEvent]) -> Result<Head, StoreError>;

    /// Returns at most `limit` rows after number `after`, in order.
    async fn audit_rows(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Returns the end of the chain.
    async fn audit_head(&self) -> Result<Head, StoreError>;

    /// Removes at most `limit` of the oldest rows: those beyond the newest
    /// `keep_rows`, and those from before `keep_since`. A checkpoint, written at
    /// `now`, covers them. Of the removed rows that are not from before
    /// `keep_since`, administrative changes ([`AuditKind::is_act`]) are carried
    /// over: they are appended behind the checkpoint with their original number as
    /// `count`, the newest of them, as long as such rows are at most one in
    /// [`AUDIT_ACTS_PART`](super::capacity::AUDIT_ACTS_PART). Returns the number
    /// of removed rows.
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
