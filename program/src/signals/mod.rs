//! SignalListener that ask a program to end.
//!
//! [`shutdown`] is for programs that serve until they are asked to stop.
//! [`listener`] is for a command that passes signals on and decides by itself
//! when to end.

mod listener;
mod shutdown;

pub use listener::{HANGUP, SignalListener, SignalRequest, TERMINATE};
pub use shutdown::{Shutdown, cancel_on_signal, shutdown_on_signals};

pub use crate::sys::ignored_signals;
