//! The fuzz targets, as plain functions of bytes: [`TARGETS`].
//!
//! ```text
//! corpus/<target>/*    minimised inputs that reach different code     ┐ cargo test -p rendez-fuzz
//! findings/<target>/*  inputs that once revealed a defect             ┘ replays both, on stable
//! libfuzzer/           a package of its own, on nightly: grows the corpus (README.md)
//! ```
//!
//! Invariants: a target is a function of its input alone (no clock, no
//! randomness, no order of a hash map), it returns for every input, and it
//! panics if and only if the code under test violates an invariant.

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

/// A target; panics if the code under test violates an invariant.
pub type Target = fn(&[u8]);

/// All targets by name, which is also the name of the corpus folder.
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
