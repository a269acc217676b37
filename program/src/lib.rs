//! What every program of Rendez does before its own work.
//!
//! ```text
//! settings   one list of settings: file, environment, flags, documentation
//! logging    how much is logged, and in which form
//! signals    signals that ask a program to end
//! sys        code that only Unix has
//! ```
//!
//! Programs use this crate: the relay, the agent and the command line. The
//! libraries below them do not.

pub mod logging;
pub mod settings;
pub mod signals;
mod sys;
