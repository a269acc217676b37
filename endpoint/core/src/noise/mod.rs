//! Noise: identities, handshakes as typestates, and the keys of open streams.
//!
//! ```text
//! initiate ──message 1──► respond
//!    │                       │
//! AwaitingResponse      AwaitingAuthorization ──authorize──► Established
//!    │                       │        └──reject (or drop)
//!    └──finish ◄──message 2──┘
//!    ▼
//! Established { Sealer, Opener, payload }
//! ```
//!
//! Invariants:
//!
//! * A responder has no keys before it receives an [`Authorized`] for the very
//!   key that the initiator proved to hold.
//! * Randomness comes in as a 32-byte seed per handshake; the same seed gives
//!   the same bytes.
//! * No message above [`limits::NOISE_MESSAGE_MAX_BYTES`] reaches a Noise
//!   library.
//!
//! [`limits::NOISE_MESSAGE_MAX_BYTES`]:
//! rendez_proto::limits::NOISE_MESSAGE_MAX_BYTES

mod aead;
mod dh;
mod error;
mod handshake;
mod hybrid_ik;
mod identity;
mod ik;
mod prologue;
mod seal;
mod transport_keys;

pub use error::HandshakeError;
pub use handshake::{
    AUTHENTICATION_REJECTED, Authorized, AwaitingAuthorization, AwaitingResponse, Established,
    FinishError, PendingHandshake, initiate, respond,
};
pub use identity::{Identity, IdentitySeed};
pub use prologue::Prologue;
pub use seal::{Opener, SealError, Sealer};
