//! The relay's core: one pure [`Hub`] per executor.
//!
//! ```text
//!  orchestrator ports                    executor port
//!   ┌──────┐   claim ┌─────────────────┐
//!   │ port ├─────────┤ lane ─► outbox ─┼──► one websocket
//!   └──────┘ ◄─ lane ┤                 │    many streams
//!   ┌──────┐   claim ├─────────────────┤
//!   │ port ├─────────┤ lane ─► outbox ─┤
//!   └──────┘         └─────────────────┘
//! ```
//!
//! Invariants:
//! 1. The hub reads the stream id and the kind of body ([`peek`]), nothing
//!    else, and forwards the very same bytes.
//! 2. A stream id belongs to the [`KeyFingerprint`] that used it first, until the
//!    stream is over and its grace with it. Stream ids are not capabilities.
//! 3. Order within a stream is kept; only acks and heartbeats overtake.
//! 4. An orchestrator is not read while one of its lanes towards the executor
//!    is full: TCP backpressure slows down that one peer only.
//! 5. A lane towards an orchestrator that is full is a decision of
//!    [`overflow`]: shed (the endpoints resend) or a short stall, then a reset
//!    of that one stream.
//! 6. Every queue has a bound; dropped frames are counted by reason
//!    ([`Dropped`]).
//! 7. Queued bytes and connections are charged to [`Accounts`]; a lane may grow
//!    only as far as it leaves as much to the others.
//! 8. A token whose handshakes fail is refused before the executor enters its
//!    cooldown and refuses all (`handshake_guard`).
//!
//! A shell owns the websockets. It calls [`Hub::handle_message`] for each message
//! that arrives, [`Hub::poll_transmit`] while the port's socket has room,
//! [`Hub::poll_wake`] after every call that changes something, and
//! [`Hub::handle_timeout`] at least every [`SWEEP_INTERVAL`].
//!
//! [`peek`]: rendez_proto::peek

mod account;
mod claim;
mod handshake;
mod handshake_guard;
mod hub;
mod ids;
mod lane;
mod outbox;
pub mod overflow;
mod port;
mod rate_limiter;
mod refusal;
mod stats;
#[cfg(test)]
mod testing;

use std::time::Duration;

pub use account::{Account, Accounts, Level, MemoryCharge, Quota, RATE_BURST, Usage};
pub use hub::routing::{CLAIMS_PER_EXECUTOR, STREAMS_PER_ORCHESTRATOR};
pub use hub::{Hub, HubAccounts, JoinError, Violation};
pub use ids::{KeyFingerprint, PortKey};
pub use lane::{FRAME_COST_BYTES, OVERTAKING_MAX_FRAMES};
pub use outbox::RESETS_MAX_FRAMES;
pub use port::Capabilities;
pub use refusal::Refusal;
pub use stats::{Dropped, Stats};

/// How often [`Hub::handle_timeout`] must be called; deadlines are met to
/// within this.
pub const SWEEP_INTERVAL: Duration = Duration::from_millis(250);
