//! What is fuzzed, as plain functions of bytes: [`TARGETS`].
//!
//! ```text
//! corpus/<target>/*    inputs that reach different code, minimised   ┐ cargo test -p rendez-fuzz
//! findings/<target>/*  inputs that once broke something              ┘ replays both, on stable
//! libfuzzer/           a package of its own, on nightly: grows the corpus (README.md)
//! ```
//!
//! Invariants: a target is a function of its input alone (no clock, no
//! randomness, no order of a hash map), it returns for every input, and it
//! panics if and only if the code under test broke a promise.

pub mod frame;
pub mod framing;
pub mod handshake;
pub mod hub_ops;
pub mod mux_ops;
pub mod mux_peer;
pub mod peek;
pub mod registry;
pub mod rpc;
pub mod ticket;

mod frames;
mod noise;
mod time;

/// A target: panics if the code under test broke a promise.
pub type Target = fn(&[u8]);

/// All targets by name. The name is also that of the corpus' folder.
pub const TARGETS: &[(&str, Target)] = &[
    ("frame", frame::run),
    ("peek", peek::run),
    ("framing", framing::run),
    ("handshake", handshake::run),
    ("mux_ops", mux_ops::run),
    ("mux_peer", mux_peer::run),
    ("hub_ops", hub_ops::run),
    ("ticket", ticket::run),
    ("rpc", rpc::run),
    ("registry", registry::run),
];
