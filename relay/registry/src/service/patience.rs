//! Waiting for a database that is not available, for whoever would not come
//! again: stock executors exit on any failure of `/register`.
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

use super::Registry;
use crate::store::StoreError;

/// How long `/register` tries again while the database is busy. Codex, section
/// 1.1: its executors wait 10 s and exit on any failure.
pub(crate) const REGISTER_PATIENCE: Duration = Duration::from_secs(8);

/// Pause between two of those tries.
pub(crate) const REGISTER_RETRY_PAUSE: Duration = Duration::from_millis(50);

const _: () = assert!(REGISTER_PATIENCE.as_secs() < 10);

impl Registry {
    /// The same registry for one call that tries again where the database is not
    /// available, for [`REGISTER_PATIENCE`] from now on, however many
    /// times it asks the database.
    pub(crate) fn patient(&self) -> Self {
        let until = self.patience.unwrap_or_else(|| Instant::now() + REGISTER_PATIENCE);
        Self { inner: self.inner.clone(), patience: Some(until) }
    }

    /// Asks the database, again and again if this registry is
    /// [`patient`](Self::patient).
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn persist<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        // once in any case: what took so long may have been the request's body
        let Some(deadline) = self.patience.filter(|until| Instant::now() < *until) else {
            return attempt().await;
        };
        loop {
            match timeout_at(deadline, attempt()).await {
                Ok(Err(StoreError::Unavailable(error)))
                    if Instant::now() + REGISTER_RETRY_PAUSE < deadline =>
                {
                    tracing::debug!(%error, "database not available, trying again");
                    sleep(REGISTER_RETRY_PAUSE).await;
                }
                Ok(result) => return result,
                Err(late) => return Err(StoreError::Unavailable(Box::new(late))),
            }
        }
    }
}
