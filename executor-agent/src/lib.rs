//! The executor: registers, accepts streams, runs processes, serves files.
//!
//! ```text
//! agent        the whole life: register, dial, pump, back off
//!   registry   credentials, registration      identity, credential   the keys
//!   authorize  the registry's verdict on whoever knocks
//! session      one stream's calls; what survives streams
//!   process    children, their output, their input
//!   fs         files
//!   sandbox    refuses rules that cannot be enforced
//!   sys        what only Unix has
//! ```
//!
//! Sessions, processes and streams outlive the websocket; the websocket may
//! break at any moment without losing output.

pub mod agent;
mod authorize;
pub mod config;
pub mod credential;
pub mod environment;
mod fs;
pub mod identity;
mod process;
mod registry;
mod sandbox;
pub mod secret_file;
pub mod session;
mod sys;
#[cfg(test)]
mod testing;

pub use agent::{Agent, AgentError, AgentState};
pub use config::{AgentArgs, AgentConfig};
pub use process::output_log::PROCESS_OUTPUT_RETAINED_BYTES;
