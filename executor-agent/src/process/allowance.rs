//! How much of their input processes may have waiting.
//!
//! A window beyond what any process has is granted when the process starts, and
//! reserved: a process that was promised it has it for as long as it reads its
//! input. While nothing is left, windows are as small as those of clients that
//! do not ask.
//!
//! What really waits is counted by session and executor ([`Waiting`]): few
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
/// but for [`STDIN_ALWAYS_BYTES`](super::stdin::STDIN_ALWAYS_BYTES).
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
pub(crate) struct Allowance {
    free: AtomicUsize,
    waiting: Arc<Waiting>,
}

/// Bytes of input that wait in memory: of a session, and with them those of its
/// executor.
#[derive(Debug)]
pub(crate) struct Waiting {
    most: usize,
    bytes: AtomicUsize,
    within: Option<Arc<Waiting>>,
}

/// Bytes that wait; dropping it gives them back.
#[derive(Debug)]
pub(super) struct Held {
    by: Arc<Waiting>,
    bytes: usize,
    _within: Option<Box<Held>>,
}

/// What one process was granted; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Grant {
    from: Arc<Allowance>,
    bytes: usize,
}

impl Allowance {
    fn new(bytes: usize) -> Self {
        let waiting = Waiting::new(EXECUTOR_STDIN_QUEUED_BYTES, None);
        Self { free: AtomicUsize::new(bytes), waiting }
    }

    /// The account of a session.
    pub(super) fn session(&self) -> Arc<Waiting> {
        Waiting::new(SESSION_STDIN_QUEUED_BYTES, Some(self.waiting.clone()))
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

impl Waiting {
    fn new(most: usize, within: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self { most, bytes: AtomicUsize::new(0), within })
    }

    /// Counts `bytes` more, unless there would be too many.
    pub(super) fn hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let within = match &self.within {
            Some(outer) => Some(Box::new(outer.hold(bytes)?)),
            None => None,
        };
        let add = |before: usize| before.checked_add(bytes).filter(|after| *after <= self.most);
        self.bytes.fetch_update(Relaxed, Relaxed, add).ok()?;
        Some(Held { by: self.clone(), bytes, _within: within })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.by.bytes.fetch_sub(self.bytes, Relaxed);
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

    #[test]
    fn what_waits_counts_in_its_session_and_in_all_of_them() {
        let executor = Waiting::new(10, None);
        let [one, two] = [6, 6].map(|most| Waiting::new(most, Some(executor.clone())));
        let first = one.hold(6).unwrap();
        assert!(one.hold(1).is_none(), "its session is full");
        let second = two.hold(4).unwrap();
        assert!(two.hold(1).is_none(), "the executor is full");
        drop(first);
        let third = two.hold(2).unwrap();
        assert!(two.hold(usize::MAX).is_none());
        drop((second, third));
        let counted = |waiting: &Waiting| waiting.bytes.load(Relaxed);
        assert_eq!([&executor, &one, &two].map(|waiting| counted(waiting)), [0, 0, 0]);
    }
}
