//! HTTP: TCP connections, optionally with TLS, and the routes of both listeners.

mod listener;
mod read_buffer;
pub(crate) mod routes;
mod write_stall;

pub(crate) use listener::Listener;
