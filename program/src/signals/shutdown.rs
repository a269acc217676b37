//! SIGTERM and Ctrl-C as cancellation tokens.

use tokio_util::sync::CancellationToken;

use crate::sys::{SignalKind, signal};

/// When to stop.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Begin to leave in good order.
    pub graceful: CancellationToken,
    /// Leave at once, whatever is still open.
    pub immediate: CancellationToken,
}

impl From<CancellationToken> for Shutdown {
    fn from(graceful: CancellationToken) -> Self {
        Self { graceful, immediate: CancellationToken::new() }
    }
}

impl Shutdown {
    /// One more request to stop.
    fn request(&self) {
        if self.graceful.is_cancelled() {
            self.immediate.cancel();
        }
        self.graceful.cancel();
    }
}

/// A first SIGTERM or Ctrl-C stops gently, a second one at once. Must be called
/// within a tokio runtime.
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
            Err(error) => tracing::warn!(%error, ?kind, "this signal cannot be caught"),
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
    fn the_second_request_is_urgent() {
        let stop = Shutdown::default();
        stop.request();
        assert!(stop.graceful.is_cancelled() && !stop.immediate.is_cancelled());
        stop.request();
        assert!(stop.immediate.is_cancelled());
    }
}
