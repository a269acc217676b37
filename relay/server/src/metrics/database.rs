//! The database: how long it takes, what it holds up, and what is lost for it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;
use rendez_proto::registry::environments::EndReason;
use rendez_registry::seam::Timing;
use rendez_registry::stats::StoreCall;

use super::{Out, SECONDS};
use crate::rendezvous::Rendezvous;

/// How long a failure to write counts, if nothing is written after it.
const FAILURE_COUNTS: Duration = Duration::from_secs(10);

/// How long its calls took.
#[derive(Debug)]
pub(crate) struct StoreTimes {
    seconds: [Histogram; StoreCall::ALL.len()],
    failures: [AtomicU64; StoreCall::ALL.len()],
    /// When the last writing failed; `None`: it did not.
    writing_failed: Mutex<Option<Instant>>,
}

impl Default for StoreTimes {
    fn default() -> Self {
        Self {
            seconds: std::array::from_fn(|_| Histogram::new(SECONDS)),
            failures: std::array::from_fn(|_| AtomicU64::new(0)),
            writing_failed: Mutex::default(),
        }
    }
}

impl Timing for StoreTimes {
    fn store_call(&self, call: StoreCall, took: Duration, good: bool) {
        self.seconds[call as usize].observe(took.as_secs_f64());
        if !good {
            self.failures[call as usize].fetch_add(1, Ordering::Relaxed);
        }
        if call.writes() {
            *self.writing_failed() = (!good).then(Instant::now);
        }
    }
}

impl StoreTimes {
    /// Whether the last writing failed, a moment ago. What waits in memory is
    /// tried again all the time, so a database that takes it again is noticed.
    pub(crate) fn takes_nothing(&self) -> bool {
        self.writing_failed().is_some_and(|since| since.elapsed() < FAILURE_COUNTS)
    }

    fn writing_failed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing_failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn encode(out: &mut Out<'_>, state: &Rendezvous, times: &StoreTimes) -> fmt::Result {
    let label = |call: StoreCall| [("operation", call.as_str())];
    out.histograms(
        "rendez_database_seconds",
        "How long the database takes, waiting for a turn to write included.",
        StoreCall::ALL.map(|call| (label(call), &times.seconds[call as usize])),
    )?;
    let failures = |call| times.failures[call as usize].load(Ordering::Relaxed);
    out.counters(
        "rendez_database_failures",
        "Calls of the database that failed.",
        StoreCall::ALL.map(|call| (label(call), failures(call))),
    )?;
    let (audit, history) = (state.registry.audit(), state.registry.history());
    let rows = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    out.gauges(
        "rendez_rows_unwritten",
        "Rows of the audit log and of the history that wait for the database.",
        [
            ([("log", "audit")], rows(audit.unwritten())),
            ([("log", "history")], rows(history.unwritten())),
        ],
    )?;
    out.counters(
        "rendez_rows_lost",
        "Rows of the audit log and of the history that were lost: the database took none for too long.",
        [([("log", "audit")], audit.lost()), ([("log", "history")], history.lost())],
    )?;
    let after = |before: Option<EndReason>| {
        ([("after", before.map_or("none", EndReason::as_str))], history.began(before))
    };
    let first = std::iter::once(after(None));
    out.counters(
        "rendez_relay_executor_connections",
        "Executors that connected, by why their environment's connection before had ended.",
        first.chain(EndReason::ALL.iter().map(|why| after(Some(*why)))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_takes_nothing_from_a_failed_writing_until_a_good_one() {
        let times = StoreTimes::default();
        let call = |call, good| {
            times.store_call(call, Duration::ZERO, good);
            times.takes_nothing()
        };
        assert!(!call(StoreCall::ReadTokens, false), "who reads proves nothing");
        assert!(call(StoreCall::WriteTokens, false));
        assert!(call(StoreCall::ReadTokens, true));
        assert!(!call(StoreCall::WriteAudit, true));
        assert!(call(StoreCall::Redeem, false));
        *times.writing_failed() = Instant::now().checked_sub(FAILURE_COUNTS);
        assert!(!times.takes_nothing(), "long ago");
    }
}
