//! Memory that the streams of one endpoint share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A number of bytes that many streams share. Clones share the same budget.
///
/// It is an atomic only because a [`Mux`](crate::Mux) moves between threads;
/// the caller always holds the whole endpoint.
#[derive(Debug, Clone)]
pub struct Budget {
    free: Arc<AtomicUsize>,
}

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self { free: Arc::new(AtomicUsize::new(bytes)) }
    }

    /// The bytes that are left.
    pub fn free(&self) -> usize {
        self.free.load(Relaxed)
    }

    /// Takes `bytes`, or nothing if fewer are left.
    #[must_use]
    pub fn try_acquire(&self, bytes: usize) -> bool {
        self.free.fetch_update(Relaxed, Relaxed, |free| free.checked_sub(bytes)).is_ok()
    }

    /// Returns bytes that were taken.
    pub fn release(&self, bytes: usize) {
        self.free.fetch_add(bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acquires_up_to_its_capacity() {
        let budget = Budget::new(10);
        let other = budget.clone();
        assert!(budget.try_acquire(7) && !other.try_acquire(4) && other.try_acquire(3));
        assert_eq!(budget.free(), 0);
        other.release(4);
        assert_eq!(budget.free(), 4);
    }
}
