//! The process and its build, with the metric names that dashboards expect.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::MetricsWriter;
use crate::sys::process;

pub(super) fn encode(out: &mut MetricsWriter<'_>) -> fmt::Result {
    let build = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
    out.gauges("rendez_build_info", "Always 1; the version is the label.", build)?;
    let (started, since) = started();
    out.gauge(
        "process_start_time_seconds",
        "When the relay started, in seconds since 1970.",
        i64::try_from(started).unwrap_or(i64::MAX),
    )?;
    let uptime = i64::try_from(since.elapsed().as_secs()).unwrap_or(i64::MAX);
    out.gauge("rendez_uptime_seconds", "Time since the relay started.", uptime)?;
    out.seconds("process_cpu_seconds", "CPU time of all threads.", process::cpu_seconds())?;
    out.gauge("process_resident_memory_bytes", "Resident memory.", process::memory())?;
    out.gauge("process_open_fds", "Open file descriptors.", process::open_descriptors())?;
    out.gauge(
        "process_max_fds",
        "Limit of open file descriptors; 0 if unlimited.",
        process::max_descriptors(),
    )?;
    let tasks = tokio::runtime::Handle::try_current().map(|on| on.metrics().num_alive_tasks());
    let tasks = tasks.map_or(0, |tasks| i64::try_from(tasks).unwrap_or(i64::MAX));
    out.gauge("rendez_runtime_tasks", "Tasks of the async runtime.", tasks)
}

/// The time of the first call, which the relay makes when it starts.
pub(crate) fn started() -> (u64, Instant) {
    static STARTED: OnceLock<(u64, Instant)> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        (now.map_or(0, |since| since.as_secs()), Instant::now())
    })
}
