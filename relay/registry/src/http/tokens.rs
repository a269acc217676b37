//! Tokens, for administrators.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rendez_proto::registry::admin::{CreateToken, RotateToken, TokenCreated, TokenList};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};

use super::ask::Ask;
use super::body;
use super::error::Failure;
use super::params::{Page, PathParam, after, text};
use super::refusals::{BodyRefusals, Refusals};
use super::reply::{done, json, ok};
use crate::model::{Subject, TokenId};
use crate::stats::{Operation, Outcome};

/// All tokens, without their secrets, ordered by id.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    params(("after" = Option<String>, Query, description = "The last id of the page before.")),
    responses((status = 200, description = "A page of them.", body = TokenList), Refusals),
)]
pub(super) async fn list_tokens(ask: Ask, page: Page) -> Response {
    let work = async {
        ask.admin().await?;
        let after = after::<TokenId>(page)?;
        Ok(ask.registry.tokens().list(after.as_ref()).await?)
    };
    ask.answer(Operation::Tokens, work.await.map(ok))
}

/// Makes a token and shows it, this once.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    tag = "tokens",
    request_body = CreateToken,
    responses(
        (status = 201, description = "The token.", body = TokenCreated),
        BodyRefusals,
        Refusals,
    ),
)]
pub(super) async fn create_token(ask: Ask, body: Body) -> Response {
    let work = async {
        let admin = ask.admin().await?;
        let request = CreateToken::parse(&body::read(body).await?)?;
        Ok(ask.registry.tokens().create(Some(&admin.subject), &request).await?)
    };
    let created = |reply| (Outcome::Ok, (StatusCode::CREATED, json(&reply)).into_response());
    ask.answer(Operation::Tokens, work.await.map(created))
}

/// Gives a token a new secret and shows it, this once.
#[utoipa::path(
    post,
    path = "/v1/tokens/{id}/rotate",
    tag = "tokens",
    params(("id" = String, Path, description = "The token's id.")),
    request_body = RotateToken,
    responses(
        (status = 200, description = "The token.", body = TokenCreated),
        (status = 404, description = "There is no such token.", body = ErrorBody),
        BodyRefusals,
        Refusals,
    ),
)]
pub(super) async fn rotate_token(ask: Ask, path: PathParam, body: Body) -> Response {
    let work = async {
        let admin = ask.admin().await?;
        let id = text(path)?.parse::<TokenId>().map_err(|_| no_such_token())?;
        let request = RotateToken::parse(&body::read(body).await?)?;
        Ok(ask.registry.tokens().rotate(Some(&admin.subject), &id, &request).await?)
    };
    ask.answer(Operation::Tokens, work.await.map(ok))
}

/// Ends a token, and all websockets that it opened.
#[utoipa::path(
    delete,
    path = "/v1/tokens/{id}",
    tag = "tokens",
    params(("id" = String, Path, description = "The token's id.")),
    responses(
        (status = 204, description = "It is done."),
        (status = 404, description = "There is none.", body = ErrorBody),
        Refusals,
    ),
)]
pub(super) async fn revoke_token(ask: Ask, path: PathParam) -> Response {
    let work = async {
        let admin = ask.admin().await?;
        let subject = text(path)?.parse::<Subject>().map_err(|_| no_such_token())?;
        if ask.registry.tokens().revoke(Some(&admin.subject), &subject).await? {
            Ok(())
        } else {
            Err(no_such_token())
        }
    };
    ask.answer(Operation::Tokens, work.await.map(done))
}

fn no_such_token() -> Failure {
    Failure::new(ErrorCode::NotFound, "there is no such token")
}
