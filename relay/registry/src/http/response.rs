//! Responses, each of which is counted.

use axum::Json;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use rendez_proto::registry::error::ErrorCode;
use serde::Serialize;

use super::error::Failure;
use crate::registry::Registry;
use crate::stats::{Operation, Outcome};

pub(super) fn respond(
    registry: &Registry,
    operation: Operation,
    result: Result<(Outcome, Response), Failure>,
) -> Response {
    match result {
        Ok((outcome, response)) => {
            registry.stats().count(operation, outcome);
            response
        }
        Err(failure) => {
            registry.stats().count(operation, Outcome::Error(failure.code()));
            tracing::debug!(?operation, code = %failure.code(), "request refused");
            failure.into_response()
        }
    }
}

pub(super) fn done((): ()) -> (Outcome, Response) {
    (Outcome::Ok, StatusCode::NO_CONTENT.into_response())
}

pub(super) fn ok<T: Serialize>(reply: T) -> (Outcome, Response) {
    (Outcome::Ok, json(&reply))
}

/// Responses carry secrets or change at any time, so caches must not store them.
pub(super) fn json<T: Serialize>(reply: &T) -> Response {
    let mut response = Json(reply).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) async fn not_found(State(registry): State<Registry>) -> Response {
    let failure = Failure::new(ErrorCode::NotFound, "this path does not exist");
    respond(&registry, Operation::UnknownRoute, Err(failure))
}

pub(super) async fn method_not_allowed(State(registry): State<Registry>) -> Response {
    let failure =
        Failure::new(ErrorCode::MethodNotAllowed, "this path does not support this method");
    respond(&registry, Operation::UnknownRoute, Err(failure))
}
