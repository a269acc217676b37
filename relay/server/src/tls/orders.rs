//! How orders of certificates ended, since the relay started.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How an order of a certificate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ordered {
    /// A certificate.
    Ok,
    /// The ACME server says no.
    Refused,
    /// It says that there were too many.
    RateLimited,
    /// It could not prove that a name leads here.
    Unproven,
    /// It does not answer, or not as RFC 8555 has it.
    Unreachable,
    /// It issued what cannot be used.
    Unusable,
    /// The state directory takes nothing.
    NotKept,
}

impl Ordered {
    pub(crate) const ALL: [Ordered; 7] = [
        Ordered::Ok,
        Ordered::Refused,
        Ordered::RateLimited,
        Ordered::Unproven,
        Ordered::Unreachable,
        Ordered::Unusable,
        Ordered::NotKept,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Ordered::Ok => "ok",
            Ordered::Refused => "refused",
            Ordered::RateLimited => "rate_limited",
            Ordered::Unproven => "unproven",
            Ordered::Unreachable => "unreachable",
            Ordered::Unusable => "unusable",
            Ordered::NotKept => "not_kept",
        }
    }
}

/// Counters; zeros without ACME.
#[derive(Default)]
pub(crate) struct OrderStats {
    ended: [AtomicU64; Ordered::ALL.len()],
    failed_in_a_row: AtomicU64,
    next: AtomicI64,
}

impl OrderStats {
    /// Orders that ended so.
    pub(crate) fn ended(&self, how: Ordered) -> u64 {
        self.ended[how as usize].load(Ordering::Relaxed)
    }

    /// Failed orders since the last good one.
    pub(crate) fn failed_in_a_row(&self) -> u64 {
        self.failed_in_a_row.load(Ordering::Relaxed)
    }

    /// When the next order is made, in seconds since 1970; 0 without ACME.
    pub(crate) fn next(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "acme")]
impl OrderStats {
    pub(super) fn count(&self, how: Ordered) {
        self.ended[how as usize].fetch_add(1, Ordering::Relaxed);
        match how {
            Ordered::Ok => self.failed_in_a_row.store(0, Ordering::Relaxed),
            _ => _ = self.failed_in_a_row.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(super) fn next_is_at(&self, seconds: i64) {
        self.next.store(seconds, Ordering::Relaxed);
    }
}
