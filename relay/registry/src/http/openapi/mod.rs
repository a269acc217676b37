//! The OpenAPI document of everything under `/v1`. It is built from the routes
//! that serve it, so that every route has a description.

use std::sync::LazyLock;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::Failure;
use super::{environments, node, response, tokens};
use crate::registry::Registry;
use crate::stats::{Operation, Outcome};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Rendez: administration of a relay",
        description = "Environments, tokens, the audit log and the relay itself. \
                       docs/protocol.md describes the calls of executors and orchestrators.",
        version = "1",
        license(name = "MIT OR Apache-2.0"),
    ),
    modifiers(&Bearer),
    security(("token" = [])),
)]
struct About;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// Returns the routes with their descriptions.
pub(super) fn v1() -> OpenApiRouter<Registry> {
    OpenApiRouter::with_openapi(About::openapi())
        .routes(routes!(environments::environments))
        .routes(routes!(environments::environment_detail, environments::revoke_environment))
        .routes(routes!(environments::end_registration))
        .routes(routes!(environments::registrations))
        .routes(routes!(node::connections))
        .routes(routes!(node::status))
        .routes(routes!(node::audit))
        .routes(routes!(node::audit_head))
        .routes(routes!(tokens::list_tokens, tokens::create_token))
        .routes(routes!(tokens::revoke_token))
        .routes(routes!(tokens::rotate_token))
        .routes(routes!(document))
}

/// Returns the document, for clients and their generators.
pub fn openapi() -> Document {
    v1().into_openapi()
}

/// Returns this document.
#[utoipa::path(
    get,
    path = "/v1/openapi.json",
    tag = "relay",
    security(()),
    responses(
        (status = 200, description = "The document.", body = serde_json::Value),
        (status = 500, description = "The document cannot be serialized.", body = ErrorBody),
    ),
)]
async fn document(State(registry): State<Registry>) -> Response {
    let failed = || Failure::new(ErrorCode::Internal, "the OpenAPI document cannot be serialized");
    let text = DOCUMENT.as_ref().ok_or_else(failed);
    response::respond(&registry, Operation::Document, text.map(|text| (Outcome::Ok, shown(text))))
}

/// The serialized document, built once because any client may request it.
static DOCUMENT: LazyLock<Option<Bytes>> =
    LazyLock::new(|| serde_json::to_vec(&openapi()).ok().map(Bytes::from));

fn shown(text: &Bytes) -> Response {
    let json = HeaderValue::from_static("application/json");
    ([(CONTENT_TYPE, json)], text.clone()).into_response()
}

#[cfg(test)]
mod tests;
