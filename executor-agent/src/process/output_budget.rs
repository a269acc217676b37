//! How much output all processes of an agent may keep together.
//!
//! While there is room, a log keeps as much as its own bound says; as room gets
//! scarce, what is free, so that logs of many processes share it: at most
//! [`EXECUTOR_OUTPUT_RETAINED_BYTES`] in all, and a [`PROCESS_OUTPUT_MIN_BYTES`]
//! more for each process that there is then.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rendez_proto::limits::PROCESS_CHUNK_LARGE_MAX_BYTES;

/// Output that all processes of one executor keep together. Beyond it each
/// keeps at least [`PROCESS_OUTPUT_MIN_BYTES`].
const EXECUTOR_OUTPUT_RETAINED_BYTES: usize = 128 * 1024 * 1024;
/// Output that a process may always keep: two large chunks, so that it moves on.
pub(super) const PROCESS_OUTPUT_MIN_BYTES: usize = 2 * PROCESS_CHUNK_LARGE_MAX_BYTES;

/// See the module.
#[derive(Debug)]
pub(crate) struct OutputBudget {
    used: AtomicUsize,
    max: usize,
}

impl OutputBudget {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Notes that a log keeps `bytes` more.
    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Notes that a log keeps `bytes` less.
    pub(super) fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// What a log whose own bound is `max` may keep now.
    pub(super) fn capacity(&self, max: usize) -> usize {
        let free = self.max.saturating_sub(self.used.load(Relaxed));
        free.max(PROCESS_OUTPUT_MIN_BYTES).min(max)
    }
}

impl Default for OutputBudget {
    fn default() -> Self {
        Self::new(EXECUTOR_OUTPUT_RETAINED_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_shrinks_to_the_minimum() {
        let budget = OutputBudget::new(10 * PROCESS_OUTPUT_MIN_BYTES);
        let max = 4 * PROCESS_OUTPUT_MIN_BYTES;
        assert_eq!(budget.capacity(max), max);
        budget.add(8 * PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(budget.capacity(max), 2 * PROCESS_OUTPUT_MIN_BYTES);
        budget.add(8 * PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(budget.capacity(max), PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(budget.capacity(100), 100);
        budget.sub(16 * PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(budget.capacity(max), max);
    }
}
