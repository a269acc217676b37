//! The relay: registry and rendezvous behind one listener.
//!
//! ```text
//! config      defaults < file < environment < flags
//! server      composes: state, listeners, signals
//!   ├── listen                TCP -> (tls) -> HTTP connections, bounded
//!   ├── routes                what the public and the admin listener answer
//!   │     ├── registry's      /cloud/environment/..., /v1/...
//!   │     ├── metrics         /metrics: counters of all parts, at scrape time
//!   │     └── rendezvous      GET /v1/rendezvous: ticket -> upgrade -> pump
//!   │           └── connections   hubs and websockets, one guard each
//!   ├── reload                SIGHUP
//!   └── drain                 SIGTERM
//! ```
//!
//! A websocket is one task, its pump; besides these there is one sweeper for
//! the hubs' timers. The relay forwards frames that it cannot read: nothing
//! here depends on the endpoint crate or on Noise.

pub mod config;
pub mod connections;
mod descriptors;
mod drain;
mod gulp;
mod issuers;
mod listen;
mod metrics;
mod outflow;
mod reload;
mod rendezvous;
mod routes;
pub mod server;
mod tenure;
mod tls;
mod traces;

pub use config::{Config, RelayArgs};
pub use connections::Quotas;
pub use descriptors::raise_descriptors;
pub use server::{Relay, StartError};
pub use traces::{Traces, TracesError};
