//! Whole-system tests: tidy, end to end, conformance.
