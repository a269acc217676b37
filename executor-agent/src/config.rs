//! Settings.

/// The environment variable with the token; never inherited by children.
pub const TOKEN_VARIABLE: &str = "RENDEZ_TOKEN";
