//! The executor: registers, accepts streams, runs processes and serves files.
//!
//! ```text
//! agent        the connection to the relay: register, dial, serve, back off
//!   registry   credentials and registration
//!   identity, credential, secret_file   the keys on disk
//!   authorize  which orchestrators may connect
//! session      the calls of a stream, and sessions, which outlive streams
//!   process    children with their input and output
//!   fs         files
//!   sandbox    refuses rules that the executor cannot enforce
//!   environment   the description of this machine
//!   sys        code that only Unix has
//! ```
//!
//! Sessions, processes and streams outlive the websocket, so it may break at any
//! moment without a loss of output.

mod agent;
mod authorize;
pub mod config;
mod credential;
mod environment;
mod fs;
mod identity;
mod process;
mod registry;
mod sandbox;
mod secret_file;
mod session;
mod sys;
#[cfg(test)]
mod testing;

pub use agent::{Agent, AgentError, AgentState};
pub use config::{AgentArgs, AgentConfig};
pub use process::output_log::PROCESS_OUTPUT_RETAINED_BYTES;
