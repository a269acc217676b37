//! The process and its build, under the names that dashboards expect.

use std::fmt;
use std::fs;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::Out;

pub(super) fn encode(out: &mut Out<'_>) -> fmt::Result {
    let build = [([("version", env!("CARGO_PKG_VERSION"))], 1)];
    out.gauges("rendez_build_info", "Always 1; the version is the label.", build)?;
    let (started, since) = started();
    out.gauge(
        "process_start_time_seconds",
        "When the relay started, in seconds since 1970.",
        i64::try_from(started).unwrap_or(i64::MAX),
    )?;
    let uptime = i64::try_from(since.elapsed().as_secs()).unwrap_or(i64::MAX);
    out.gauge("rendez_uptime_seconds", "How long the relay runs.", uptime)?;
    out.seconds("process_cpu_seconds", "CPU time used, in all threads.", cpu_seconds())?;
    out.gauge("process_resident_memory_bytes", "Memory in use.", memory())?;
    out.gauge("process_open_fds", "Open file descriptors.", open_descriptors())?;
    out.gauge("process_max_fds", "Most file descriptors; 0 without limit.", most_descriptors())?;
    let tasks = tokio::runtime::Handle::try_current().map(|on| on.metrics().num_alive_tasks());
    let tasks = tasks.map_or(0, |tasks| i64::try_from(tasks).unwrap_or(i64::MAX));
    out.gauge("rendez_runtime_tasks", "Tasks of the async runtime.", tasks)
}

/// When the first scrape or the relay's start asked, whichever was first.
pub(crate) fn started() -> (u64, Instant) {
    static STARTED: OnceLock<(u64, Instant)> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        (now.map_or(0, |since| since.as_secs()), Instant::now())
    })
}

/// From Linux's /proc; 0 elsewhere.
fn memory() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    number_after(&status, "VmRSS:") * 1024
}

/// Of Linux's /proc, in programs: 100 on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

fn cpu_seconds() -> f64 {
    ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default()) / TICKS_PER_SECOND
}

/// Fields 14 and 15, in user mode and in the kernel. The second field is the
/// program's name, which may hold anything, in parentheses.
fn ticks(stat: &str) -> f64 {
    let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
    let fields = rest.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum()
}

fn open_descriptors() -> i64 {
    // The directory that is read is one itself.
    let count =
        fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn most_descriptors() -> i64 {
    number_after(&fs::read_to_string("/proc/self/limits").unwrap_or_default(), "Max open files")
}

fn number_after(text: &str, label: &str) -> i64 {
    text.lines()
        .find_map(|line| line.strip_prefix(label))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_label() {
        assert_eq!(number_after("VmPeak:  1 kB\nVmRSS:\t   2048 kB\n", "VmRSS:"), 2048);
        assert_eq!(number_after("Max open files   unlimited  x", "Max open files"), 0);
        assert_eq!(number_after("", "VmRSS:"), 0);
    }

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) (b 1 2) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 3 0 5";
        assert!((ticks(stat) - 300.0).abs() < f64::EPSILON);
        assert!(ticks("").abs() < f64::EPSILON);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_its_cpu() {
        let before = cpu_seconds();
        let mut sum = 0_u64;
        while cpu_seconds() <= before {
            sum = (0..100_000).fold(sum, |sum, n| std::hint::black_box(sum.wrapping_add(n)));
        }
        assert!(cpu_seconds() > before);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_descriptors() {
        assert!(memory() > 0);
        assert!(open_descriptors() > 0);
        assert!(most_descriptors() >= open_descriptors());
    }
}
