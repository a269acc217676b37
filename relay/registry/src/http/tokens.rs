//! Tokens, for administrators.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rendez_proto::registry::admin::{CreateToken, RotateToken, TokenCreated, TokenList};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};

use super::body;
use super::error::Failure;
use super::error_responses::{BodyErrorResponses, ErrorResponses};
use super::params::{Page, PathParam, after, text};
use super::request_context::RequestContext;
use super::response::{done, json, ok};
use crate::model::{Subject, TokenId};
use crate::stats::{Operation, Outcome};

/// Lists all tokens, without their secrets, ordered by id.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    params(("after" = Option<String>, Query, description = "The last id of the previous page.")),
    responses((status = 200, description = "One page of them.", body = TokenList), ErrorResponses),
)]
pub(super) async fn list_tokens(ctx: RequestContext, page: Page) -> Response {
    let work = async {
        ctx.admin().await?;
        let after = after::<TokenId>(page)?;
        Ok(ctx.registry.tokens().list(after.as_ref()).await?)
    };
    ctx.respond(Operation::Tokens, work.await.map(ok))
}

/// Creates a token. Only this response contains its secret.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    tag = "tokens",
    request_body = CreateToken,
    responses(
        (status = 201, description = "The token.", body = TokenCreated),
        BodyErrorResponses,
        ErrorResponses,
    ),
)]
pub(super) async fn create_token(ctx: RequestContext, body: Body) -> Response {
    let work = async {
        let admin = ctx.admin().await?;
        let request = CreateToken::parse(&body::read(body).await?)?;
        Ok(ctx.registry.tokens().create(Some(&admin.subject), &request).await?)
    };
    let created = |reply| (Outcome::Ok, (StatusCode::CREATED, json(&reply)).into_response());
    ctx.respond(Operation::Tokens, work.await.map(created))
}

/// Gives a token a new secret. Only this response contains it.
#[utoipa::path(
    post,
    path = "/v1/tokens/{id}/rotate",
    tag = "tokens",
    params(("id" = String, Path, description = "The token's id.")),
    request_body = RotateToken,
    responses(
        (status = 200, description = "The token.", body = TokenCreated),
        (status = 404, description = "The token does not exist.", body = ErrorBody),
        BodyErrorResponses,
        ErrorResponses,
    ),
)]
pub(super) async fn rotate_token(ctx: RequestContext, path: PathParam, body: Body) -> Response {
    let work = async {
        let admin = ctx.admin().await?;
        let id = text(path)?.parse::<TokenId>().map_err(|_| no_such_token())?;
        let request = RotateToken::parse(&body::read(body).await?)?;
        Ok(ctx.registry.tokens().rotate(Some(&admin.subject), &id, &request).await?)
    };
    ctx.respond(Operation::Tokens, work.await.map(ok))
}

/// Revokes a token and closes all websockets that it opened.
#[utoipa::path(
    delete,
    path = "/v1/tokens/{id}",
    tag = "tokens",
    params(("id" = String, Path, description = "The token's id.")),
    responses(
        (status = 204, description = "Done."),
        (status = 404, description = "It does not exist.", body = ErrorBody),
        ErrorResponses,
    ),
)]
pub(super) async fn revoke_token(ctx: RequestContext, path: PathParam) -> Response {
    let work = async {
        let admin = ctx.admin().await?;
        let subject = text(path)?.parse::<Subject>().map_err(|_| no_such_token())?;
        if ctx.registry.tokens().revoke(Some(&admin.subject), &subject).await? {
            Ok(())
        } else {
            Err(no_such_token())
        }
    };
    ctx.respond(Operation::Tokens, work.await.map(done))
}

fn no_such_token() -> Failure {
    Failure::new(ErrorCode::NotFound, "there is no such token")
}
