//! The endpoint of Rendez as a pure state machine: Noise handshakes, sealed
//! records, windows, message framing and the streams that share one socket.
//!
//! No clock, no sockets, no threads, no randomness of the operating system:
//! time comes in as an argument, randomness as a seed, and the same inputs
//! give the same outputs.
//!
//! # Calling a [`Mux`]
//!
//! Four verbs, in this order, by whoever owns the socket:
//!
//! 1. [`handle_timeout`](Mux::handle_timeout) when [`poll_timeout`](Mux::poll_timeout)
//!    has passed;
//! 2. [`poll_transmit`](Mux::poll_transmit) while the socket has room: nothing
//!    is produced ahead of it;
//! 3. [`handle_message`](Mux::handle_message) for what arrived, while
//!    [`wants_read`](Mux::wants_read);
//! 4. [`poll_event`](Mux::poll_event) until there is none.
//!
//! [`socket_opened`](Mux::socket_opened) and [`socket_lost`](Mux::socket_lost)
//! are inputs like any other: a reconnect is not a special case. The
//! application calls [`send`](Mux::send), [`recv`](Mux::recv) and the others
//! at any time, and then lets 2 and 4 run again.
//!
//! # Invariants
//!
//! * Bytes from the socket never end the endpoint, and never panic. Bytes that
//!   the peer did not authenticate take no place in a stream's buffers, and do
//!   not end an open stream of a reliable profile, with one exception: whoever
//!   answers a resume with "unknown stream" ends it, for an executor that was
//!   restarted has no keys to prove that with. A relay that lies so could as
//!   well have dropped the resume.
//! * A record is sealed once. What is sent again is the same bytes.
//! * Every buffer has a bound in [`rendez_proto::limits`].

pub mod framing;
pub mod noise;
pub mod window;

mod config;
mod error;
mod mux;
mod stats;
mod stream;

pub use config::{Config, Connect, Event, Grace, InvalidGrace, Key, Limits, Role};
pub use error::{Closed, ConnectError, Misbehaviour, Refusal, SendError};
pub use mux::Mux;
pub use noise::{Authorized, Identity, IdentitySeed, PendingHandshake};
pub use stats::Stats;
pub use stream::{ACK_DELAY, ACK_EVERY_RECORDS, CODEX_UNREAD_MAX_BYTES, CODEX_UNREAD_TIMEOUT};

/// The origin of virtual time in unit tests.
#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests need some instant to start from")]
fn test_origin() -> std::time::Instant {
    std::time::Instant::now()
}
