//! Environments, registrations, tokens and tickets, over a [`Store`].
//!
//! ```text
//! http      authenticate, parse, call a resource, convert the result
//!   |
//! registry  the resources and their rules                      -> Presence (the relay)
//!   |
//! store     one transaction per method, `now` is an argument   -> SQLite
//! ```
//!
//! Invariants
//!
//! * The newest registration of an environment is its current one. Its generation
//!   is higher than any before it, and generations never reset.
//! * An orchestrator's ticket opens one websocket, and an authorization completes
//!   one handshake, both within a minute and under the registration for which they
//!   were issued.
//! * The database holds no secret in clear: tokens as hashes, tickets as ids. The
//!   signing key is in a file beside it.
//! * `/register` retries rather than fails: stock executors exit on any failure.
//!
//! The relay embeds [`Registry`]: its router serves HTTP, and
//! [`tickets::Tickets::admit`] checks the tickets that arrive in websocket URLs.

pub mod audit;
pub mod backup;
pub mod bearer_token;
pub mod history;
pub mod http;
pub mod jwt;
pub mod model;
mod page;
pub mod public_url;
mod registry;
pub mod signer;
pub mod stats;
pub mod store;
pub mod store_retry;
pub mod traits;

#[cfg(test)]
mod testing;

pub use http::{OnCredential, PeerAddr};
pub use public_url::{PublicUrl, RENDEZVOUS_PATH};
pub use registry::tickets::{Admitted, TicketRefused};
pub use registry::{
    DATABASE_FILE, OpenError, Options, Registry, environments, executor_keys, node, registrations,
    revocations, tickets, tokens,
};
pub use store::Store;
pub use traits::{
    Clock, EnvironmentConnections, NoPresence, NodeConnections, Presence, Random, WaitRefused,
};
