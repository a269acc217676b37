//! Environments, registrations, tokens and tickets, over a [`Store`].
//!
//! ```text
//! http     extract, authenticate, parse, call, convert; one status table
//!   |
//! service  the rules; owns time, ids and signatures          -> Presence (the relay)
//!   |
//! store    one transaction per method, `now` is an argument  -> SQLite
//! ```
//!
//! Invariants
//!
//! * The newest registration of an environment is its current one. Its
//!   generation is higher than any before it, and generations never reset.
//! * An orchestrator's ticket opens one websocket, and an authorization
//!   completes one handshake, both within a minute and under the registration
//!   that they were issued for.
//! * The database holds no secret in clear: tokens as hashes, tickets as ids.
//!   The signing key lives in a file beside it.
//! * `/register` waits rather than fails: stock executors exit on any failure.
//!
//! The relay embeds [`Registry`]: its router serves HTTP, and
//! [`Registry::admit`] judges the tickets that arrive in websocket URLs.

pub mod audit;
pub mod backup;
mod damage;
pub mod history;
pub mod http;
pub mod jwt;
pub mod model;
mod page;
pub mod public_url;
pub mod seam;
pub mod service;
pub mod signer;
pub mod stats;
pub mod store;
pub mod token;

#[cfg(test)]
mod testing;

pub use http::PeerAddr;
pub use public_url::{PublicUrl, RENDEZVOUS_PATH};
pub use seam::{Clock, Live, NobodyConnected, Node, NotWaiting, Presence, Random};
pub use service::tickets::{Admitted, TicketRefused};
pub use service::{OpenError, Options, Registry};
pub use store::Store;
