//! The relay: registry and rendezvous behind one listener.
//!
//! ```text
//! config      defaults < file < environment < flags
//! server      composes: state, listeners, signals
//!   ├── listen                TCP -> (tls) -> HTTP connections, bounded
//!   ├── routes                what the public and the admin listener answer
//!   │     ├── registry's      /cloud/environment/..., /v1/...
//!   │     ├── metrics         /metrics: counters of all parts, at scrape time
//!   │     └── edge            GET /v1/rendezvous: ticket -> upgrade -> port
//!   │           └── directory environment -> hub
//!   │                 ├── port a hub's port as the pump's Protocol
//!   │                 └── ledger accounts of node, environments and tokens
//!   ├── reload                SIGHUP
//!   └── drain                 SIGTERM
//! ```
//!
//! A websocket is one task, its pump; besides these there is one sweeper for
//! the hubs' timers. The relay forwards frames that it cannot read: nothing
//! here depends on the endpoint crate or on Noise.

pub mod args;
pub mod config;
mod descriptors;
pub mod directory;
pub mod drain;
pub mod edge;
mod gulp;
mod issuers;
pub mod ledger;
mod listen;
mod metrics;
mod outflow;
mod reload;
pub mod roster;
mod routes;
pub mod server;
mod tenure;
mod tls;
mod traces;
mod waiters;

pub use args::RelayArgs;
pub use config::Config;
pub use descriptors::raise_descriptors;
pub use ledger::Quotas;
pub use server::{Relay, StartError};
pub use traces::{Traces, TracesError};
