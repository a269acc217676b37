//! Streams under real cuts: real processes, and everything that can happen to
//! the path between them.
//!
//! | module | is |
//! | --- | --- |
//! | [`testbed`] | a relay process, an agent process, and a path from each end |
//! | [`proxy`] | a TCP proxy that can cut, half-close and go dark |
//! | [`links`] | network namespaces whose link can be set down |
//! | [`workload`] | what runs meanwhile: bytes up, bytes down, lines, a clock |
//! | [`faults`] | what happens to them, and when |
//! | [`scenario`] | all of it together, what must hold, and the figures |
//!
//! The flows are gated: none gets far ahead of the next cut, so that every cut
//! falls into the midst of all of them, however fast the machine is.

pub mod faults;
pub mod links;
pub mod proxy;
pub mod random;
pub mod scenario;
pub mod terminal;
pub mod testbed;
pub mod workload;
