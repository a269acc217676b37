//! Environments: who may be reached, who was, and an end to it.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::Response;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::environments::{EnvironmentDetail, EnvironmentList};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};
use rendez_proto::registry::status::RegistrationList;
use serde::Deserialize;

use super::ask::Ask;
use super::error::Failure;
use super::params::{Page, PathParam, after, environment};
use super::refusals::Refusals;
use super::reply::{done, ok};
use crate::model::Role;
use crate::stats::Operation;

/// The environments that the token covers, ordered by id.
#[utoipa::path(
    get,
    path = "/v1/environments",
    tag = "environments",
    params(("after" = Option<String>, Query, description = "The last id of the page before.")),
    responses((status = 200, description = "A page of them.", body = EnvironmentList), Refusals),
)]
pub(super) async fn environments(ask: Ask, page: Page) -> Response {
    let work = async {
        let caller = ask.caller().await?;
        let after = after::<EnvironmentId>(page)?;
        Ok(ask.registry.environments().list(&caller, after.as_ref()).await?)
    };
    ask.answer(Operation::Environments, work.await.map(ok))
}

/// How to look at one environment.
#[derive(Debug, Deserialize)]
pub(super) struct Look {
    #[serde(default)]
    probe: bool,
}

/// All that is known about one environment. It need not exist.
#[utoipa::path(
    get,
    path = "/v1/environments/{id}",
    tag = "environments",
    params(
        ("id" = String, Path, description = "The environment."),
        ("probe" = Option<bool>, Query, description = "Whether to ping its executor first."),
    ),
    responses((status = 200, description = "The environment.", body = EnvironmentDetail), Refusals),
)]
pub(super) async fn environment_detail(
    ask: Ask,
    path: PathParam,
    look: Result<Query<Look>, QueryRejection>,
) -> Response {
    let work = async {
        let caller = ask.caller().await?;
        let environment = environment(path)?;
        let invalid = || Failure::new(ErrorCode::InvalidRequest, "`probe` is true or false");
        let Query(look) = look.map_err(|_| invalid())?;
        Ok(ask.registry.environments().get(&caller, &environment, look.probe).await?)
    };
    ask.answer(Operation::Environments, work.await.map(ok))
}

/// The current registration of each environment, ordered by environment.
#[utoipa::path(
    get,
    path = "/v1/registrations",
    tag = "environments",
    params(("after" = Option<String>, Query, description = "The last environment of the page before.")),
    responses((status = 200, description = "A page of them.", body = RegistrationList), Refusals),
)]
pub(super) async fn registrations(ask: Ask, page: Page) -> Response {
    let work = async {
        ask.admin().await?;
        let after = after::<EnvironmentId>(page)?;
        Ok(ask.registry.registrations().list(after.as_ref()).await?)
    };
    ask.answer(Operation::Environments, work.await.map(ok))
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
pub(super) async fn revoke_environment(ask: Ask, path: PathParam) -> Response {
    let work = async {
        let caller = ask.caller().await?;
        let environment = environment(path)?;
        caller.may(Role::Admin, &environment)?;
        let unknown = || Failure::new(ErrorCode::NotFound, "nobody registered this environment");
        let found = ask.registry.environments().revoke(Some(&caller.subject), &environment).await?;
        if found { Ok(()) } else { Err(unknown()) }
    };
    ask.answer(Operation::Environments, work.await.map(done))
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
pub(super) async fn end_registration(ask: Ask, path: PathParam) -> Response {
    let work = async {
        let caller = ask.caller().await?;
        let environment = environment(path)?;
        caller.may(Role::Admin, &environment)?;
        let unknown = || Failure::new(ErrorCode::NotFound, "the environment has no registration");
        let ended = ask.registry.registrations().end(Some(&caller.subject), &environment).await?;
        ended.map(drop).ok_or_else(unknown)
    };
    ask.answer(Operation::Environments, work.await.map(done))
}
