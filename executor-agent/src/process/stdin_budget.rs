//! The budget for queued input of processes.
//!
//! Every process has a window of [`STDIN_QUEUED_BYTES`]. A larger one is granted
//! when the process starts, and reserved until its input is closed. If the budget is
//! used up, a process gets the small window.
//!
//! The bytes that are really queued count in the quotas of session and executor
//! ([`StdinQuota`]). These are smaller than the sum of all windows: few processes do
//! not read, and memory for unused windows would be wasted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rendez_proto::limits::{
    APPLICATION_MESSAGE_MAX_BYTES, STDIN_QUEUED_BYTES, STDIN_WINDOW_MAX_BYTES,
};

/// Bytes beyond [`STDIN_QUEUED_BYTES`] that all processes of one executor may be
/// granted together: four of the largest windows.
const EXECUTOR_STDIN_BYTES: usize = 4 * (STDIN_WINDOW_MAX_BYTES - STDIN_QUEUED_BYTES);
/// Bytes of all queued writes of one session: those of five processes with the
/// largest windows, or one message of any size and more. Writes beyond it are
/// refused, except for [`STDIN_MIN_BYTES`](super::stdin::STDIN_MIN_BYTES) per process.
pub(super) const SESSION_STDIN_QUEUED_BYTES: usize = 128 * 1024 * 1024;
/// Bytes of all queued writes of one executor: two full sessions, so that one
/// session cannot take all.
const EXECUTOR_STDIN_QUEUED_BYTES: usize = 2 * SESSION_STDIN_QUEUED_BYTES;

const _: () = {
    assert!(SESSION_STDIN_QUEUED_BYTES >= 5 * STDIN_WINDOW_MAX_BYTES);
    assert!(SESSION_STDIN_QUEUED_BYTES >= APPLICATION_MESSAGE_MAX_BYTES);
};

/// The windows and queued bytes of all processes of an executor.
#[derive(Debug)]
pub(crate) struct StdinBudget {
    free: AtomicUsize,
    queued: Arc<StdinQuota>,
}

/// Counts queued bytes of input: those of a session, and in its parent those of the
/// executor.
#[derive(Debug)]
pub(crate) struct StdinQuota {
    max: usize,
    bytes: AtomicUsize,
    parent: Option<Arc<StdinQuota>>,
}

/// Queued bytes; dropping it releases them.
#[derive(Debug)]
pub(super) struct StdinReservation {
    quota: Arc<StdinQuota>,
    bytes: usize,
    _parent: Option<Box<StdinReservation>>,
}

/// The window of one process; dropping it releases it.
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

    /// The quota of a new session.
    pub(super) fn session_quota(&self) -> Arc<StdinQuota> {
        StdinQuota::new(SESSION_STDIN_QUEUED_BYTES, Some(self.queued.clone()))
    }

    /// Grants a window of `window` bytes, or as much as the budget has left. The
    /// window that every process has takes nothing from the budget.
    pub(super) fn grant(self: &Arc<Self>, window: usize) -> WindowGrant {
        let wanted = window.min(STDIN_WINDOW_MAX_BYTES).saturating_sub(STDIN_QUEUED_BYTES);
        let mut bytes = 0;
        // never fails: the closure always returns a value
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

    /// Reserves `bytes`; returns `None` if the quota is exceeded.
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
    /// The most bytes that may be queued.
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
        assert!(one.reserve(1).is_none(), "the session is full");
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
