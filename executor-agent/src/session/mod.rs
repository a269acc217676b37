//! Sessions, which outlive streams, and the JSON-RPC connection of a stream
//! (docs/codex-wire.md#session).
//!
//! ```text
//! rpc_connection   one stream: phases, requests, notifications
//!   methods        from a method name to its service
//! manager          all sessions of an executor, and its shared services
//!   table          which connection holds which session (pure)
//! ```

mod manager;
mod methods;
mod rpc_connection;
mod table;

pub(crate) use manager::SessionManager;
pub(crate) use rpc_connection::{StreamEnd, serve};

#[cfg(test)]
mod test_client;
#[cfg(test)]
mod tests;
