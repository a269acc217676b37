//! Retries while the store is unavailable, for the one request whose client does
//! not retry: a stock executor exits on any failure of `/register`.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::store::StoreError;

/// How long `/register` retries while the database is busy. Stock executors wait
/// 10 s and exit on any failure (docs/codex-wire.md#register).
pub(crate) const REGISTER_RETRY_TIMEOUT: Duration = Duration::from_secs(8);

/// The pause between two attempts.
pub(crate) const REGISTER_RETRY_PAUSE: Duration = Duration::from_millis(50);

const _: () = assert!(REGISTER_RETRY_TIMEOUT.as_secs() < 10);

/// Until when a call of the store is repeated while the store is unavailable.
#[derive(Debug, Clone, Copy)]
pub struct StoreRetry {
    deadline: Option<Instant>,
}

impl StoreRetry {
    /// One attempt.
    pub const NEVER: Self = Self { deadline: None };

    /// Retries for as long as an executor waits for its registration, counted from
    /// now over all calls of the store together.
    pub fn for_registration() -> Self {
        Self { deadline: Some(Instant::now() + REGISTER_RETRY_TIMEOUT) }
    }

    /// Calls the store, repeatedly if needed.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn call<T, F>(self, attempt: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        // past the deadline one attempt remains: reading the request's body may
        // have taken all the time
        let Some(deadline) = self.deadline.filter(|deadline| Instant::now() < *deadline) else {
            return attempt().await;
        };
        loop {
            match timeout_at(deadline, attempt()).await {
                Ok(Err(StoreError::Unavailable(error)))
                    if Instant::now() + REGISTER_RETRY_PAUSE < deadline =>
                {
                    tracing::debug!(%error, "the database is not available, retrying");
                    sleep(REGISTER_RETRY_PAUSE).await;
                }
                Ok(result) => return result,
                Err(late) => return Err(StoreError::Unavailable(Box::new(late))),
            }
        }
    }
}
