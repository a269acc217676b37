//! The database: durations and failures of calls, unwritten and lost rows.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::metrics::histogram::Histogram;
use rendez_proto::registry::environments::EndReason;
use rendez_registry::stats::StoreCall;
use rendez_registry::traits::StoreMetrics;

use super::{MetricsWriter, SECONDS};
use crate::rendezvous::Rendezvous;

/// How long a failed write makes the relay unready, if no write follows.
const WRITE_FAILURE_TTL: Duration = Duration::from_secs(10);

/// Durations and failures of store calls.
#[derive(Debug)]
pub(crate) struct StoreTimes {
    seconds: [Histogram; StoreCall::ALL.len()],
    failures: [AtomicU64; StoreCall::ALL.len()],
    /// When the last write failed; `None` if it succeeded.
    write_failed: Mutex<Option<Instant>>,
}

impl Default for StoreTimes {
    fn default() -> Self {
        Self {
            seconds: std::array::from_fn(|_| Histogram::new(SECONDS)),
            failures: std::array::from_fn(|_| AtomicU64::new(0)),
            write_failed: Mutex::default(),
        }
    }
}

impl StoreMetrics for StoreTimes {
    fn observe_call(&self, call: StoreCall, elapsed: Duration, succeeded: bool) {
        self.seconds[call as usize].observe(elapsed.as_secs_f64());
        if !succeeded {
            self.failures[call as usize].fetch_add(1, Ordering::Relaxed);
        }
        if call.writes() {
            *self.write_failed() = (!succeeded).then(Instant::now);
        }
    }
}

impl StoreTimes {
    /// Whether the last write failed recently. Rows that wait in memory are retried all
    /// the time, so a recovered database is noticed.
    pub(crate) fn is_failing(&self) -> bool {
        self.write_failed().is_some_and(|since| since.elapsed() < WRITE_FAILURE_TTL)
    }

    fn write_failed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.write_failed.lock()
    }
}

pub(super) fn encode(
    out: &mut MetricsWriter<'_>,
    state: &Rendezvous,
    times: &StoreTimes,
) -> fmt::Result {
    let label = |call: StoreCall| [("operation", call.as_str())];
    out.histograms(
        "rendez_database_seconds",
        "Duration of database calls, including the wait for the turn to write.",
        StoreCall::ALL.map(|call| (label(call), &times.seconds[call as usize])),
    )?;
    let failures = |call| times.failures[call as usize].load(Ordering::Relaxed);
    out.counters(
        "rendez_database_failures",
        "Failed database calls.",
        StoreCall::ALL.map(|call| (label(call), failures(call))),
    )?;
    let (audit, history) = (state.registry.audit(), state.registry.history());
    let rows = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    out.gauges(
        "rendez_rows_unwritten",
        "Rows of audit log and history that wait for the database.",
        [
            ([("log", "audit")], rows(audit.unwritten())),
            ([("log", "history")], rows(history.unwritten())),
        ],
    )?;
    out.counters(
        "rendez_rows_lost",
        "Rows of audit log and history that were lost because the database accepted none for too long.",
        [([("log", "audit")], audit.lost()), ([("log", "history")], history.lost())],
    )?;
    let after = |before: Option<EndReason>| {
        ([("after", before.map_or("none", EndReason::as_str))], history.connections_after(before))
    };
    let first = std::iter::once(after(None));
    out.counters(
        "rendez_relay_executor_connections",
        "Connections of executors, by the end reason of the environment's previous connection.",
        first.chain(EndReason::ALL.iter().map(|why| after(Some(*why)))),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_fails_until_a_write_succeeds() {
        let times = StoreTimes::default();
        let call = |call, good| {
            times.observe_call(call, Duration::ZERO, good);
            times.is_failing()
        };
        assert!(!call(StoreCall::ReadTokens, false), "a failed read does not count");
        assert!(call(StoreCall::WriteTokens, false));
        assert!(call(StoreCall::ReadTokens, true));
        assert!(!call(StoreCall::WriteAudit, true));
        assert!(call(StoreCall::Redeem, false));
        *times.write_failed() = Instant::now().checked_sub(WRITE_FAILURE_TTL);
        assert!(!times.is_failing(), "the failure is too old");
    }
}
