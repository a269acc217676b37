//! The HTTP API: authenticate, parse, call, convert.
//!
//! Order of checks, the same on every route: bearer or proof (401), path (400), role
//! and pattern (403), body size and arrival (413, 408), body (400), the rules.
//! A stranger's body is never read.
//!
//! The router has a fallback that answers unknown paths in the API's error
//! shape; a server that merges it with routes of its own brings no other.

mod body;
pub mod error;
mod knock;
mod peer;
mod routes;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::routing::{delete, get, post};

pub use self::peer::PeerAddr;
use crate::service::Registry;

impl Registry {
    /// The routes under `/cloud/environment/` and `/v1/`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/cloud/environment/{id}/register", post(routes::register))
            .route("/cloud/environment/{id}/connect", post(routes::connect))
            .route("/cloud/environment/{id}/validate", post(routes::validate))
            .route("/v1/environments", get(routes::environments))
            .route(
                "/v1/environments/{id}",
                get(routes::environment_detail).delete(routes::revoke_environment),
            )
            .route("/v1/environments/{id}/registration", delete(routes::end_registration))
            .route("/v1/audit", get(routes::audit))
            .route("/v1/audit/head", get(routes::audit_head))
            .route("/v1/tokens", get(routes::list_tokens).post(routes::create_token))
            .route("/v1/tokens/{id}", delete(routes::revoke_token))
            .route("/v1/tokens/{id}/rotate", post(routes::rotate_token))
            .method_not_allowed_fallback(routes::method_not_allowed)
            .fallback(routes::not_found)
            .with_state(self.clone())
    }
}
