//! The signal dispositions that children inherit.
//!
//! A child inherits ignored signals as ignored, and such a signal has no effect on
//! it. An agent that was started by nohup, or in the background of a script, ignores
//! some. A signal with a handler is back at its default in a child. So the agent
//! installs a handler, which does nothing, for each signal that it ignores.

use std::sync::Once;

use rendez_program::signals::ignored_signals;
use tokio::signal::unix::{SignalKind, signal};

/// Makes every signal reach children. Must be called within a tokio runtime; once
/// per process is enough.
pub(crate) fn make_children_reachable() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for number in ignored_signals() {
            // the handler stays installed after this is dropped
            if let Err(error) = signal(SignalKind::from_raw(number)) {
                tracing::warn!(number, %error, "cannot handle this signal, so commands will ignore it");
            }
        }
    });
}
