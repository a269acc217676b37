//! The relay: registry and rendezvous behind one listener.
//!
//! ```text
//! config      defaults < file < environment < flags
//! server      composes and runs the parts below
//!   ├── http                  TCP -> (tls) -> HTTP connections, bounded; routes
//!   │     ├── registry's      /cloud/environment/..., /v1/...
//!   │     ├── metrics         /metrics: counters of all parts, at scrape time
//!   │     └── rendezvous      GET /v1/rendezvous: ticket -> upgrade -> pump
//!   │           └── connections   hubs and websockets, one guard each
//!   ├── reload                SIGHUP
//!   └── drain                 SIGTERM
//! ```
//!
//! A websocket is one task, its pump. One sweeper task runs the timers of all hubs.
//! The relay cannot decrypt the frames that it forwards: this crate does not depend on
//! the endpoint crate or on Noise.

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
