//! The clock of the unit tests.

use std::time::Instant;

/// The time at which every test begins; all times are offsets from it.
pub(crate) fn t0() -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    #[allow(clippy::disallowed_methods)]
    *START.get_or_init(Instant::now)
}
