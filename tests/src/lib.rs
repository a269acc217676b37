//! Whole-system tests: tidy, end to end, survival, conformance.
//!
//! This library is what those tests share. Nothing here waits without a
//! deadline, and nothing that it starts outlives its handle.

pub mod poll;
pub mod process;
pub mod relay;
pub mod rendez;
pub mod stock;
pub mod survive;
pub mod tls;
