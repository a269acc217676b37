//! Waiting for a database that is not available, for whoever would not come
//! again: stock executors exit on any failure of `/register`.

use rendez_proto::limits;
use tokio::time::{Instant, sleep, timeout_at};

use super::Registry;
use crate::store::StoreError;

impl Registry {
    /// The same registry for one call that tries again where the database is not
    /// available, for [`limits::REGISTER_PATIENCE`] from now on, however many
    /// times it asks the database.
    pub(crate) fn patient(&self) -> Self {
        let until = self.patience.unwrap_or_else(|| Instant::now() + limits::REGISTER_PATIENCE);
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
                    if Instant::now() + limits::REGISTER_RETRY_PAUSE < deadline =>
                {
                    tracing::debug!(%error, "database not available, trying again");
                    sleep(limits::REGISTER_RETRY_PAUSE).await;
                }
                Ok(result) => return result,
                Err(late) => return Err(StoreError::Unavailable(Box::new(late))),
            }
        }
    }
}
