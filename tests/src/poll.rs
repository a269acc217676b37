//! Waiting for a condition that announces nothing, such as a file or a metric
//! of another process.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, interval};

/// The time between two checks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `check` until it returns a value, for at most `within`.
///
/// # Errors
/// An error of `check`, or at the deadline the reason why there is no value
/// yet, which `check` returns as the inner error.
pub async fn poll<T>(
    within: Duration,
    mut check: impl AsyncFnMut() -> Result<Result<T, String>>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    let mut ticks = interval(INTERVAL);
    loop {
        ticks.tick().await;
        match check().await? {
            Ok(value) => return Ok(value),
            Err(reason) if Instant::now() >= deadline => bail!("after {within:?}: {reason}"),
            Err(_) => {}
        }
    }
}

/// Waits until `condition` is true. `expected` describes it in the error.
pub async fn wait_until(
    within: Duration,
    expected: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    poll(within, async || {
        Ok(if condition() { Ok(()) } else { Err(format!("not yet: {expected}")) })
    })
    .await
}
