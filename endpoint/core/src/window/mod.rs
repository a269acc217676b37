//! Sequence numbers, acknowledgements and credit of one direction.
//!
//! Below is TCP, so loss means that a relay shed a lane or that a websocket was
//! replaced. Three rules suffice. After a timeout, which doubles each time,
//! everything unacknowledged is presumed lost and retransmitted as
//! acknowledgements return. When later records are acknowledged, a gap is
//! retransmitted early. After a resume everything unacknowledged is
//! retransmitted.
//!
//! Three bounds limit the records in flight, each for its own reason: credit
//! (the receiver's memory, [`RecvWindow`]), congestion (a relay's memory,
//! [`Congestion`]) and a [`Budget`] over all streams (the sender's memory).
//! Credit and congestion begin with [`WINDOW_MIN_RECORDS`] and grow with the
//! bandwidth-delay product, to [`WINDOW_MAX_RECORDS`] at most.
//!
//! * [`SendWindow`] keeps the exact sealed bytes; a retransmission never seals
//!   again.
//! * [`RecvWindow`] decides whether a record is worth opening before any
//!   cryptography, and holds opened records only.
//!
//! [`WINDOW_MAX_RECORDS`]: rendez_proto::limits::WINDOW_MAX_RECORDS

mod bounds;
mod budget;
mod congestion;
mod recv;
mod rto;
mod send;

pub use bounds::{RECEIVE_MEMORY_BYTES, SEND_MEMORY_BYTES, WINDOW_MIN_BYTES, WINDOW_MIN_RECORDS};
pub use budget::Budget;
pub use congestion::Congestion;
pub use recv::{Arrival, CODEX_REORDER_MAX_RECORDS, RecvWindow};
pub use rto::{RTO_MAX, RTO_MIN, Rto};
pub use send::{AckOfUnsent, SendWindow};
