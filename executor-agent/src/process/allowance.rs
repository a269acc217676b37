//! How much of their input processes may have waiting beyond what any may.
//!
//! What is granted is reserved: a process that was promised a window has it for
//! as long as it reads its input. While nothing is left, windows are as small as
//! those of clients that do not ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rendez_proto::limits::{EXECUTOR_STDIN_BYTES, STDIN_QUEUED_BYTES, STDIN_WINDOW_MAX_BYTES};

/// What all processes of an agent share.
#[derive(Debug)]
pub(crate) struct Allowance {
    free: AtomicUsize,
}

/// What one process was granted; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Grant {
    from: Arc<Allowance>,
    bytes: usize,
}

impl Allowance {
    fn new(bytes: usize) -> Self {
        Self { free: AtomicUsize::new(bytes) }
    }

    /// Room for `window` bytes, or as much as there is; for what any process
    /// has, nothing is taken.
    pub(super) fn grant(self: &Arc<Self>, window: usize) -> Grant {
        let wanted = window.min(STDIN_WINDOW_MAX_BYTES).saturating_sub(STDIN_QUEUED_BYTES);
        let mut bytes = 0;
        // never fails: it always takes something, if only nothing
        let _ = self.free.fetch_update(Relaxed, Relaxed, |free| {
            bytes = wanted.min(free);
            Some(free - bytes)
        });
        Grant { from: self.clone(), bytes }
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self::new(EXECUTOR_STDIN_BYTES)
    }
}

impl Grant {
    /// Bytes that may wait.
    pub(super) fn window(&self) -> usize {
        STDIN_QUEUED_BYTES + self.bytes
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.from.free.fetch_add(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_reserved_until_it_is_given_back() {
        const MOST: usize = STDIN_WINDOW_MAX_BYTES;
        let allowance = Arc::new(Allowance::new(MOST - STDIN_QUEUED_BYTES + 5));
        let window = |wanted| allowance.grant(wanted).window();
        assert_eq!(window(0), STDIN_QUEUED_BYTES);
        assert_eq!(window(STDIN_QUEUED_BYTES + 7), STDIN_QUEUED_BYTES + 7);
        assert_eq!(window(usize::MAX), MOST);
        let first = allowance.grant(MOST);
        let second = allowance.grant(MOST);
        assert_eq!((first.window(), second.window()), (MOST, STDIN_QUEUED_BYTES + 5));
        assert_eq!(window(MOST), STDIN_QUEUED_BYTES);
        drop(first);
        assert_eq!(window(MOST), MOST);
    }
}
