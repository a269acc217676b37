//! Everything that crosses a wire in Rendez, parsed once into domain types.
//!
//! The crate is pure: no clock, no sockets, no randomness. It promises stable
//! bytes to three parties:
//!
//! * **endpoints and relays** of other versions: [`frame`], [`peek`], [`ticket`],
//!   [`proof`], [`close`];
//! * **stock Codex binaries**: fields 1 to 12 of the frame, [`registry`] and the
//!   methods under [`rpc`] are theirs, and our additions are optional;
//! * **operators**: [`limits`] gives each bound that crosses a wire its reason.
//!
//! Golden bytes in each module's tests hold the promise.

pub mod audit;
pub mod close;
mod fields;
pub mod frame;
pub mod ids;
pub mod keys;
pub mod limits;
#[cfg(feature = "openapi")]
mod openapi;
pub mod peek;
pub mod profile;
pub mod proof;
pub mod registry;
pub mod rpc;
pub mod ticket;

/// Types generated from `relay.proto`; use [`frame`] instead.
pub(crate) mod wire {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/codex.exec_server.relay.v1.rs"));
}
