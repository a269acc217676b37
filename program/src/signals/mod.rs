//! Signals that ask a program to end.
//!
//! [`shutdown`] is for programs that serve until they are asked to stop.
//! [`listener`] is for a command that passes signals on and decides by itself
//! when to end.

mod listener;
mod shutdown;

pub use listener::{Asked, HANGUP, Signals, TERMINATE};
pub use shutdown::{Stop, stop_at_signals, until_signal};

pub use crate::sys::ignored_signals;
