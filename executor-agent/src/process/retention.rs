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
pub(crate) struct Retention {
    kept: AtomicUsize,
    most: usize,
}

impl Retention {
    pub(super) fn new(most: usize) -> Self {
        Self { kept: AtomicUsize::new(0), most }
    }

    /// Notes that a log keeps `bytes` more.
    pub(super) fn add(&self, bytes: usize) {
        self.kept.fetch_add(bytes, Relaxed);
    }

    /// Notes that a log keeps `bytes` less.
    pub(super) fn sub(&self, bytes: usize) {
        self.kept.fetch_sub(bytes, Relaxed);
    }

    /// What a log whose own bound is `most` may keep now.
    pub(super) fn capacity(&self, most: usize) -> usize {
        let free = self.most.saturating_sub(self.kept.load(Relaxed));
        free.max(PROCESS_OUTPUT_MIN_BYTES).min(most)
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self::new(EXECUTOR_OUTPUT_RETAINED_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_shared_and_everybody_gets_a_little() {
        let retention = Retention::new(10 * PROCESS_OUTPUT_MIN_BYTES);
        let most = 4 * PROCESS_OUTPUT_MIN_BYTES;
        assert_eq!(retention.capacity(most), most);
        retention.add(8 * PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(retention.capacity(most), 2 * PROCESS_OUTPUT_MIN_BYTES);
        retention.add(8 * PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(retention.capacity(most), PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(retention.capacity(100), 100);
        retention.sub(16 * PROCESS_OUTPUT_MIN_BYTES);
        assert_eq!(retention.capacity(most), most);
    }
}
