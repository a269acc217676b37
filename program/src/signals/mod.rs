//! Signals that ask a program to end.
//!
//! [`Shutdown`] is for programs that serve until they are asked to stop.
//! [`SignalListener`] is for a command that forwards signals and decides by
//! itself when to end.

mod listener;
mod shutdown;

pub use listener::{HANGUP, SignalListener, SignalRequest, TERMINATE};
pub use shutdown::{Shutdown, cancel_on_signal, shutdown_on_signals};

pub use crate::sys::ignored_signals;
