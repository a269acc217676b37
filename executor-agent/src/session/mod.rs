//! Sessions: what survives streams, and how a stream gets at one (WIRE.md,
//! section 6.1).
//!
//! ```text
//! connection   one stream: phases, requests, notifications
//!   methods    from a name to a service
//! executor     what all connections share
//!   table      which session is attached where (pure)
//! ```

mod manager;
mod methods;
mod rpc_connection;
mod table;

pub use manager::SessionManager;
pub use rpc_connection::{StreamEnd, serve};

#[cfg(test)]
mod test_client;
#[cfg(test)]
mod tests;
