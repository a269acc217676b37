//! One function per route.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONNECTION, HOST};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use rendez_proto::ids::{EnvironmentId, StreamId};
use rendez_proto::proof::Call;
use rendez_proto::registry::admin::{CreateToken, RotateToken, TokenCreated, TokenList};
use rendez_proto::registry::environments::EnvironmentList;
use rendez_proto::registry::error::{ErrorBody, ErrorCode};
use rendez_proto::registry::{
    ConnectRequest, RegisterRequest, STREAM_ID_HEADER, ValidateReply, ValidateRequest,
};
use serde::{Deserialize, Serialize};

use super::body;
use super::error::Failure;
use super::knock::{Knock, caller};
use super::peer::Source;
use super::refusals::{BodyRefusals, Refusals};
use crate::model::{Role, Subject, TokenId};
use crate::public_url::WebsocketBase;
use crate::service::Registry;
use crate::service::registrations::Verdict;
use crate::stats::{Operation, Outcome};

pub(super) type PathParam = Result<Path<String>, PathRejection>;
pub(super) type Page = Result<Query<After>, QueryRejection>;

/// Where a page of a list starts.
#[derive(Debug, Deserialize)]
pub(super) struct After {
    after: Option<String>,
}

pub(super) async fn register(
    State(registry): State<Registry>,
    path: PathParam,
    source: Source,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let knock = Knock::new(&registry, Call::Register, source, &headers).await?;
        let environment = environment(path)?;
        knock.may(&environment)?;
        let body = body::read(body).await?;
        let request = RegisterRequest::parse(&body)?;
        let base = base(&registry, &uri, &headers)?;
        let caller = knock.settle(&registry, &body).await?;
        Ok(registry.register(&caller, &environment, &request, &base).await?)
    };
    answer(&registry, Operation::Register, work.await.map(ok))
}

pub(super) async fn connect(
    State(registry): State<Registry>,
    path: PathParam,
    uri: Uri,
    source: Source,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        let environment = environment(path)?;
        caller.may(Role::Orchestrator, &environment)?;
        let request = ConnectRequest::parse(&body::read(body).await?)?;
        let base = base(&registry, &uri, &headers)?;
        Ok(registry.connect(&caller, &environment, &request, &base).await?)
    };
    let mut response = answer(&registry, Operation::Connect, work.await.map(ok));
    // A stock harness whose relay restarts asks again at once, over the pooled
    // connection if there is one; that this one is dead ends its recovery.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(super) async fn validate(
    State(registry): State<Registry>,
    path: PathParam,
    source: Source,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let knock = Knock::new(&registry, Call::Validate, source, &headers).await?;
        let environment = environment(path)?;
        knock.may(&environment)?;
        let body = body::read(body).await?;
        let request = ValidateRequest::parse(&body)?;
        let caller = knock.settle(&registry, &body).await?;
        let stream = stream(&headers);
        Ok(registry.validate(&caller, &environment, &request, stream.as_ref()).await?)
    };
    let result = work.await.map(|verdict| match verdict {
        Verdict::Valid => (Outcome::Ok, json(&ValidateReply { valid: true })),
        Verdict::Denied(_) => (Outcome::Denied, json(&ValidateReply { valid: false })),
    });
    answer(&registry, Operation::Validate, result)
}

/// For which stream, as executors say it. What is no UUID is ignored: it goes to
/// the audit log and decides nothing.
fn stream(headers: &HeaderMap) -> Option<StreamId> {
    let text = headers.get(STREAM_ID_HEADER)?.to_str().ok()?;
    text.parse().ok().filter(StreamId::is_uuid)
}

/// The environments that the token covers, ordered by id.
#[utoipa::path(
    get,
    path = "/v1/environments",
    tag = "environments",
    params(("after" = Option<String>, Query, description = "The last id of the page before.")),
    responses((status = 200, description = "A page of them.", body = EnvironmentList), Refusals),
)]
pub(super) async fn environments(
    State(registry): State<Registry>,
    page: Page,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        let after = after::<EnvironmentId>(page)?;
        Ok(registry.environments(&caller, after.as_ref()).await?)
    };
    answer(&registry, Operation::Environments, work.await.map(ok))
}

/// All tokens, without their secrets, ordered by id.
#[utoipa::path(
    get,
    path = "/v1/tokens",
    tag = "tokens",
    params(("after" = Option<String>, Query, description = "The last id of the page before.")),
    responses((status = 200, description = "A page of them.", body = TokenList), Refusals),
)]
pub(super) async fn list_tokens(
    State(registry): State<Registry>,
    page: Page,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        caller(&registry, source, &headers).await?.must_be(&[Role::Admin])?;
        let after = after::<TokenId>(page)?;
        Ok(registry.list_tokens(after.as_ref()).await?)
    };
    answer(&registry, Operation::Tokens, work.await.map(ok))
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
pub(super) async fn create_token(
    State(registry): State<Registry>,
    source: Source,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        caller.must_be(&[Role::Admin])?;
        let request = CreateToken::parse(&body::read(body).await?)?;
        Ok(registry.create_token_as(Some(&caller.subject), &request).await?)
    };
    let created = |reply| (Outcome::Ok, (StatusCode::CREATED, json(&reply)).into_response());
    answer(&registry, Operation::Tokens, work.await.map(created))
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
pub(super) async fn rotate_token(
    State(registry): State<Registry>,
    path: PathParam,
    source: Source,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        caller.must_be(&[Role::Admin])?;
        let id = text(path)?.parse::<TokenId>().map_err(|_| no_such_token())?;
        let request = RotateToken::parse(&body::read(body).await?)?;
        Ok(registry.rotate_token(Some(&caller.subject), &id, &request).await?)
    };
    answer(&registry, Operation::Tokens, work.await.map(ok))
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
pub(super) async fn revoke_token(
    State(registry): State<Registry>,
    path: PathParam,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        caller.must_be(&[Role::Admin])?;
        let subject = text(path)?.parse::<Subject>().map_err(|_| no_such_token())?;
        if registry.revoke(Some(&caller.subject), &subject).await? {
            Ok(())
        } else {
            Err(no_such_token())
        }
    };
    answer(&registry, Operation::Tokens, work.await.map(done))
}

/// Ends an environment's registration and websockets, for all tokens of now.
#[utoipa::path(
    delete,
    path = "/v1/environments/{id}",
    tag = "environments",
    params(("id" = String, Path, description = "The environment.")),
    responses(
        (status = 204, description = "It is done."),
        (status = 404, description = "There is none.", body = ErrorBody),
        Refusals,
    ),
)]
pub(super) async fn revoke_environment(
    State(registry): State<Registry>,
    path: PathParam,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        let environment = environment(path)?;
        caller.may(Role::Admin, &environment)?;
        let unknown = || Failure::new(ErrorCode::NotFound, "nobody registered this environment");
        let found = registry.revoke_environment(Some(&caller.subject), &environment).await?;
        if found { Ok(()) } else { Err(unknown()) }
    };
    answer(&registry, Operation::Environments, work.await.map(done))
}

/// Ends an environment's registration and websockets.
#[utoipa::path(
    delete,
    path = "/v1/environments/{id}/registration",
    tag = "environments",
    params(("id" = String, Path, description = "The environment.")),
    responses(
        (status = 204, description = "It is done."),
        (status = 404, description = "There is none.", body = ErrorBody),
        Refusals,
    ),
)]
pub(super) async fn end_registration(
    State(registry): State<Registry>,
    path: PathParam,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        let environment = environment(path)?;
        caller.may(Role::Admin, &environment)?;
        let unknown = || Failure::new(ErrorCode::NotFound, "the environment has no registration");
        let ended = registry.end_registration(Some(&caller.subject), &environment).await?;
        ended.map(drop).ok_or_else(unknown)
    };
    answer(&registry, Operation::Environments, work.await.map(done))
}

pub(super) async fn not_found(State(registry): State<Registry>) -> Response {
    let failure = Failure::new(ErrorCode::NotFound, "there is nothing at this path");
    answer(&registry, Operation::UnknownRoute, Err(failure))
}

pub(super) async fn method_not_allowed(State(registry): State<Registry>) -> Response {
    let failure = Failure::new(ErrorCode::MethodNotAllowed, "this path has no such method");
    answer(&registry, Operation::UnknownRoute, Err(failure))
}

// ---- helpers -------------------------------------------------------------

pub(super) fn answer(
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

fn no_such_token() -> Failure {
    Failure::new(ErrorCode::NotFound, "there is no such token")
}

fn done((): ()) -> (Outcome, Response) {
    (Outcome::Ok, StatusCode::NO_CONTENT.into_response())
}

pub(super) fn ok<T: Serialize>(reply: T) -> (Outcome, Response) {
    (Outcome::Ok, json(&reply))
}

/// Replies carry secrets or change at any time: nobody may keep them.
fn json<T: Serialize>(reply: &T) -> Response {
    let mut response = Json(reply).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn text(path: PathParam) -> Result<String, Failure> {
    match path {
        Ok(Path(text)) => Ok(text),
        Err(_) => Err(Failure::new(ErrorCode::InvalidRequest, "the path is not valid UTF-8")),
    }
}

pub(super) fn environment(path: PathParam) -> Result<EnvironmentId, Failure> {
    text(path)?.parse().map_err(|error: rendez_proto::ids::InvalidId| {
        Failure::new(ErrorCode::InvalidRequest, error.to_string())
    })
}

pub(super) fn after<T: std::str::FromStr>(page: Page) -> Result<Option<T>, Failure> {
    let invalid = || Failure::new(ErrorCode::InvalidRequest, "`after` is not an id");
    let Query(page) = page.map_err(|_| invalid())?;
    page.after.map(|after| after.parse().map_err(|_| invalid())).transpose()
}

fn base(registry: &Registry, uri: &Uri, headers: &HeaderMap) -> Result<WebsocketBase, Failure> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(|authority| authority.as_str()));
    Ok(registry.public_url().base(host)?)
}
