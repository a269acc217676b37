//! Figures of this process, from Linux's /proc. Elsewhere they are 0.

use std::fs;

/// Resident memory in bytes.
pub(crate) fn memory() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    number_after(&status, "VmRSS:") * 1024
}

/// The unit of CPU times in /proc: 100 on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of all threads in seconds.
pub(crate) fn cpu_seconds() -> f64 {
    ticks(&fs::read_to_string("/proc/self/stat").unwrap_or_default()) / TICKS_PER_SECOND
}

/// Fields 14 and 15: time in user mode and in the kernel. The second field is the
/// program's name in parentheses, which may contain any character.
fn ticks(stat: &str) -> f64 {
    let (_, rest) = stat.rsplit_once(')').unwrap_or_default();
    let fields = rest.split_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum()
}

/// The number of open file descriptors.
pub(crate) fn open_descriptors() -> i64 {
    // The directory that is read is itself open.
    let count =
        fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1));
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The limit of open file descriptors; 0 if there is none.
pub(crate) fn max_descriptors() -> i64 {
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
    fn number_is_found_by_its_label() {
        assert_eq!(number_after("VmPeak:  1 kB\nVmRSS:\t   2048 kB\n", "VmRSS:"), 2048);
        assert_eq!(number_after("Max open files   unlimited  x", "Max open files"), 0);
        assert_eq!(number_after("", "VmRSS:"), 0);
    }

    #[test]
    fn ticks_are_found_after_any_program_name() {
        let stat = "7 (a) (b 1 2) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 3 0 5";
        assert!((ticks(stat) - 300.0).abs() < f64::EPSILON);
        assert!(ticks("").abs() < f64::EPSILON);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn cpu_time_of_this_process_grows() {
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
        assert!(max_descriptors() >= open_descriptors());
    }
}
