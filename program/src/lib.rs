//! The start-up code that all programs of Rendez share.
//!
//! ```text
//! settings   one list of settings: file, environment, flags, documentation
//! logging    how much is logged, and in which form
//! signals    signals that ask a program to end
//! tls_args   flags and variables for TLS to a relay
//! token      a token from a file or from RENDEZ_TOKEN
//! sys        code that only Unix has
//! ```
//!
//! Programs use this crate: the relay, the agent and the command line. The
//! libraries below them do not.

pub mod logging;
pub mod settings;
pub mod signals;
mod sys;
pub mod tls_args;
pub mod token;
