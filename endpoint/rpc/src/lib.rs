//! Calls and notifications over an endpoint stream.
