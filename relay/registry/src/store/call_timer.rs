//! The duration of the store's calls. An engine runs each call through a
//! [`CallTimer`].

use std::sync::Arc;
use std::time::Instant;

use super::StoreError;
use crate::stats::StoreCall;
use crate::traits::{NoStoreMetrics, StoreMetrics};

/// Reports how long each call of a store takes.
#[derive(Clone)]
pub(super) struct CallTimer(Arc<dyn StoreMetrics>);

impl CallTimer {
    pub(super) fn new(store_metrics: Arc<dyn StoreMetrics>) -> Self {
        Self(store_metrics)
    }

    /// Runs one call and reports the time from here to its end, which includes
    /// waiting for the write lock. A cancelled call is not reported.
    pub(super) async fn time<T>(
        &self,
        call: StoreCall,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let done = work.await;
        // a reached limit is an answer, not a failure of the database
        let succeeded = matches!(done, Ok(_) | Err(StoreError::LimitReached { .. }));
        self.0.observe_call(call, began.elapsed(), succeeded);
        done
    }
}

impl Default for CallTimer {
    fn default() -> Self {
        Self(Arc::new(NoStoreMetrics))
    }
}
