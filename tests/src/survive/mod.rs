//! Streams under network faults: real processes, and everything that can happen to
//! the path between them.
//!
//! | module | is |
//! | --- | --- |
//! | [`testbed`] | a relay process, an agent process, and a path from each end |
//! | [`proxy`] | a TCP proxy that can reset, half-close and stall connections |
//! | [`links`] | network namespaces whose link can be set down |
//! | [`workload`] | the commands that run meanwhile: bytes up, bytes down, lines, a clock |
//! | [`faults`] | the faults that are injected |
//! | [`scenario`] | a whole run: the plan, the assertions and the figures |
//!
//! The flows are gated: none gets far ahead of the next fault, so that every fault
//! hits all of them in progress, on a machine of any speed.

pub mod faults;
pub mod links;
pub mod proxy;
pub mod random;
pub mod scenario;
pub mod terminal;
pub mod testbed;
pub mod workload;
