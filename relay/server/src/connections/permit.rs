//! How many TCP connections a listener has open.

use std::sync::Arc;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// The bound on a listener's open TCP connections.
#[derive(Clone)]
pub(crate) struct ConnectionLimit {
    permits: Arc<Semaphore>,
    pub(crate) max: usize,
}

/// One TCP connection's share of the bound. Requests carry a clone of it, so that
/// a websocket, which the HTTP server has let go of, still counts.
#[derive(Clone)]
pub(crate) struct ConnectionPermit {
    _held: Arc<OwnedSemaphorePermit>,
}

impl ConnectionLimit {
    pub(crate) fn new(max: usize) -> Self {
        let max = max.min(Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(max)), max }
    }

    /// Waits until another connection may open.
    pub(crate) async fn acquire(&self) -> Result<ConnectionPermit, AcquireError> {
        let held = Arc::new(self.permits.clone().acquire_owned().await?);
        Ok(ConnectionPermit { _held: held })
    }

    /// The number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.max.saturating_sub(self.permits.available_permits())
    }
}
