//! The relay: registry and rendezvous behind one listener.
//!
//! ```text
//! config      defaults < file < environment < flags
//! server      composes: state, listeners, signals
//!   ├── http                  TCP -> (tls) -> HTTP connections, bounded; routes
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
mod drain;
mod http;
mod issuers;
mod metrics;
mod reload;
mod rendezvous;
pub mod server;
mod state_lock;
mod sys;
mod tls;
mod traces;

pub use config::{Config, RelayArgs};
pub use connections::Quotas;
pub use server::{Relay, StartError};
pub use sys::raise_descriptor_limit;
pub use traces::{Traces, TracesError};
