//! The connection table: every open websocket of this relay, with one guard each.
//!
//! ```text
//! table        environment -> hub, and the open websockets
//!   ├── guard        one per websocket: holds all that it holds, and ends it
//!   │     ├── connection   the row: identity, traffic, eviction
//!   │     └── permit       its share of the listener's connections
//!   ├── hub          a relay-core hub behind a mutex, and the wakers of its ports
//!   ├── presence     the registry's questions about who is connected
//!   ├── strangers    connections that have shown no token or ticket yet
//!   ├── waiters      calls of /connect that wait for an executor
//!   ├── revocation   evicts websockets whose token was revoked or has expired
//!   └── quota        accounts of the node, of environments and of tokens
//! ```
//!
//! The table is used when a websocket opens or closes and by the sweeper, never
//! per frame.

mod connection;
mod guard;
mod hub;
mod permit;
mod presence;
mod quota;
mod revocation;
mod stats;
mod strangers;
mod table;
#[cfg(test)]
mod tests;
mod traffic;
mod waiters;

pub(crate) use connection::Connection;
pub(crate) use guard::{ConnectionGuard, audit_refusal};
pub(crate) use hub::SharedHub;
pub use permit::ConnectionLimit;
pub(crate) use permit::ConnectionPermit;
pub use quota::{QuotaAccounts, Quotas};
pub(crate) use revocation::RevocationWatcher;
pub use stats::{ConnectionStats, End};
pub(crate) use strangers::StrangerBounds;
pub use strangers::StrangerClosed;
pub use table::{ConnectionCounts, ConnectionTable};
