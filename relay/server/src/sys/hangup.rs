//! SIGHUP.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The SIGHUPs that the process receives from now on. Without it a SIGHUP ends
/// the process.
pub(crate) struct Hangups(Signal);

impl Hangups {
    /// `None` if the signal cannot be caught, with a warning in the log.
    pub(crate) fn catch() -> Option<Self> {
        match signal(SignalKind::hangup()) {
            Ok(signal) => Some(Self(signal)),
            Err(error) => {
                tracing::warn!(%error, "cannot catch SIGHUP: settings cannot be reloaded");
                None
            }
        }
    }

    /// Waits for the next one. `None` if no more can arrive.
    pub(crate) async fn recv(&mut self) -> Option<()> {
        self.0.recv().await
    }
}
