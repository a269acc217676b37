//! Code that only Unix has: signals, and their dispositions on Linux.

pub(crate) use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that people and terminals send, by number: HUP, INT, QUIT and
/// TERM.
const ASKING: [i32; 4] = [1, 2, 3, 15];

/// The signals of SIGHUP, SIGINT, SIGQUIT and SIGTERM that were ignored when this
/// process started and have no handler.
pub fn ignored_signals() -> Vec<i32> {
    ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The signals of [`ASKING`] that a process with this `/proc/PID/status`
/// ignores.
fn ignored(status: &str) -> Vec<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ASKING.into_iter().filter(|number| mask >> (number - 1) & 1 == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001000\n"), [] as [i32; 0]);
        assert_eq!(ignored("SigIgn:\t0000000000000007\n"), [1, 2, 3]);
        assert_eq!(ignored("SigIgn:\t0000000000004002\n"), [2, 15]);
        assert_eq!(ignored(""), [] as [i32; 0]);
    }
}
