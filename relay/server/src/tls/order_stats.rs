//! Counters of certificate orders.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// How an order of a certificate ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrderOutcome {
    /// A certificate was issued.
    Ok,
    /// The ACME server refused the order.
    Refused,
    /// The server's rate limit was reached.
    RateLimited,
    /// The server could not verify that a name leads to this relay.
    Unproven,
    /// The server did not answer, or not according to RFC 8555.
    Unreachable,
    /// The issued certificate is unusable.
    Unusable,
    /// The certificate could not be written to the state directory.
    NotStored,
}

impl OrderOutcome {
    pub(crate) const ALL: [OrderOutcome; 7] = [
        OrderOutcome::Ok,
        OrderOutcome::Refused,
        OrderOutcome::RateLimited,
        OrderOutcome::Unproven,
        OrderOutcome::Unreachable,
        OrderOutcome::Unusable,
        OrderOutcome::NotStored,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            OrderOutcome::Ok => "ok",
            OrderOutcome::Refused => "refused",
            OrderOutcome::RateLimited => "rate_limited",
            OrderOutcome::Unproven => "unproven",
            OrderOutcome::Unreachable => "unreachable",
            OrderOutcome::Unusable => "unusable",
            OrderOutcome::NotStored => "not_kept",
        }
    }
}

/// Counters since the relay started; zeros without ACME.
#[derive(Default)]
pub(crate) struct OrderStats {
    ended: [AtomicU64; OrderOutcome::ALL.len()],
    consecutive_failures: AtomicU64,
    next: AtomicI64,
}

impl OrderStats {
    /// The number of orders with this outcome.
    pub(crate) fn ended(&self, outcome: OrderOutcome) -> u64 {
        self.ended[outcome as usize].load(Ordering::Relaxed)
    }

    /// The number of failed orders since the last good one.
    pub(crate) fn consecutive_failures(&self) -> u64 {
        self.consecutive_failures.load(Ordering::Relaxed)
    }

    /// When the next order is due, in seconds since 1970; 0 without ACME.
    pub(crate) fn next(&self) -> i64 {
        self.next.load(Ordering::Relaxed)
    }
}

#[cfg(feature = "acme")]
impl OrderStats {
    pub(super) fn count(&self, outcome: OrderOutcome) {
        self.ended[outcome as usize].fetch_add(1, Ordering::Relaxed);
        match outcome {
            OrderOutcome::Ok => self.consecutive_failures.store(0, Ordering::Relaxed),
            _ => _ = self.consecutive_failures.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(super) fn set_next(&self, seconds: i64) {
        self.next.store(seconds, Ordering::Relaxed);
    }
}
