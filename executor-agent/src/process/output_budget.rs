//! The budget for the output that all processes of an executor retain.
//!
//! A log keeps up to its own limit while the budget has room, and otherwise as much
//! as the budget has left, so that many logs share it. All logs keep at most
//! [`EXECUTOR_OUTPUT_RETAINED_BYTES`], plus [`PROCESS_OUTPUT_MIN_BYTES`] for each
//! process.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rendez_proto::limits::PROCESS_CHUNK_LARGE_MAX_BYTES;

/// Output that all processes of one executor retain together. Beyond it each
/// process still retains [`PROCESS_OUTPUT_MIN_BYTES`].
const EXECUTOR_OUTPUT_RETAINED_BYTES: usize = 128 * 1024 * 1024;
/// Output that a process may always retain: two large chunks, so that it makes
/// progress.
pub(super) const PROCESS_OUTPUT_MIN_BYTES: usize = 2 * PROCESS_CHUNK_LARGE_MAX_BYTES;

/// The bytes of output that all logs share.
#[derive(Debug)]
pub(crate) struct OutputBudget {
    used: AtomicUsize,
    max: usize,
}

impl OutputBudget {
    pub(super) fn new(max: usize) -> Self {
        Self { used: AtomicUsize::new(0), max }
    }

    /// Counts `bytes` more.
    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Relaxed);
    }

    /// Counts `bytes` less.
    pub(super) fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Relaxed);
    }

    /// The bytes that a log with the limit `max` may keep now.
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
