//! What children inherit of signals.
//!
//! A signal that a program ignores is ignored by the programs that it starts,
//! and cannot reach them any more: an agent that was started in the background
//! of a script, or by nohup, has such ones. One that has a handler is back at
//! its default in a child. So the agent handles what it was told to ignore, and
//! does nothing about it.

use std::sync::Once;

use rendez_program::signals::ignored_signals;
use tokio::signal::unix::{SignalKind, signal};

/// Makes children reachable by every signal. Must be called within a tokio
/// runtime; once is enough for the whole process.
pub(crate) fn make_children_reachable() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for number in ignored_signals() {
            // The handler stays when this is dropped.
            if let Err(error) = signal(SignalKind::from_raw(number)) {
                tracing::warn!(number, %error, "commands will ignore this signal");
            }
        }
    });
}
