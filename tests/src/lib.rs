//! Whole-system tests: tidy, end to end, endurance, conformance.
//!
//! The code that those tests share. Every wait here has a deadline, and every
//! process ends with its handle.

pub mod poll;
pub mod process;
pub mod relay;
pub mod rendez;
pub mod stock;
pub mod survive;
pub mod tls;
