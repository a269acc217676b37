//! Sessions: what survives streams, and how a stream gets at one (WIRE.md,
//! section 6.1).
//!
//! ```text
//! connection   one stream: phases, requests, notifications
//!   methods    from a name to a service
//! executor     what all connections share
//!   table      which session is attached where (pure)
//! ```

mod connection;
mod executor;
mod methods;
mod table;

pub use connection::{Served, serve};
pub use executor::Executor;

#[cfg(test)]
mod test_client;
#[cfg(test)]
mod tests;
