//! Listing and revoking environments.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::Response;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::environments::{EnvironmentDetail, EnvironmentList};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};
use rendez_proto::registry::status::RegistrationList;
use serde::Deserialize;

use super::error::Failure;
use super::error_responses::ErrorResponses;
use super::params::{Page, PathParam, after, environment};
use super::request_context::RequestContext;
use super::response::{done, ok};
use crate::model::Role;
use crate::stats::Operation;

/// Lists the environments that the token covers, ordered by id.
#[utoipa::path(
    get,
    path = "/v1/environments",
    tag = "environments",
    params(("after" = Option<String>, Query, description = "The last id of the previous page.")),
    responses((status = 200, description = "One page of them.", body = EnvironmentList), ErrorResponses),
)]
pub(super) async fn environments(ctx: RequestContext, page: Page) -> Response {
    let work = async {
        let caller = ctx.caller().await?;
        let after = after::<EnvironmentId>(page)?;
        Ok(ctx.registry.environments().list(&caller, after.as_ref()).await?)
    };
    ctx.respond(Operation::Environments, work.await.map(ok))
}

/// The query of [`environment_detail`].
#[derive(Debug, Deserialize)]
pub(super) struct DetailQuery {
    #[serde(default)]
    probe: bool,
}

/// Returns the state of one environment. It need not exist.
#[utoipa::path(
    get,
    path = "/v1/environments/{id}",
    tag = "environments",
    params(
        ("id" = String, Path, description = "The environment."),
        ("probe" = Option<bool>, Query, description = "Whether to ping its executor first."),
    ),
    responses((status = 200, description = "The environment.", body = EnvironmentDetail), ErrorResponses),
)]
pub(super) async fn environment_detail(
    ctx: RequestContext,
    path: PathParam,
    look: Result<Query<DetailQuery>, QueryRejection>,
) -> Response {
    let work = async {
        let caller = ctx.caller().await?;
        let environment = environment(path)?;
        let invalid = || Failure::new(ErrorCode::InvalidRequest, "`probe` is true or false");
        let Query(look) = look.map_err(|_| invalid())?;
        Ok(ctx.registry.environments().get(&caller, &environment, look.probe).await?)
    };
    ctx.respond(Operation::Environments, work.await.map(ok))
}

/// Lists the current registration of each environment, ordered by environment.
#[utoipa::path(
    get,
    path = "/v1/registrations",
    tag = "environments",
    params(("after" = Option<String>, Query, description = "The last environment of the previous page.")),
    responses((status = 200, description = "One page of them.", body = RegistrationList), ErrorResponses),
)]
pub(super) async fn registrations(ctx: RequestContext, page: Page) -> Response {
    let work = async {
        ctx.admin().await?;
        let after = after::<EnvironmentId>(page)?;
        Ok(ctx.registry.registrations().list(after.as_ref()).await?)
    };
    ctx.respond(Operation::Environments, work.await.map(ok))
}

/// Revokes an environment: ends its registration, closes its websockets and
/// refuses it to all existing credentials.
#[utoipa::path(
    delete,
    path = "/v1/environments/{id}",
    tag = "environments",
    params(("id" = String, Path, description = "The environment.")),
    responses(
        (status = 204, description = "Done."),
        (status = 404, description = "It does not exist.", body = ErrorBody),
        ErrorResponses,
    ),
)]
pub(super) async fn revoke_environment(ctx: RequestContext, path: PathParam) -> Response {
    let work = async {
        let caller = ctx.caller().await?;
        let environment = environment(path)?;
        caller.authorize(Role::Admin, &environment)?;
        let unknown =
            || Failure::new(ErrorCode::NotFound, "no executor ever registered in this environment");
        let found = ctx.registry.environments().revoke(Some(&caller.subject), &environment).await?;
        if found { Ok(()) } else { Err(unknown()) }
    };
    ctx.respond(Operation::Environments, work.await.map(done))
}

/// Ends the registration of an environment and closes its websockets.
#[utoipa::path(
    delete,
    path = "/v1/environments/{id}/registration",
    tag = "environments",
    params(("id" = String, Path, description = "The environment.")),
    responses(
        (status = 204, description = "Done."),
        (status = 404, description = "It does not exist.", body = ErrorBody),
        ErrorResponses,
    ),
)]
pub(super) async fn end_registration(ctx: RequestContext, path: PathParam) -> Response {
    let work = async {
        let caller = ctx.caller().await?;
        let environment = environment(path)?;
        caller.authorize(Role::Admin, &environment)?;
        let unknown = || Failure::new(ErrorCode::NotFound, "the environment has no registration");
        let ended = ctx.registry.registrations().end(Some(&caller.subject), &environment).await?;
        ended.map(drop).ok_or_else(unknown)
    };
    ctx.respond(Operation::Environments, work.await.map(done))
}
