//! The database: how long it takes, what it holds up, and what is lost for it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use rendez_proto::registry::environments::EndReason;
use rendez_registry::seam::Timing;
use rendez_registry::stats::StoreCall;

use super::{Out, SECONDS};
use crate::edge::Edge;

/// How long its calls took.
#[derive(Debug)]
pub(crate) struct StoreTimes {
    seconds: [Histogram; StoreCall::ALL.len()],
    failures: [AtomicU64; StoreCall::ALL.len()],
}

impl Default for StoreTimes {
    fn default() -> Self {
        Self {
            seconds: std::array::from_fn(|_| Histogram::new(SECONDS)),
            failures: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Timing for StoreTimes {
    fn store_call(&self, call: StoreCall, took: Duration, good: bool) {
        self.seconds[call as usize].observe(took.as_secs_f64());
        if !good {
            self.failures[call as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub(super) fn encode(out: &mut Out<'_>, edge: &Edge, times: &StoreTimes) -> fmt::Result {
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
    let (audit, history) = (edge.registry.audit(), edge.registry.history());
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
