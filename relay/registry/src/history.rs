//! The history of connections: recorded at once, written in the background.
//!
//! Invariants
//!
//! * [`History::record`] never waits. Records stay in memory until the database
//!   has them, so that a slow or failing database delays no connection.
//! * If a connection changes before it is written, only its last state is written.
//! * A connection is inserted once. Later writes only update it, also if its row
//!   has been pruned meanwhile.
//! * At most [`CONNECTIONS_QUEUE_MAX`] records wait. Beyond that, the oldest is
//!   lost and counted.
//! * Cancelling `History::run` or [`History::flush`] loses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rendez_proto::limits;
use rendez_proto::registry::environments::EndReason;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::store;
use crate::store::ConnectionStore;
use crate::store::StoreError;
use crate::store::capacity;
use crate::store::connections::{ConnectionId, ConnectionRow, ConnectionUpdate, PreviousEnd};
use crate::traits::Clock;

/// The records that may wait to be written. The bound exceeds the connections of a
/// node. Beyond it, the oldest record is lost and counted.
pub(crate) const CONNECTIONS_QUEUE_MAX: usize = 65_536;

/// The records that one transaction writes. It delays other writers by a few
/// milliseconds at most.
pub(crate) const CONNECTIONS_WRITE_BATCH: usize = 256;

/// How much of the history is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRetention {
    /// The largest number of connections per environment. Older ones are removed
    /// with the next connection of the environment.
    pub connections: u32,
    /// The largest age of an ended connection. The last connection of each
    /// environment stays.
    pub age: Duration,
}

impl Default for HistoryRetention {
    fn default() -> Self {
        Self { connections: limits::CONNECTIONS_PER_ENVIRONMENT, age: limits::CONNECTIONS_KEEP_AGE }
    }
}

/// The queue of unwritten connections and their writer.
pub struct History {
    store: Arc<dyn ConnectionStore>,
    clock: Arc<dyn Clock>,
    retention: Mutex<HistoryRetention>,
    /// The next iteration of the writer prunes.
    prune_now: AtomicBool,
    /// Random number of this start, part of every connection id.
    instance: u64,
    numbers: AtomicU64,
    queue: Mutex<Queue>,
    /// Notified when a connection is recorded.
    recorded: Notify,
    /// Held by one writer at a time, so that an older state never overwrites a
    /// newer one.
    writing: tokio::sync::Mutex<()>,
    lost: AtomicU64,
    /// Connections that began, by the end of the one before them. The last counter
    /// is for those without a predecessor.
    began: [AtomicU64; EndReason::ALL.len() + 1],
}

#[derive(Default)]
struct Queue {
    unwritten: BTreeMap<u64, Queued>,
    /// Connections that are inserted and have not ended in the database: open
    /// ones, and those in `unwritten`.
    inserted: BTreeSet<u64>,
}

struct Queued {
    connection: ConnectionRow,
    /// Detects changes during a write.
    version: u64,
}

impl History {
    pub(crate) fn new(
        store: Arc<dyn ConnectionStore>,
        clock: Arc<dyn Clock>,
        instance: u64,
        retention: HistoryRetention,
    ) -> Self {
        Self {
            store,
            clock,
            retention: Mutex::new(retention),
            prune_now: AtomicBool::new(true),
            instance,
            numbers: AtomicU64::new(0),
            queue: Mutex::default(),
            recorded: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            lost: AtomicU64::new(0),
            began: [const { AtomicU64::new(0) }; EndReason::ALL.len() + 1],
        }
    }

    /// Returns the id for a new connection.
    pub fn next_id(&self) -> ConnectionId {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        ConnectionId { instance: self.instance, number }
    }

    /// Queues the current state of a connection.
    pub fn record(&self, connection: ConnectionRow) {
        let mut queue = self.queue.lock();
        let Queue { unwritten, inserted } = &mut *queue;
        let number = connection.id.number;
        let version = unwritten.get(&number).map_or(0, |noted| noted.version + 1);
        unwritten.insert(number, Queued { connection, version });
        if unwritten.len() > CONNECTIONS_QUEUE_MAX {
            if let Some((lost, _)) = unwritten.pop_first() {
                inserted.remove(&lost);
            }
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        drop(queue);
        self.recorded.notify_one();
    }

    /// Changes the retention from now on.
    pub fn set_retention(&self, retention: HistoryRetention) {
        let mut current = self.retention.lock();
        if std::mem::replace(&mut *current, retention) != retention {
            self.prune_now.store(true, Ordering::Relaxed);
            self.recorded.notify_one();
        }
    }

    /// Returns the current retention.
    pub fn retention(&self) -> HistoryRetention {
        *self.retention.lock()
    }

    /// Returns the number of connections that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.queue.lock().unwritten.len()
    }

    /// Returns the number of records lost since the start because the database was
    /// unavailable for too long.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Returns the number of connections written since the start whose predecessor
    /// ended for this reason, or that had no predecessor.
    pub fn connections_after(&self, previous: PreviousEnd) -> u64 {
        self.counter(previous).load(Ordering::Relaxed)
    }

    fn counter(&self, previous: PreviousEnd) -> &AtomicU64 {
        &self.began[previous.map_or(EndReason::ALL.len(), |why| why as usize)]
    }

    /// Writes what was recorded before this call.
    ///
    /// # Errors
    /// The database refused the write. The remaining records are kept for the next
    /// call.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.writing.lock().await;
        // Connections recorded meanwhile have higher numbers, or are written again.
        let Some(last) = self.queue.lock().unwritten.last_key_value().map(|(number, _)| *number)
        else {
            return Ok(());
        };
        let mut from = 0;
        // Ends: each iteration starts after the last number of the one before.
        while from <= last {
            let batch: Vec<(u64, ConnectionUpdate)> = {
                let queue = self.queue.lock();
                let Queue { unwritten, inserted } = &*queue;
                let next = unwritten.range(from..=last).take(CONNECTIONS_WRITE_BATCH);
                let note = |(number, noted): (&u64, &Queued)| {
                    let connection = noted.connection.clone();
                    (
                        noted.version,
                        ConnectionUpdate { connection, inserted: inserted.contains(number) },
                    )
                };
                next.map(note).collect()
            };
            let Some((_, end)) = batch.last() else { break };
            from = end.connection.id.number + 1;
            let (versions, written): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
            let keep = self.retention().connections;
            for previous in self.store.write_connections(&written, keep).await? {
                self.counter(previous).fetch_add(1, Ordering::Relaxed);
            }
            let mut queue = self.queue.lock();
            let Queue { unwritten, inserted } = &mut *queue;
            for (version, ConnectionUpdate { connection, .. }) in versions.into_iter().zip(&written)
            {
                let number = connection.id.number;
                match connection.ended {
                    None => inserted.insert(number),
                    Some(_) => inserted.remove(&number),
                };
                if unwritten.get(&number).is_some_and(|noted| noted.version == version) {
                    unwritten.remove(&number);
                }
            }
        }
        Ok(())
    }

    /// Writes queued connections and prunes old ones, forever.
    pub(crate) async fn run(&self) {
        let mut failing = false;
        let mut prune_at = Instant::now();
        loop {
            if self.unwritten() == 0 && !self.prune_now.load(Ordering::Relaxed) {
                let _ = timeout_at(prune_at, self.recorded.notified()).await;
            }
            let mut done = self.flush().await;
            let due = Instant::now() >= prune_at;
            if done.is_ok() && (self.prune_now.swap(false, Ordering::Relaxed) || due) {
                prune_at = Instant::now() + store::PRUNE_INTERVAL;
                done = self.prune().await.map(drop);
            }
            match done {
                Ok(()) => failing = false,
                Err(error) => {
                    // log once per outage
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "failed to write the history of connections, retrying");
                    }
                    sleep(store::WRITE_RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Removes the connections that are too old and returns their number.
    pub(crate) async fn prune(&self) -> Result<u64, StoreError> {
        let age = self.retention().age.as_secs();
        let before = self.clock.now_unix_secs().saturating_sub(age);
        let mut removed = 0;
        loop {
            // batches let other writers in between
            let limit = capacity::CONNECTIONS_PRUNE_BATCH;
            let batch = self.store.prune_connections(before, limit).await?;
            removed += batch;
            if batch < u64::from(limit) {
                break;
            }
        }
        if removed > 0 {
            tracing::info!(removed, "pruned the history of connections");
        }
        Ok(removed)
    }

    /// Ends the connections that are open in the history. A relay that starts
    /// calls this: the one before it may not have shut down cleanly.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_open(&self) -> Result<u64, StoreError> {
        let (now, why) = (self.clock.now_unix_secs(), EndReason::RelayRestarted);
        let ended = self.store.end_open_connections(now, why).await?;
        if ended > 0 {
            tracing::info!(ended, "ended connections of a relay that did not shut down cleanly");
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use rendez_proto::ids::Generation;

    use super::*;
    use crate::testing::{FixedClock, MemoryStore, START, env};

    fn history_of(kept: Arc<MemoryStore>) -> History {
        let clock = Arc::new(FixedClock(AtomicU64::new(START)));
        History::new(kept, clock, 7, HistoryRetention::default())
    }

    fn connection(history: &History) -> ConnectionRow {
        ConnectionRow {
            id: history.next_id(),
            environment: env("dev"),
            registration: "reg_a".parse().unwrap(),
            generation: Generation(1),
            connected_at: 10,
            ended: None,
            received_bytes: 0,
            sent_bytes: 0,
        }
    }

    fn new(connection: ConnectionRow) -> ConnectionUpdate {
        ConnectionUpdate { connection, inserted: false }
    }

    #[tokio::test]
    async fn written_connections_are_updated_afterwards() {
        let kept = Arc::new(MemoryStore::default());
        let history = history_of(kept.clone());
        let open = connection(&history);
        let over = ConnectionRow { ended: Some((20, EndReason::PingTimeout)), ..open.clone() };
        kept.down.store(true, Ordering::SeqCst);
        history.record(open.clone());
        assert!(history.flush().await.is_err());
        kept.down.store(false, Ordering::SeqCst);
        history.flush().await.unwrap();
        kept.down.store(true, Ordering::SeqCst);
        history.record(over.clone());
        assert!(history.flush().await.is_err());
        kept.down.store(false, Ordering::SeqCst);
        history.flush().await.unwrap();
        let changed = ConnectionUpdate { connection: over, inserted: true };
        assert_eq!(*kept.connections.lock(), [vec![new(open)], vec![changed]]);
        assert!(history.queue.lock().inserted.is_empty());
    }

    #[tokio::test]
    async fn last_state_is_written_once() {
        let kept = Arc::new(MemoryStore::default());
        let history = history_of(kept.clone());
        let mut first = connection(&history);
        history.record(first.clone());
        first.ended = Some((20, EndReason::PingTimeout));
        history.record(first.clone());
        let second = connection(&history);
        history.record(second.clone());
        history.flush().await.unwrap();
        assert_eq!(history.unwritten(), 0);
        history.flush().await.unwrap();
        assert_eq!(*kept.connections.lock(), [[first, second].map(new).to_vec()]);
        let mut ways = vec![(None, 1)];
        ways.extend(EndReason::ALL.iter().map(|why| (Some(*why), 0)));
        ways[1 + EndReason::Revoked as usize].1 = 1;
        for (before, count) in ways {
            assert_eq!(history.connections_after(before), count, "{before:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn database_outage_loses_no_history() {
        let kept = Arc::new(MemoryStore::default());
        kept.down.store(true, Ordering::SeqCst);
        let history = Arc::new(history_of(kept.clone()));
        let noted: Vec<_> = (0..CONNECTIONS_WRITE_BATCH + 1)
            .map(|_| connection(&history))
            .inspect(|connection| history.record(connection.clone()))
            .collect();
        assert!(history.flush().await.is_err());
        let writer = tokio::spawn({
            let history = history.clone();
            async move { history.run().await }
        });
        sleep_virtually(store::WRITE_RETRY_PAUSE * 5).await;
        assert_eq!(history.unwritten(), noted.len());
        kept.down.store(false, Ordering::SeqCst);
        sleep_virtually(store::WRITE_RETRY_PAUSE * 2).await;
        assert_eq!(history.unwritten(), 0);
        writer.abort();
        let writes = kept.connections.lock();
        assert_eq!(writes.len(), 2, "in batches");
        assert_eq!(writes.concat(), noted.into_iter().map(new).collect::<Vec<_>>());
        assert_eq!(history.lost(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn history_is_pruned_hourly_and_on_change() {
        let kept = Arc::<MemoryStore>::default();
        let history = Arc::new(history_of(kept.clone()));
        let writer = tokio::spawn({
            let history = history.clone();
            async move { history.run().await }
        });
        let looked = || kept.prunes.lock().clone();
        let year = START - limits::CONNECTIONS_KEEP_AGE.as_secs();
        sleep_virtually(Duration::from_secs(1)).await;
        assert_eq!(looked(), [year, year], "until nothing is left");
        sleep_virtually(store::PRUNE_INTERVAL - Duration::from_secs(2)).await;
        assert_eq!(looked().len(), 2);
        sleep_virtually(Duration::from_secs(2)).await;
        assert_eq!(looked().len(), 3);
        history.set_retention(HistoryRetention { connections: 3, age: Duration::from_secs(60) });
        history.set_retention(HistoryRetention { connections: 3, age: Duration::from_secs(60) });
        sleep_virtually(Duration::ZERO).await;
        assert_eq!(looked()[3..], [START - 60], "once, for a change is one");
        history.record(connection(&history));
        sleep_virtually(Duration::ZERO).await;
        assert_eq!(kept.keep.load(Ordering::SeqCst), 3);
        writer.abort();
    }

    /// Advances the paused clock and lets every task run.
    async fn sleep_virtually(time: std::time::Duration) {
        tokio::time::advance(time).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn full_queue_drops_and_counts_the_oldest() {
        let history = history_of(Arc::default());
        let one = connection(&history);
        for _ in 0..CONNECTIONS_QUEUE_MAX + 3 {
            history.record(ConnectionRow { id: history.next_id(), ..one.clone() });
        }
        assert_eq!(history.unwritten(), CONNECTIONS_QUEUE_MAX);
        assert_eq!(history.lost(), 3);
    }
}
