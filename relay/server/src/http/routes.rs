//! The routes of the public and of the admin listener.
//!
//! | | public | admin |
//! | --- | --- | --- |
//! | `/cloud/environment/...`, `/v1/rendezvous` | yes | no |
//! | `GET /v1/environments`, `GET /v1/environments/{id}` | yes | yes |
//! | the rest of `/v1` | if `admin.on_public` | yes |
//! | `/livez`, `/readyz` | yes | yes |
//! | `/metrics` | no | yes |
//!
//! `/v1` needs a token on both listeners.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::error::{ErrorBody, ErrorCode, ErrorDetail};
use rendez_registry::RENDEZVOUS_PATH;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::metrics::{CONTENT_TYPE as METRICS_TYPE, ClientCall, Metrics};
use crate::rendezvous::{Rendezvous, rendezvous};

/// The routes of the public listener.
pub(crate) fn public(state: &Rendezvous, metrics: &Arc<Metrics>, whole_v1: bool) -> Router {
    let rendezvous = Router::new()
        .route(RENDEZVOUS_PATH, get(rendezvous))
        .with_state(state.clone())
        .merge(health(state, metrics));
    let app = state.registry.router().merge(rendezvous);
    let app = app.layer(from_fn_with_state(metrics.clone(), measure));
    if whole_v1 { app } else { app.layer(from_fn(clients_only)) }
}

/// The routes of the admin listener.
pub(crate) fn admin(state: &Rendezvous, metrics: &Arc<Metrics>) -> Router {
    let scrape = Router::new().route("/metrics", get(scrape)).with_state(metrics.clone());
    let app = state.registry.router().merge(health(state, metrics)).merge(scrape);
    app.layer(from_fn(operators_only))
}

fn health(state: &Rendezvous, metrics: &Arc<Metrics>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state((state.clone(), metrics.clone()))
}

/// Returns 200 while the relay accepts websockets and the store answers and accepts
/// writes.
async fn readyz(
    State((state, metrics)): State<(Rendezvous, Arc<Metrics>)>,
) -> (StatusCode, &'static str) {
    if state.connections.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n");
    }
    match state.registry.ping().await {
        Ok(()) if metrics.store_is_failing() => {
            (StatusCode::SERVICE_UNAVAILABLE, "the store accepts no writes\n")
        }
        Ok(()) => (StatusCode::OK, "ok\n"),
        Err(error) => {
            tracing::warn!(%error, "/readyz: the store does not answer");
            (StatusCode::SERVICE_UNAVAILABLE, "the store does not answer\n")
        }
    }
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    // It reads /proc, with a directory entry per connection, which blocks.
    match tokio::task::spawn_blocking(move || metrics.encode()).await {
        Ok(Ok(text)) => ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// Measures the duration of client calls.
async fn measure(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let Some(call) = path.and_then(ClientCall::of_route) else { return next.run(request).await };
    let since = Instant::now();
    let span = tracing::info_span!("call", otel.name = call.as_str(), status = Empty);
    let response = next.run(request).instrument(span.clone()).await;
    span.record("status", response.status().as_u16());
    metrics.observe_call(call, since.elapsed());
    response
}

/// Refuses the part of `/v1` for operators. A path that is not listed as a client's is
/// an operator's, so a new route is closed by default.
async fn clients_only(request: Request, next: Next) -> Response {
    if is_for_operators(request.method(), request.uri()) {
        return not_found("this part of the API is served on the relay's admin listener");
    }
    next.run(request).await
}

fn is_for_operators(method: &Method, uri: &Uri) -> bool {
    // Every path counts, not only `/v1/`: the router may match an unusual path.
    let clients = match uri.path() {
        RENDEZVOUS_PATH => true,
        "/v1/environments" => method == Method::GET,
        path if is_one_environment(path) => method == Method::GET,
        path => path.starts_with("/cloud/") || matches!(path, "/livez" | "/readyz"),
    };
    !clients
}

fn is_one_environment(path: &str) -> bool {
    let id = path.strip_prefix("/v1/environments/");
    id.is_some_and(|id| id.parse::<EnvironmentId>().is_ok())
}

/// Refuses the calls of stock clients: this listener has no TLS for their tokens.
async fn operators_only(request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/cloud/") {
        return not_found("clients are served on the relay's public listener");
    }
    next.run(request).await
}

fn not_found(message: &str) -> Response {
    let error = ErrorDetail::new(ErrorCode::NotFound, message);
    (StatusCode::NOT_FOUND, axum::Json(ErrorBody { error, rendez: None })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unlisted_path_is_for_operators() {
        let operators =
            |method, path: &'static str| is_for_operators(&method, &Uri::from_static(path));
        for path in
            ["/v1/rendezvous?ticket=x", "/v1/environments?after=a", "/v1/environments/a", "/livez"]
        {
            assert!(!operators(Method::GET, path), "{path}");
        }
        assert!(!operators(Method::POST, "/cloud/environment/a/register"));
        for path in ["/v1/tokens", "/v1/tokens/a", "/v1/environments/", "/v1/environments/a/b", "/"]
        {
            assert!(operators(Method::GET, path), "{path}");
        }
        assert!(operators(Method::DELETE, "/v1/environments"));
        assert!(operators(Method::DELETE, "/v1/environments/a"));
        assert!(operators(Method::GET, "//v1/tokens"));
    }
}
