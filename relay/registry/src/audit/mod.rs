//! The audit log: who did what, without the content of what was exchanged.
//!
//! An event is written in one of two ways:
//!
//! * [`Audit::record`] never waits. It is for frequent events: register, connect,
//!   validate, open, close, quota. Up to [`AUDIT_QUEUE_MAX`] events wait for the
//!   writer. Beyond that, events are lost and counted, and a `gap` row stands in
//!   their place. [`Audit::record_refusal`] is for refusals, which a client can
//!   cause at will: it writes the first of a kind and counts the others.
//! * A change that must leave a trace (enrol, revoke, admin) is written by the
//!   store in the transaction that makes the change, so neither exists without the
//!   other. [`Audit::flush`] writes the earlier events first.
//!
//! Invariants
//!
//! * Events are written once, in the order in which they arrive, in transactions
//!   of at most [`AUDIT_WRITE_BATCH`].
//! * Cancelling a caller that waits for a write neither loses nor repeats an
//!   event: the write runs to its end in a task of its own.

mod refusal_aggregator;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rendez_proto::audit::{AuditEvent, AuditKind, AuditPage, Head};
use rendez_proto::limits;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use self::refusal_aggregator::RefusalAggregator;
use crate::page;
use crate::store;
use crate::store::{AuditStore, StoreError};
use crate::traits::Clock;

/// The events that may wait to be written. Further events are lost and counted,
/// and a row records the gap. The bound is a few seconds of a busy relay.
pub(crate) const AUDIT_QUEUE_MAX: usize = 16_384;

/// The events that one transaction writes.
pub(crate) const AUDIT_WRITE_BATCH: usize = 512;

/// The rows that one transaction removes.
pub(crate) const AUDIT_PRUNE_BATCH: u32 = 5000;

/// How much of the audit log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditRetention {
    /// The largest number of rows.
    pub rows: u64,
    /// The largest age of a row.
    pub age: Duration,
}

impl Default for AuditRetention {
    fn default() -> Self {
        Self { rows: limits::AUDIT_KEEP_ROWS, age: limits::AUDIT_KEEP_AGE }
    }
}

/// The audit log's writer.
pub struct Audit {
    store: Arc<dyn AuditStore>,
    clock: Arc<dyn Clock>,
    retention: Mutex<AuditRetention>,
    /// The next iteration of the writer prunes.
    prune_now: AtomicBool,
    /// The last entry may be a gap, one beyond the bound.
    unwritten: Mutex<VecDeque<AuditEvent>>,
    refusals: Mutex<RefusalAggregator>,
    /// Notified when an event is recorded.
    recorded: Notify,
    /// Held by one writer at a time, so that rows keep the order of the queue.
    writing: tokio::sync::Mutex<()>,
    lost: AtomicU64,
    /// Rows written since the start.
    written: AtomicU64,
}

impl Audit {
    pub(crate) fn new(
        store: Arc<dyn AuditStore>,
        clock: Arc<dyn Clock>,
        retention: AuditRetention,
    ) -> Self {
        Self {
            store,
            clock,
            retention: Mutex::new(retention),
            prune_now: AtomicBool::new(true),
            unwritten: Mutex::default(),
            refusals: Mutex::default(),
            recorded: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            lost: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Creates an event of this kind with the current time.
    pub fn event(&self, kind: AuditKind) -> AuditEvent {
        AuditEvent::new(kind, self.clock.now_unix_secs())
    }

    /// Queues an event for the writer.
    pub fn record(&self, event: AuditEvent) {
        let mut unwritten = self.unwritten.lock();
        if unwritten.len() < AUDIT_QUEUE_MAX {
            unwritten.push_back(event);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            match unwritten.back_mut() {
                // only a gap may exceed the bound
                Some(gap) if gap.kind == AuditKind::Gap => {
                    gap.count = gap.count.map(|count| count.saturating_add(1));
                }
                _ => unwritten.push_back(AuditEvent {
                    count: Some(1),
                    ..AuditEvent::new(AuditKind::Gap, event.at_unix_secs)
                }),
            }
        }
        drop(unwritten);
        self.recorded.notify_one();
    }

    /// Records an event that a client can repeat at no cost. The first one of an
    /// actor and reason is written soon. The following ones are aggregated into
    /// one row per
    /// [`REFUSAL_ROW_INTERVAL`](refusal_aggregator::REFUSAL_ROW_INTERVAL), with
    /// their number and the fields that they have in common.
    pub fn record_refusal(&self, event: AuditEvent) {
        let first = self.refusals.lock().record(event, Instant::now());
        if let Some(first) = first {
            self.record(first);
        }
    }

    /// Queues the aggregated refusals that are due, or all of them.
    fn record_aggregated(&self, all: bool) {
        let rows = self.refusals.lock().due(Instant::now(), self.clock.now_unix_secs(), all);
        rows.into_iter().for_each(|row| self.record(row));
    }

    /// Writes all events, aggregated refusals included, when a relay stops.
    ///
    /// # Errors
    /// The database refused the write.
    pub(crate) async fn flush_all(self: &Arc<Self>) -> Result<(), StoreError> {
        self.record_aggregated(true);
        self.flush().await
    }

    /// Writes the events that were recorded before this call.
    ///
    /// # Errors
    /// The database refused the write. The remaining events are kept for the next
    /// call.
    pub async fn flush(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.unwritten() == 0 {
            return Ok(());
        }
        // The database has a thread of its own: a transaction may complete although
        // its caller was cancelled, so the write must be observed to its end.
        let this = self.clone();
        let writing = tokio::spawn(async move {
            let _one_at_a_time = this.writing.lock().await;
            this.write().await
        });
        writing.await.unwrap_or_else(|ended| Err(StoreError::Unavailable(ended.into())))
    }

    /// Changes the retention from now on.
    pub fn set_retention(&self, retention: AuditRetention) {
        let mut current = self.retention.lock();
        if std::mem::replace(&mut *current, retention) != retention {
            self.prune_now.store(true, Ordering::Relaxed);
            self.recorded.notify_one();
        }
    }

    /// Returns the number of events that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.unwritten.lock().len()
    }

    /// Returns the number of events lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Returns the end of the chain.
    ///
    /// # Errors
    /// The store's.
    pub async fn head(&self) -> Result<Head, StoreError> {
        self.store.audit_head().await
    }

    /// Returns one page of the rows after number `after`.
    ///
    /// # Errors
    /// The store's.
    pub async fn page(&self, after: u64) -> Result<AuditPage, StoreError> {
        let rows = self.store.audit_rows(after, limits::LIST_PAGE_MAX).await?;
        let next = page::next_cursor(&rows, |row| row.seq);
        Ok(AuditPage { rows, next })
    }

    /// Writes queued events and prunes old rows, forever.
    pub(crate) async fn run(self: &Arc<Self>) {
        let mut failing = false;
        let mut prune_at = Instant::now();
        let mut rows_at_prune = 0;
        loop {
            if self.unwritten() == 0 && !self.prune_now.load(Ordering::Relaxed) {
                let wake =
                    self.refusals.lock().next_due().map_or(prune_at, |due| due.min(prune_at));
                let _ = timeout_at(wake, self.recorded.notified()).await;
            }
            self.record_aggregated(false);
            let mut done = self.flush().await;
            let written = self.written.load(Ordering::Relaxed);
            // so that a flood exceeds the retention by at most one batch
            let many = written - rows_at_prune >= u64::from(AUDIT_PRUNE_BATCH);
            let due = many || Instant::now() >= prune_at;
            if done.is_ok() && (self.prune_now.swap(false, Ordering::Relaxed) || due) {
                prune_at = Instant::now() + store::PRUNE_INTERVAL;
                rows_at_prune = written;
                done = self.prune().await.map(drop);
            }
            match done {
                Ok(()) => failing = false,
                Err(error) => {
                    // log once per outage
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "failed to write the audit log, retrying");
                    }
                    sleep(store::WRITE_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Removes the rows that exceed the retention and returns their number.
    pub(crate) async fn prune(&self) -> Result<u64, StoreError> {
        let now = self.clock.now_unix_secs();
        let keep = *self.retention.lock();
        let since = now.saturating_sub(keep.age.as_secs());
        let mut removed = 0;
        loop {
            // batches let other writers in between
            let limit = AUDIT_PRUNE_BATCH;
            let batch = self.store.prune_audit(keep.rows, since, limit, now).await?;
            removed += batch;
            if batch < u64::from(limit) {
                break;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "pruned the audit log");
        }
        Ok(removed)
    }

    /// The caller holds `writing`.
    async fn write(&self) -> Result<(), StoreError> {
        let mut left = self.unwritten();
        while left > 0 {
            let batch: Vec<AuditEvent> =
                self.unwritten.lock().iter().take(left.min(AUDIT_WRITE_BATCH)).cloned().collect();
            self.store.append_audit(&batch).await?;
            self.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
            left -= batch.len();
            let mut unwritten = self.unwritten.lock();
            for written in &batch {
                match unwritten.front_mut() {
                    // a gap that has grown during the write
                    Some(gap) if gap.kind == AuditKind::Gap && gap.count > written.count => {
                        gap.count = gap.count.zip(written.count).map(|(all, some)| all - some);
                    }
                    _ => drop(unwritten.pop_front()),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
