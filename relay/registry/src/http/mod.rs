//! The HTTP API.
//!
//! Every handler checks in the same order: bearer or proof (401), path (400), role
//! and pattern (403), body size and arrival (413, 408), body (400), the rules of
//! the operation. The body of an unauthenticated client is never read.
//!
//! The router has a fallback that answers unknown paths in the API's error shape.
//! A server that merges it with routes of its own must not bring another one.

pub mod body;
mod cloud;
mod environments;
pub mod error;
mod error_responses;
mod executor_auth;
mod node;
pub mod openapi;
mod params;
mod peer;
mod request_context;
mod response;
#[cfg(test)]
mod tests;
mod tokens;

use axum::Router;
use axum::routing::post;

pub use self::peer::{OnCredential, PeerAddr};
use crate::registry::Registry;

impl Registry {
    /// Returns the routes under `/cloud/environment/` and `/v1/`.
    pub fn router(&self) -> Router {
        let (v1, _) = openapi::v1().split_for_parts();
        v1.route("/cloud/environment/{id}/register", post(cloud::register))
            .route("/cloud/environment/{id}/connect", post(cloud::connect))
            .route("/cloud/environment/{id}/validate", post(cloud::validate))
            .method_not_allowed_fallback(response::method_not_allowed)
            .fallback(response::not_found)
            .with_state(self.clone())
    }
}
