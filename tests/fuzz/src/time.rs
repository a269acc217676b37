//! The origin of virtual time.

use std::sync::OnceLock;
use std::time::Instant;

/// One instant per process; all others are offsets from it.
pub(crate) fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}
