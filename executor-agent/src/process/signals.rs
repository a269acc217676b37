//! What children inherit of signals.
//!
//! A signal that a program ignores is ignored by the programs that it starts,
//! and cannot reach them any more: an agent that was started in the background
//! of a script, or by nohup, has such ones. One that has a handler is back at
//! its default in a child. So the agent handles what it was told to ignore, and
//! does nothing about it.

use std::sync::Once;

use tokio::signal::unix::{SignalKind, signal};

/// Those that people and terminals send, and that `process/signal` sends.
const REACHABLE: [i32; 4] = [1, 2, 3, 15]; // HUP, INT, QUIT, TERM

/// Makes children reachable by every signal. Must be called within a tokio
/// runtime; once is enough for the whole process.
pub(crate) fn make_children_reachable() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for number in ignored_signals() {
            // The handler stays when this is dropped.
            if let Err(error) = signal(SignalKind::from_raw(number)) {
                tracing::warn!(number, %error, "commands will ignore this signal");
            }
        }
    });
}

/// Those of SIGHUP, SIGINT, SIGQUIT and SIGTERM that this process was told to
/// ignore, by whoever started it, and has no handler for.
pub fn ignored_signals() -> Vec<i32> {
    ignored(&std::fs::read_to_string("/proc/self/status").unwrap_or_default())
}

/// The signals of [`REACHABLE`] that a process of this `/proc/PID/status`
/// ignores.
fn ignored(status: &str) -> Vec<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    REACHABLE.into_iter().filter(|number| mask >> (number - 1) & 1 == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_is_read_as_the_kernel_writes_it() {
        assert_eq!(ignored("Name:\tx\nSigIgn:\t0000000000001000\n"), [] as [i32; 0]);
        assert_eq!(ignored("SigIgn:\t0000000000000007\n"), [1, 2, 3]);
        assert_eq!(ignored("SigIgn:\t0000000000004002\n"), [2, 15]);
        assert_eq!(ignored(""), [] as [i32; 0]);
    }
}
