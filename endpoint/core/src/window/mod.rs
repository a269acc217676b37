//! Sequence numbers, acknowledgements and credit of one direction.
//!
//! Below is TCP, so loss means that a relay shed a lane or that a websocket
//! changed. The rules are therefore few: one timeout with doubling that
//! resends the oldest gap, an early resend when later records are
//! acknowledged, and everything again after a resume. No congestion control:
//! TCP has it.
//!
//! * [`SendWindow`] keeps the exact bytes that were sealed; a resend never
//!   seals again.
//! * [`RecvWindow`] answers whether a record is worth opening before any
//!   cryptography, and only ever holds what was opened.

mod recv;
mod rtt;
mod send;

pub use recv::{Arrival, RecvWindow};
pub use rtt::Rto;
pub use send::{AckOfUnsent, SendWindow};
