//! The relay: registry and rendezvous behind one listener.
//!
//! ```text
//! server      listener, HTTP connections, shutdown
//!   ├── registry's routes     /cloud/environment/..., /v1/...
//!   └── edge                  GET /v1/rendezvous: ticket -> upgrade -> port
//!         └── directory       environment -> hub
//!               ├── port      a hub's port as the pump's Protocol
//!               └── ledger    accounts of node, environments and tokens
//! ```
//!
//! A websocket is one task, its pump; besides these there is one sweeper for
//! the hubs' timers. The relay forwards frames that it cannot read: nothing
//! here depends on the endpoint crate or on Noise.

pub mod args;
pub mod directory;
pub mod edge;
pub mod ledger;
pub mod server;

pub use args::RelayArgs;
pub use ledger::Quotas;
pub use server::{Config, Relay, StartError};
