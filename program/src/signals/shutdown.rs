//! SIGTERM and Ctrl-C as cancellation tokens.

use tokio_util::sync::CancellationToken;

use crate::sys::{SignalKind, signal};

/// The two requests to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled at the first request: shut down gracefully.
    pub graceful: CancellationToken,
    /// Cancelled at the second request: stop immediately.
    pub immediate: CancellationToken,
}

impl From<CancellationToken> for Shutdown {
    fn from(graceful: CancellationToken) -> Self {
        Self { graceful, immediate: CancellationToken::new() }
    }
}

impl Shutdown {
    /// Records a request to stop.
    fn request(&self) {
        if self.graceful.is_cancelled() {
            self.immediate.cancel();
        }
        self.graceful.cancel();
    }
}

/// The first SIGTERM or Ctrl-C shuts down gracefully, the second one immediately.
/// Must be called within a tokio runtime.
pub fn shutdown_on_signals() -> Shutdown {
    let stop = Shutdown::default();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let stop = stop.clone();
        match signal(kind) {
            Ok(mut signals) => {
                tokio::spawn(async move {
                    while signals.recv().await.is_some() {
                        stop.request();
                    }
                });
            }
            Err(error) => tracing::warn!(%error, ?kind, "cannot catch this signal"),
        }
    }
    stop
}

/// A token that SIGTERM or Ctrl-C cancels. Must be called within a tokio
/// runtime.
pub fn cancel_on_signal() -> CancellationToken {
    shutdown_on_signals().graceful
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_request_stops_immediately() {
        let stop = Shutdown::default();
        stop.request();
        assert!(stop.graceful.is_cancelled() && !stop.immediate.is_cancelled());
        stop.request();
        assert!(stop.immediate.is_cancelled());
    }
}
