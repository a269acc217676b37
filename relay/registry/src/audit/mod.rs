//! The audit log: who did what, without what was said.
//!
//! Two ways in:
//!
//! * [`Audit::record`] never waits: for what happens often (register, connect,
//!   validate, open, close, quota). Up to [`AUDIT_UNWRITTEN`] events
//!   wait for the writer. Beyond that they are lost, counted, and a `gap` row
//!   stands where they would: the log says what it does not know.
//!   [`Audit::record_refusal`] is the same for what whoever is refused may do as
//!   often as it likes: the first of a kind is written, the others are counted.
//! * What must leave a trace (enrol, revoke, admin) does not come here: the
//!   store writes its row in the transaction that does the thing, so neither
//!   is without the other. What was recorded before is written first, by
//!   [`Audit::flush`].
//!
//! Invariants
//!
//! * Events are written in the order in which they came, in transactions of at
//!   most [`AUDIT_PER_WRITE`], and each is written once.
//! * Cancelling whoever waits for a write neither loses nor refusal_aggregator anything:
//!   a write runs in a task of its own to its end.

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

/// Events of the audit log that wait to be written; beyond it, they are lost,
/// counted, and a row says so. A few seconds of a busy relay.
pub(crate) const AUDIT_UNWRITTEN: usize = 16_384;

/// Events of the audit log that one transaction writes.
pub(crate) const AUDIT_PER_WRITE: usize = 512;

/// Rows of the audit log that one transaction removes.
pub(crate) const AUDIT_PRUNE_BATCH: u32 = 5000;

/// How much of the log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditRetention {
    /// At most this many rows.
    pub rows: u64,
    /// None that are older.
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
    /// What is too much is looked for at once.
    prune_now: AtomicBool,
    /// At its end may be a gap beyond the bound.
    unwritten: Mutex<VecDeque<AuditEvent>>,
    refusals: Mutex<RefusalAggregator>,
    /// Something was recorded.
    recorded: Notify,
    /// One at a time: the order is that of the queue.
    writing: tokio::sync::Mutex<()>,
    lost: AtomicU64,
    /// Rows since the start.
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

    /// An event of this kind that happens now.
    pub fn event(&self, kind: AuditKind) -> AuditEvent {
        AuditEvent::new(kind, self.clock.now_unix_secs())
    }

    /// Takes an event and has it written soon.
    pub fn record(&self, event: AuditEvent) {
        let mut unwritten = self.unwritten.lock();
        if unwritten.len() < AUDIT_UNWRITTEN {
            unwritten.push_back(event);
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
            match unwritten.back_mut() {
                // only a gap is beyond the bound
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

    /// Takes an event that whoever causes it can repeat at no cost. The first of
    /// an actor and a word is written soon, those that follow are one row per
    /// [`refusal_aggregator::REFUSAL_ROW_INTERVAL`] together, with their number and with what is
    /// the same of all of them.
    pub fn record_refusal(&self, event: AuditEvent) {
        let first = self.refusals.lock().record(event, Instant::now());
        if let Some(first) = first {
            self.record(first);
        }
    }

    /// Records refusals that are counted and due, or all.
    fn record_aggregated(&self, all: bool) {
        let rows = self.refusals.lock().due(Instant::now(), self.clock.now_unix_secs(), all);
        rows.into_iter().for_each(|row| self.record(row));
    }

    /// Writes all there is, for a relay that stops.
    ///
    /// # Errors
    /// The database refused.
    pub(crate) async fn flush_all(self: &Arc<Self>) -> Result<(), StoreError> {
        self.record_aggregated(true);
        self.flush().await
    }

    /// Writes what was recorded before this call.
    ///
    /// # Errors
    /// The database refused; what is left is kept for the next call.
    pub async fn flush(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.unwritten() == 0 {
            return Ok(());
        }
        // A transaction whose end nobody waits for may be done all the same:
        // the database has a thread of its own.
        let this = self.clone();
        let writing = tokio::spawn(async move {
            let _one_at_a_time = this.writing.lock().await;
            this.write().await
        });
        writing.await.unwrap_or_else(|ended| Err(StoreError::Unavailable(ended.into())))
    }

    /// Changes how much is kept, from now on.
    pub fn set_retention(&self, retention: AuditRetention) {
        let mut current = self.retention.lock();
        if std::mem::replace(&mut *current, retention) != retention {
            self.prune_now.store(true, Ordering::Relaxed);
            self.recorded.notify_one();
        }
    }

    /// How many events wait to be written.
    pub fn unwritten(&self) -> usize {
        self.unwritten.lock().len()
    }

    /// How many were lost since the start.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The end of the chain.
    ///
    /// # Errors
    /// The store's.
    pub async fn head(&self) -> Result<Head, StoreError> {
        self.store.audit_head().await
    }

    /// The rows after number `after`, one page of them.
    ///
    /// # Errors
    /// The store's.
    pub async fn page(&self, after: u64) -> Result<AuditPage, StoreError> {
        let rows = self.store.audit_rows(after, limits::LIST_PAGE_MAX).await?;
        let next = page::next_cursor(&rows, |row| row.seq);
        Ok(AuditPage { rows, next })
    }

    /// Writes what is recorded and removes what is old, for ever.
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
            // so that no flood makes more of them than a batch too many
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
                    // once per outage
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "the audit log cannot be written now");
                    }
                    sleep(store::WRITE_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Removes what is too much or too old. How many rows.
    pub(crate) async fn prune(&self) -> Result<u64, StoreError> {
        let now = self.clock.now_unix_secs();
        let keep = *self.retention.lock();
        let since = now.saturating_sub(keep.age.as_secs());
        let mut removed = 0;
        loop {
            // lets others write in between
            let limit = AUDIT_PRUNE_BATCH;
            let batch = self.store.prune_audit(keep.rows, since, limit, now).await?;
            removed += batch;
            if batch < u64::from(limit) {
                break;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "old rows of the audit log were removed");
        }
        Ok(removed)
    }

    /// Whoever calls this holds `writing`.
    async fn write(&self) -> Result<(), StoreError> {
        let mut left = self.unwritten();
        while left > 0 {
            let batch: Vec<AuditEvent> =
                self.unwritten.lock().iter().take(left.min(AUDIT_PER_WRITE)).cloned().collect();
            self.store.append_audit(&batch).await?;
            self.written.fetch_add(batch.len() as u64, Ordering::Relaxed);
            left -= batch.len();
            let mut unwritten = self.unwritten.lock();
            for written in &batch {
                match unwritten.front_mut() {
                    // a gap that has grown meanwhile
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
