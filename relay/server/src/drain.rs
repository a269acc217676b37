//! Leaving without losing work.

use tokio_util::sync::CancellationToken;

/// Whether the relay is leaving.
#[derive(Debug, Default)]
pub struct Drain {
    begun: CancellationToken,
}

impl Drain {
    /// New websockets go elsewhere from here on.
    pub(crate) fn begin(&self) {
        self.begun.cancel();
    }

    /// Whether it has begun.
    pub fn is_draining(&self) -> bool {
        self.begun.is_cancelled()
    }
}
