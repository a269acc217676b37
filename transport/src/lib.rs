//! Drives a pure core over one websocket.
//!
//! The crate knows bytes, not frames. A core implements [`Protocol`]; a
//! websocket library is hidden behind [`Socket`]; [`pump()`] is the only loop
//! between the two, at both endpoints and in the relay. It returns
//! [why it ended](Ended), and the caller decides what to do next.
//!
//! Nothing is queued ahead of the socket: the pump asks the core for the next
//! bytes when the socket has room, and flushes once per batch.

pub mod backoff;
pub mod cause;
pub mod dial;
pub mod protocol;
pub mod pump;
pub mod relay_url;
pub mod socket;
pub mod tcp;
pub mod tls;

pub use protocol::{Protocol, Violation};
pub use pump::{Ended, pump};
pub use socket::{Incoming, Outgoing, Socket, SocketError};
