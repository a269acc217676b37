//! Sequence numbers, acknowledgements and credit of one direction.
//!
//! Below is TCP, so loss means that a relay shed a lane or that a websocket
//! changed. The rules are therefore few: one timeout with doubling, after which
//! everything unacknowledged is suspect and goes out again as acknowledgements
//! return; an early resend when later records are acknowledged; and the same
//! again after a resume.
//!
//! Three things bound what is under way, and each has its own reason: credit
//! (the receiver's memory, [`RecvWindow`]), congestion (a relay's memory,
//! [`Congestion`]) and a [`Budget`] over all streams (the sender's memory).
//! Credit and congestion begin with [`WINDOW_MIN_RECORDS`] and grow with the
//! bandwidth-delay product, to [`WINDOW_MAX_RECORDS`] at most.
//!
//! * [`SendWindow`] keeps the exact bytes that were sealed; a resend never
//!   seals again.
//! * [`RecvWindow`] answers whether a record is worth opening before any
//!   cryptography, and only ever holds what was opened.
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
