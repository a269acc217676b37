//! The HTTP API of a registry, from the caller's side.
//!
//! | client | calls | authenticates with |
//! | --- | --- | --- |
//! | [`ExecutorClient`] | register, validate | a token, or a key of its own |
//! | [`OrchestratorClient`] | connect | a token |
//! | [`AdminClient`] | tokens, environments, connections, status, audit log | a token |
//!
//! All of them send requests through one HTTP client, which bounds the time and
//! the size of every response, and fail with one [`RegistryError`].

mod admin;
mod error;
mod executor;
mod http;
mod orchestrator;
mod proof;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod token;

pub use admin::AdminClient;
pub use error::RegistryError;
pub use executor::{ExecutorAuth, ExecutorClient, Verdict};
pub use orchestrator::OrchestratorClient;
