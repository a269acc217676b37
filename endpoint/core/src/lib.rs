//! The endpoint of Rendez as a pure state machine: Noise handshakes, sealed
//! records, windows, message framing and the streams that share one socket.
//!
//! The crate uses no clock, sockets, threads or OS randomness. Time comes in as
//! an argument and randomness as a seed, and the same inputs give the same
//! outputs.
//!
//! # Calling a [`Mux`]
//!
//! The owner of the socket calls four verbs, in this order:
//!
//! 1. [`handle_timeout`](Mux::handle_timeout) when [`poll_timeout`](Mux::poll_timeout)
//!    has passed;
//! 2. [`poll_transmit`](Mux::poll_transmit) while the socket has room: frames are
//!    made only when they can be written;
//! 3. [`handle_message`](Mux::handle_message) for each message received, while
//!    [`wants_read`](Mux::wants_read);
//! 4. [`poll_event`](Mux::poll_event) until it returns `None`.
//!
//! [`socket_opened`](Mux::socket_opened) and [`socket_lost`](Mux::socket_lost)
//! are ordinary inputs: a reconnect is not a special case. The application
//! calls [`send`](Mux::send), [`recv`](Mux::recv) and the other methods at any
//! time, and then repeats steps 2 and 4.
//!
//! # Invariants
//!
//! * Bytes from the socket never end the endpoint and never cause a panic.
//!   Bytes that the peer did not authenticate are not buffered and do not end
//!   an open stream of a reliable profile. There is one exception: the answer
//!   "unknown stream" to a resume ends the stream, because an executor that
//!   restarted has no keys to prove it. A relay that forges this answer could
//!   as well have dropped the resume.
//! * A record is sealed once. A retransmission is the same bytes.
//! * Every buffer has a bound: in [`rendez_proto::limits`] if it concerns other
//!   crates, otherwise beside the code that enforces it.

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
