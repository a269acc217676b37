//! SIGTERM and Ctrl-C as cancellation tokens.

use tokio_util::sync::CancellationToken;

use crate::sys::{SignalKind, signal};

/// When to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Begin to leave in good order.
    pub gently: CancellationToken,
    /// Leave at once, whatever is still open.
    pub at_once: CancellationToken,
}

impl From<CancellationToken> for Stop {
    fn from(gently: CancellationToken) -> Self {
        Self { gently, at_once: CancellationToken::new() }
    }
}

impl Stop {
    /// One more request to stop.
    fn asked(&self) {
        if self.gently.is_cancelled() {
            self.at_once.cancel();
        }
        self.gently.cancel();
    }
}

/// A first SIGTERM or Ctrl-C stops gently, a second one at once. Must be called
/// within a tokio runtime.
pub fn stop_at_signals() -> Stop {
    let stop = Stop::default();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let stop = stop.clone();
        match signal(kind) {
            Ok(mut signals) => {
                tokio::spawn(async move {
                    while signals.recv().await.is_some() {
                        stop.asked();
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
pub fn until_signal() -> CancellationToken {
    stop_at_signals().gently
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_is_urgent() {
        let stop = Stop::default();
        stop.asked();
        assert!(stop.gently.is_cancelled() && !stop.at_once.is_cancelled());
        stop.asked();
        assert!(stop.at_once.is_cancelled());
    }
}
