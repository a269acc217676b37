//! How much of their input processes may have waiting.
//!
//! A window beyond what any process has is granted when the process starts, and
//! reserved: a process that was promised it has it for as long as it reads its
//! input. While nothing is left, windows are as small as those of clients that
//! do not ask.
//!
//! What really waits is counted by session and executor ([`StdinQuota`]): few
//! processes do not read, and memory for windows that nobody fills would be
//! wasted. Only when many do not read is there less than their windows.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rendez_proto::limits::{
    APPLICATION_MESSAGE_MAX_BYTES, STDIN_QUEUED_BYTES, STDIN_WINDOW_MAX_BYTES,
};

/// Bytes beyond [`STDIN_QUEUED_BYTES`] each that all processes of one executor
/// may be granted at once: four of the largest windows.
const EXECUTOR_STDIN_BYTES: usize = 4 * (STDIN_WINDOW_MAX_BYTES - STDIN_QUEUED_BYTES);
/// Bytes of all writes that wait in one session: those of five processes with
/// the largest windows, or one of any size and more. What is beyond is refused,
/// but for [`STDIN_MIN_BYTES`](super::stdin::STDIN_MIN_BYTES).
pub(super) const SESSION_STDIN_QUEUED_BYTES: usize = 128 * 1024 * 1024;
/// The same over all sessions of one executor: two that are full, so that none
/// alone takes everything.
const EXECUTOR_STDIN_QUEUED_BYTES: usize = 2 * SESSION_STDIN_QUEUED_BYTES;

const _: () = {
    assert!(SESSION_STDIN_QUEUED_BYTES >= 5 * STDIN_WINDOW_MAX_BYTES);
    assert!(SESSION_STDIN_QUEUED_BYTES >= APPLICATION_MESSAGE_MAX_BYTES);
};

/// What all processes of an agent share.
#[derive(Debug)]
pub(crate) struct StdinBudget {
    free: AtomicUsize,
    queued: Arc<StdinQuota>,
}

/// Bytes of input that wait in memory: of a session, and with them those of its
/// executor.
#[derive(Debug)]
pub(crate) struct StdinQuota {
    max: usize,
    bytes: AtomicUsize,
    parent: Option<Arc<StdinQuota>>,
}

/// Bytes that wait; dropping it gives them back.
#[derive(Debug)]
pub(super) struct StdinReservation {
    quota: Arc<StdinQuota>,
    bytes: usize,
    _parent: Option<Box<StdinReservation>>,
}

/// What one process was granted; dropping it gives it back.
#[derive(Debug)]
pub(super) struct WindowGrant {
    budget: Arc<StdinBudget>,
    bytes: usize,
}

impl StdinBudget {
    fn new(bytes: usize) -> Self {
        let queued = StdinQuota::new(EXECUTOR_STDIN_QUEUED_BYTES, None);
        Self { free: AtomicUsize::new(bytes), queued }
    }

    /// The account of a session.
    pub(super) fn session_quota(&self) -> Arc<StdinQuota> {
        StdinQuota::new(SESSION_STDIN_QUEUED_BYTES, Some(self.queued.clone()))
    }

    /// Room for `window` bytes, or as much as there is; for what any process
    /// has, nothing is taken.
    pub(super) fn grant(self: &Arc<Self>, window: usize) -> WindowGrant {
        let wanted = window.min(STDIN_WINDOW_MAX_BYTES).saturating_sub(STDIN_QUEUED_BYTES);
        let mut bytes = 0;
        // never fails: it always takes something, if only nothing
        let _ = self.free.fetch_update(Relaxed, Relaxed, |free| {
            bytes = wanted.min(free);
            Some(free - bytes)
        });
        WindowGrant { budget: self.clone(), bytes }
    }
}

impl StdinQuota {
    fn new(max: usize, parent: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { max, bytes: AtomicUsize::new(0), parent })
    }

    /// Counts `bytes` more, unless there would be too many.
    pub(super) fn reserve(self: &Arc<Self>, bytes: usize) -> Option<StdinReservation> {
        let parent = match &self.parent {
            Some(outer) => Some(Box::new(outer.reserve(bytes)?)),
            None => None,
        };
        let add = |before: usize| before.checked_add(bytes).filter(|after| *after <= self.max);
        self.bytes.fetch_update(Relaxed, Relaxed, add).ok()?;
        Some(StdinReservation { quota: self.clone(), bytes, _parent: parent })
    }
}

impl Drop for StdinReservation {
    fn drop(&mut self) {
        self.quota.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

impl Default for StdinBudget {
    fn default() -> Self {
        Self::new(EXECUTOR_STDIN_BYTES)
    }
}

impl WindowGrant {
    /// Bytes that may wait.
    pub(super) fn window(&self) -> usize {
        STDIN_QUEUED_BYTES + self.bytes
    }
}

impl Drop for WindowGrant {
    fn drop(&mut self) {
        self.budget.free.fetch_add(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granted_window_is_reserved_until_dropped() {
        const MAX: usize = STDIN_WINDOW_MAX_BYTES;
        let budget = Arc::new(StdinBudget::new(MAX - STDIN_QUEUED_BYTES + 5));
        let window = |wanted| budget.grant(wanted).window();
        assert_eq!(window(0), STDIN_QUEUED_BYTES);
        assert_eq!(window(STDIN_QUEUED_BYTES + 7), STDIN_QUEUED_BYTES + 7);
        assert_eq!(window(usize::MAX), MAX);
        let first = budget.grant(MAX);
        let second = budget.grant(MAX);
        assert_eq!((first.window(), second.window()), (MAX, STDIN_QUEUED_BYTES + 5));
        assert_eq!(window(MAX), STDIN_QUEUED_BYTES);
        drop(first);
        assert_eq!(window(MAX), MAX);
    }

    #[test]
    fn queued_bytes_count_in_session_and_executor() {
        let executor = StdinQuota::new(10, None);
        let [one, two] = [6, 6].map(|max| StdinQuota::new(max, Some(executor.clone())));
        let first = one.reserve(6).unwrap();
        assert!(one.reserve(1).is_none(), "its session is full");
        let second = two.reserve(4).unwrap();
        assert!(two.reserve(1).is_none(), "the executor is full");
        drop(first);
        let third = two.reserve(2).unwrap();
        assert!(two.reserve(usize::MAX).is_none());
        drop((second, third));
        let counted = |queued: &StdinQuota| queued.bytes.load(Relaxed);
        assert_eq!([&executor, &one, &two].map(|queued| counted(queued)), [0, 0, 0]);
    }
}
