//! Streams under real cuts: real processes, and everything that can happen to
//! the path between them.
//!
//! | module | is |
//! | --- | --- |
//! | [`world`] | a relay process, an agent process, and a path from each end |
//! | [`path`] | a TCP proxy that can cut, half-close and go dark |
//! | [`links`] | network namespaces whose link can be set down |
//! | [`flows`] | what runs meanwhile: bytes up, bytes down, lines, a clock |
//! | [`cuts`] | what happens to them, and when |
//! | [`story`] | all of it together, what must hold, and the figures |
//!
//! The flows are gated: none gets far ahead of the next cut, so that every cut
//! falls into the midst of all of them, however fast the machine is.

pub mod cuts;
pub mod flows;
pub mod links;
pub mod noise;
pub mod path;
pub mod story;
pub mod terminal;
pub mod world;
