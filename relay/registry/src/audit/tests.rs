//! The audit log over the real store: order, gaps, pruning, tampering.

use std::sync::atomic::{AtomicBool, AtomicU64};

use async_trait::async_trait;
use rendez_proto::audit::{AuditRow, Broken, Intact, Verifier};
use tempfile::TempDir;

use super::*;
use crate::store;
use crate::store::sqlite::SqliteStore;
use crate::testing::{FixedClock, MemoryStore, START, wait_until};

/// A store that can be down and that can pause in the middle of a write.
struct FlakyStore {
    store: SqliteStore,
    down: AtomicBool,
    /// The holder blocks writes.
    gate: tokio::sync::Mutex<()>,
    /// The holder blocks the results of writes.
    answers: tokio::sync::Mutex<()>,
}

#[async_trait]
impl AuditStore for FlakyStore {
    async fn append_audit(&self, events: &[AuditEvent]) -> Result<Head, StoreError> {
        let _open = self.gate.lock().await;
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("down".into()));
        }
        assert!(events.len() <= AUDIT_WRITE_BATCH);
        let head = self.store.append_audit(events).await;
        // the rows are in the database, but the caller has no result yet
        let _open = self.answers.lock().await;
        head
    }
    async fn audit_rows(&self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        self.store.audit_rows(after, limit).await
    }
    async fn audit_head(&self) -> Result<Head, StoreError> {
        self.store.audit_head().await
    }
    async fn prune_audit(
        &self,
        keep_rows: u64,
        keep_since: u64,
        limit: u32,
        now: u64,
    ) -> Result<u64, StoreError> {
        self.store.prune_audit(keep_rows, keep_since, limit, now).await
    }
}

struct Log {
    audit: Arc<Audit>,
    store: Arc<FlakyStore>,
    clock: Arc<FixedClock>,
    _dir: TempDir,
}

impl Log {
    async fn new(retention: AuditRetention) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("db")).await.unwrap();
        let gate = tokio::sync::Mutex::default();
        let answers = tokio::sync::Mutex::default();
        let store = Arc::new(FlakyStore { store, down: AtomicBool::new(false), gate, answers });
        let clock = Arc::new(FixedClock(AtomicU64::new(START)));
        let audit = Arc::new(Audit::new(store.clone(), clock.clone(), retention));
        Self { audit, store, clock, _dir: dir }
    }

    fn record(&self, n: u64) {
        let event = self.audit.event(AuditKind::Open);
        self.audit.record(AuditEvent { sent_bytes: Some(n), ..event });
    }

    async fn rows(&self) -> Vec<AuditRow> {
        let mut rows = Vec::new();
        let mut after = Some(0);
        while let Some(from) = after {
            let page = self.audit.page(from).await.unwrap();
            rows.extend(page.rows);
            after = page.next;
        }
        rows
    }

    async fn verify(&self, known: Option<Head>) -> Result<Intact, Broken> {
        let mut verifier = Verifier::expecting(known);
        self.rows().await.iter().try_for_each(|row| verifier.check(row))?;
        verifier.finish()
    }

    /// Changes the database as a user with access to the file could.
    async fn tamper(&self, sql: &'static str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(sql).execute(self.store.store.pool()).await.map(drop)
    }

    async fn without_triggers(&self) {
        self.tamper(
            "DROP TRIGGER audit_is_appended; DROP TRIGGER audit_is_not_changed; \
             DROP TRIGGER audit_is_pruned_behind_a_checkpoint",
        )
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn audit_events_survive_an_outage_in_order() {
    let log = Log::new(AuditRetention::default()).await;
    let count = AUDIT_WRITE_BATCH as u64 + 5;
    log.store.down.store(true, Ordering::SeqCst);
    (0..count).for_each(|n| log.record(n));
    assert!(log.audit.flush().await.is_err());
    assert_eq!(log.audit.unwritten() as u64, count);

    log.store.down.store(false, Ordering::SeqCst);
    log.audit.record(log.audit.event(AuditKind::Admin));
    log.audit.flush().await.unwrap();
    let head = log.audit.head().await.unwrap();
    let rows = log.rows().await;
    assert_eq!(rows.len() as u64, count + 1);
    let numbers: Vec<_> = rows.iter().filter_map(|row| row.event.sent_bytes).collect();
    assert!(numbers.iter().copied().eq(0..count), "each once, in order");
    assert_eq!(rows.last().unwrap().event.kind, AuditKind::Admin);
    assert_eq!(log.verify(Some(head)).await.unwrap().rows, count + 1);
    assert_eq!((log.audit.unwritten(), log.audit.lost()), (0, 0));
}

#[tokio::test]
async fn lost_events_are_counted_in_a_gap() {
    let log = Log::new(AuditRetention::default()).await;
    let bound = AUDIT_QUEUE_MAX as u64;
    (0..bound + 3).for_each(|n| log.record(n));
    assert_eq!((log.audit.unwritten() as u64, log.audit.lost()), (bound + 1, 3));

    // the gap grows while the rows before it are being written
    let gate = log.store.gate.lock().await;
    let writer = tokio::spawn({
        let audit = log.audit.clone();
        async move { audit.flush().await }
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    log.record(0);
    assert_eq!(log.audit.lost(), 4);
    drop(gate);
    writer.await.unwrap().unwrap();
    log.record(bound + 4);
    log.audit.flush().await.unwrap();

    let rows = log.rows().await;
    let kept = rows.iter().filter(|row| row.event.kind == AuditKind::Open).count();
    assert_eq!(kept as u64, bound + 1);
    let gap = &rows[rows.len() - 2].event;
    assert_eq!((gap.kind, gap.count), (AuditKind::Gap, Some(4)));
    assert_eq!(log.verify(None).await.unwrap().lost, 4);
}

#[tokio::test]
async fn gap_growing_during_write_is_counted_once() {
    let log = Log::new(AuditRetention::default()).await;
    let bound = AUDIT_QUEUE_MAX as u64;
    (0..bound + 1).for_each(|n| log.record(n));
    // leave only the gap in the queue
    let rest: Vec<_> = log.audit.unwritten.lock().drain(..AUDIT_QUEUE_MAX).collect();
    let gate = log.store.gate.lock().await;
    let writer = tokio::spawn({
        let audit = log.audit.clone();
        async move { audit.flush().await }
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    if let Some(gap) = log.audit.unwritten.lock().front_mut() {
        gap.count = Some(5);
    }
    drop(gate);
    writer.await.unwrap().unwrap();
    drop(rest);
    log.audit.flush().await.unwrap();
    assert_eq!(log.verify(None).await.unwrap().lost, 5);
}

#[tokio::test]
async fn cancelled_flush_writes_once() {
    let log = Log::new(AuditRetention::default()).await;
    (0..3).for_each(|n| log.record(n));
    let answers = log.store.answers.lock().await;
    let waiting = tokio::spawn({
        let audit = log.audit.clone();
        async move { audit.flush().await }
    });
    wait_until(async || log.audit.head().await.unwrap().seq >= 3).await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    drop(answers);
    log.audit.flush().await.unwrap();
    assert_eq!((log.rows().await.len(), log.audit.unwritten()), (3, 0));
}

#[tokio::test]
async fn several_writers_share_one_chain() {
    let log = Log::new(AuditRetention::default()).await;
    let other = Audit::new(log.store.clone(), log.clock.clone(), AuditRetention::default());
    let other = Arc::new(other);
    for n in 0..20 {
        log.record(n);
        other.record(other.event(AuditKind::Close));
        let (one, two) = tokio::join!(log.audit.flush(), other.flush());
        one.unwrap();
        two.unwrap();
    }
    assert_eq!(log.verify(None).await.unwrap().rows, 40);
}

#[tokio::test]
async fn pruned_log_still_verifies() {
    let log = Log::new(AuditRetention { rows: 10, age: Duration::from_secs(100) }).await;
    (0..30).for_each(|n| log.record(n));
    log.audit.flush().await.unwrap();
    let noted = log.audit.head().await.unwrap();
    assert_eq!(log.audit.prune().await.unwrap(), 20);
    let intact = log.verify(Some(noted)).await.unwrap();
    assert_eq!((intact.first, intact.rows), (21, 11), "ten and the checkpoint");

    // the checkpoint is one row beyond the bound; a second one covers the first
    log.record(30);
    log.audit.flush().await.unwrap();
    assert_eq!(log.audit.prune().await.unwrap(), 2);
    assert_eq!(log.verify(Some(noted)).await.unwrap().first, 23);

    // everything is too old; only the checkpoint remains
    log.clock.0.fetch_add(101, Ordering::SeqCst);
    assert!(log.audit.prune().await.unwrap() > 0);
    let rows = log.rows().await;
    assert_eq!(rows.iter().map(|row| row.event.kind).collect::<Vec<_>>(), [AuditKind::Checkpoint]);
    let head = log.verify(None).await.unwrap().head;
    assert!(matches!(log.verify(Some(noted)).await, Err(Broken::HeadTooOld { head: 30 })));
    assert_eq!(log.audit.prune().await.unwrap(), 0, "a checkpoint is not a reason for another");
    assert_eq!(log.verify(Some(head)).await.unwrap().rows, 1);
}

/// The original numbers of the rows about administrative changes.
async fn acts(log: &Log) -> Vec<u64> {
    let rows = log.rows().await.into_iter().filter(|row| row.event.kind.is_act());
    rows.map(|row| row.event.count.unwrap_or(row.seq)).collect()
}

#[tokio::test]
async fn flood_does_not_prune_administrative_events() {
    let log = Log::new(AuditRetention { rows: 20, age: Duration::from_secs(100) }).await;
    let act = |kind, what: &str| {
        let what = Some(what.to_owned());
        log.audit.record(AuditEvent { what, ..log.audit.event(kind) });
    };
    act(AuditKind::Admin, "one");
    log.record(0);
    act(AuditKind::Revoke, "three");
    act(AuditKind::Enrol, "four");
    let floods = async |times: u64| {
        for n in 0..times {
            (0..50).for_each(|n| log.record(n));
            log.audit.flush().await.unwrap();
            let noted = log.audit.head().await.unwrap();
            assert!(log.audit.prune().await.unwrap() > 0);
            let intact = log.verify(Some(noted)).await.unwrap();
            assert!(intact.rows <= 20 + 1 + 10, "{} rows after {n}", intact.rows);
        }
    };
    floods(5).await;
    assert_eq!(acts(&log).await, [1, 3, 4]);
    let rows = log.rows().await;
    let one = rows.iter().find(|row| row.event.count == Some(1)).unwrap();
    let expected = (AuditKind::Admin, Some("one"), START);
    assert_eq!((one.event.kind, one.event.what.as_deref(), one.event.at_unix_secs), expected);

    // these rows are bounded too: the newest stay, up to half of the log
    (0..30).for_each(|_| act(AuditKind::Admin, "many"));
    let before = log.rows().await.last().unwrap().seq;
    floods(5).await;
    assert_eq!(acts(&log).await, (before + 21..=before + 30).collect::<Vec<_>>());

    // and none is kept longer than other rows
    log.clock.0.fetch_add(101, Ordering::SeqCst);
    act(AuditKind::Admin, "young");
    let young = log.rows().await.last().unwrap().seq + 1;
    floods(2).await;
    assert_eq!(acts(&log).await, [young]);
}

#[tokio::test]
async fn carried_over_kinds_match_the_index() {
    let log = Log::new(AuditRetention { rows: 40, ..AuditRetention::default() }).await;
    AuditKind::ALL.iter().for_each(|kind| log.audit.record(log.audit.event(*kind)));
    (0..50).for_each(|n| log.record(n));
    log.audit.flush().await.unwrap();
    log.audit.prune().await.unwrap();
    let rows = log.rows().await.into_iter().map(|row| row.event);
    let carried = rows.filter(|event| event.kind != AuditKind::Open && event.count.is_some());
    let carried = carried.map(|event| event.kind).filter(|kind| *kind != AuditKind::Checkpoint);
    let acts = AuditKind::ALL.iter().copied().filter(|kind| kind.is_act());
    assert_eq!(carried.collect::<Vec<_>>(), acts.collect::<Vec<_>>());
}

#[tokio::test]
async fn pruning_by_age_stops_at_first_young_row() {
    let log = Log::new(AuditRetention::default()).await;
    (0..30).for_each(|n| log.record(n));
    log.audit.flush().await.unwrap();
    let cut = async |since| log.store.prune_audit(1000, since, 10, START).await.unwrap();
    assert_eq!(cut(START + 1).await, 10, "all are old");
    // the clock was set back: rows behind a young row stay
    log.clock.0.fetch_add(5, Ordering::SeqCst);
    log.record(30);
    log.clock.0.fetch_sub(5, Ordering::SeqCst);
    (31..60).for_each(|n| log.record(n));
    log.audit.flush().await.unwrap();
    for expected in [10, 10, 1, 0] {
        assert_eq!(cut(START + 1).await, expected, "up to the young one");
    }
    log.verify(None).await.unwrap();
}

/// Advances the paused clock and lets every task do what is due.
async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn repeated_refusals_get_one_row_a_minute() {
    let store = Arc::<MemoryStore>::default();
    let clock = Arc::new(FixedClock(AtomicU64::new(START)));
    let audit = Arc::new(Audit::new(store.clone(), clock, AuditRetention::default()));
    let writer = tokio::spawn({
        let audit = audit.clone();
        async move { audit.run().await }
    });
    let away = AuditEvent { what: Some("away".to_owned()), ..audit.event(AuditKind::Connect) };
    let counts = || {
        let rows = store.events.lock();
        rows.iter().map(|event| event.count).collect::<Vec<_>>()
    };
    audit.record_refusal(away.clone());
    pass(Duration::from_millis(500)).await;
    for second in 0..150 {
        assert_eq!(audit.unwritten(), 0);
        (0..100).for_each(|_| audit.record_refusal(away.clone()));
        pass(Duration::from_secs(1)).await;
        assert_eq!(counts().len(), 1 + (2 * second + 3) / 120, "after second {second}");
    }
    assert_eq!(counts()[0], None);
    writer.abort();
    // a relay that stops writes all of them
    audit.flush_all().await.unwrap();
    let all: u64 = counts().into_iter().map(|count| count.unwrap_or(1)).sum();
    assert_eq!(all, 1 + 150 * 100);
}

#[tokio::test]
async fn flood_is_pruned_before_the_interval() {
    let log = Log::new(AuditRetention { rows: 10, ..AuditRetention::default() }).await;
    let writer = tokio::spawn({
        let audit = log.audit.clone();
        async move { audit.run().await }
    });
    let began = Instant::now();
    let bound = u64::from(AUDIT_PRUNE_BATCH);
    let mut recorded = 0;
    while log.rows().await.first().is_none_or(|row| row.seq < bound) {
        assert!(recorded < 3 * bound, "nothing is pruned");
        (0..500).for_each(|n| log.record(n));
        recorded += 500;
        log.audit.flush().await.unwrap();
    }
    assert!(began.elapsed() < store::PRUNE_INTERVAL);
    writer.abort();
}

#[tokio::test]
async fn retention_can_change_at_run_time() {
    let log = Log::new(AuditRetention::default()).await;
    let writer = tokio::spawn({
        let audit = log.audit.clone();
        async move { audit.run().await }
    });
    (0..30).for_each(|n| log.record(n));
    log.audit.flush().await.unwrap();
    log.audit.set_retention(AuditRetention { rows: 10, ..AuditRetention::default() });
    wait_until(async || log.rows().await.len() == 11).await;
    writer.abort();
    assert_eq!(log.verify(None).await.unwrap().first, 21);
}

#[tokio::test]
async fn database_triggers_protect_audit_rows() {
    let log = Log::new(AuditRetention::default()).await;
    (0..6).for_each(|n| log.record(n));
    log.audit.flush().await.unwrap();
    for sql in [
        "UPDATE audit SET sent_bytes = 99 WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 3",
        "DELETE FROM audit WHERE seq = 6",
        "DELETE FROM audit",
        "INSERT INTO audit SELECT 9, at, kind, actor, environment, registration, stream, what, \
         received_bytes, sent_bytes, count, previous, hash FROM audit WHERE seq = 6",
        "REPLACE INTO audit SELECT * FROM audit WHERE seq = 3",
    ] {
        assert!(log.tamper(sql).await.is_err(), "{sql}");
    }
    assert_eq!(log.verify(None).await.unwrap().rows, 6);
}

#[tokio::test]
async fn tampering_breaks_the_chain() {
    let broken = async |sql, known: bool| {
        let log = Log::new(AuditRetention::default()).await;
        (0..6).for_each(|n| log.record(n));
        log.audit.flush().await.unwrap();
        let head = log.audit.head().await.unwrap();
        log.without_triggers().await;
        log.tamper(sql).await.unwrap();
        log.verify(known.then_some(head)).await.unwrap_err()
    };
    let edited = broken("UPDATE audit SET sent_bytes = 99 WHERE seq = 3", false).await;
    assert_eq!(edited, Broken::Edited { seq: 3 });
    let deleted = broken("DELETE FROM audit WHERE seq = 3", false).await;
    assert_eq!(deleted, Broken::Missing { from: 3, to: 3 });
    let renumbered = broken(
        "DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = seq - 1 WHERE seq > 3",
        false,
    )
    .await;
    assert_eq!(renumbered, Broken::Edited { seq: 3 });
    let reordered = broken(
        "UPDATE audit SET seq = 100 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 4; \
         UPDATE audit SET seq = 4 WHERE seq = 100",
        false,
    )
    .await;
    assert_eq!(reordered, Broken::Edited { seq: 3 });
    let beheaded = broken("DELETE FROM audit WHERE seq < 3", false).await;
    assert_eq!(beheaded, Broken::Beginning { first: 3 });
    let cut = broken("DELETE FROM audit WHERE seq > 4", true).await;
    assert_eq!(cut, Broken::CutOff { head: 6, last: 4 });
    let emptied = broken("DELETE FROM audit", true).await;
    assert_eq!(emptied, Broken::CutOff { head: 6, last: 0 });
}

#[tokio::test]
async fn background_writer_flushes_by_itself() {
    let log = Log::new(AuditRetention::default()).await;
    let writer = tokio::spawn({
        let audit = log.audit.clone();
        async move { audit.run().await }
    });
    log.record(1);
    wait_until(async || log.audit.unwritten() == 0).await;
    writer.abort();
    assert_eq!(log.verify(None).await.unwrap().rows, 1);
}
