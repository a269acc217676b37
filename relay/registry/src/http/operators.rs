//! Routes for operators: environments in detail, what is open, the audit log.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use rendez_proto::audit::{AuditPage, Head};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::environments::EnvironmentDetail;
use rendez_proto::registry::error::ErrorCode;
use rendez_proto::registry::status::{ConnectionList, RegistrationList, RelayStatus};
use serde::Deserialize;

use super::error::Failure;
use super::knock::caller;
use super::peer::Source;
use super::refusals::Refusals;
use super::routes::{Page, PathParam, after, answer, environment, ok};
use crate::model::Role;
use crate::seam::ConnectionCursor;
use crate::service::Registry;
use crate::stats::Operation;

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
    State(registry): State<Registry>,
    path: PathParam,
    look: Result<Query<Look>, QueryRejection>,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        let caller = caller(&registry, source, &headers).await?;
        let environment = environment(path)?;
        let invalid = || Failure::new(ErrorCode::InvalidRequest, "`probe` is true or false");
        let Query(look) = look.map_err(|_| invalid())?;
        Ok(registry.environment(&caller, &environment, look.probe).await?)
    };
    answer(&registry, Operation::Environments, work.await.map(ok))
}

/// The relay as a whole.
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "relay",
    responses((status = 200, description = "The relay.", body = RelayStatus), Refusals),
)]
pub(super) async fn status(
    State(registry): State<Registry>,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        caller(&registry, source, &headers).await?.must_be(&[Role::Admin])?;
        Ok(registry.status().await?)
    };
    answer(&registry, Operation::Status, work.await.map(ok))
}

/// Which websockets to list.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    environment: Option<EnvironmentId>,
    after: Option<String>,
}

/// The websockets that are open, ordered by environment.
#[utoipa::path(
    get,
    path = "/v1/connections",
    tag = "relay",
    params(
        ("environment" = Option<String>, Query, description = "Only those of this environment."),
        ("after" = Option<String>, Query, description = "The last id of the page before."),
    ),
    responses((status = 200, description = "A page of them.", body = ConnectionList), Refusals),
)]
pub(super) async fn connections(
    State(registry): State<Registry>,
    which: Result<Query<Which>, QueryRejection>,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        caller(&registry, source, &headers).await?.must_be(&[Role::Admin])?;
        let invalid = |what: &str| Failure::new(ErrorCode::InvalidRequest, what);
        let Query(which) = which.map_err(|_| invalid("`environment` is not an id"))?;
        let (environment, after) = (which.environment, which.after);
        let after = after.map(|after| after.parse::<ConnectionCursor>()).transpose();
        let after = after.map_err(|_| invalid("`after` is not the id of a connection"))?;
        let elsewhere = |after: &ConnectionCursor| {
            environment.as_ref().is_some_and(|wanted| *wanted != after.environment)
        };
        if after.as_ref().is_some_and(elsewhere) {
            return Err(invalid("`after` is in another environment"));
        }
        Ok(registry.connections(environment.as_ref(), after.as_ref()).await)
    };
    answer(&registry, Operation::Status, work.await.map(ok))
}

/// The current registration of each environment, ordered by environment.
#[utoipa::path(
    get,
    path = "/v1/registrations",
    tag = "environments",
    params(("after" = Option<String>, Query, description = "The last environment of the page before.")),
    responses((status = 200, description = "A page of them.", body = RegistrationList), Refusals),
)]
pub(super) async fn registrations(
    State(registry): State<Registry>,
    page: Page,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        caller(&registry, source, &headers).await?.must_be(&[Role::Admin])?;
        let after = after::<EnvironmentId>(page)?;
        Ok(registry.registrations(after.as_ref()).await?)
    };
    answer(&registry, Operation::Environments, work.await.map(ok))
}

/// The audit log, ordered by number.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "audit",
    params(("after" = Option<u64>, Query, description = "The last number of the page before.")),
    responses((status = 200, description = "A page of it.", body = AuditPage), Refusals),
)]
pub(super) async fn audit(
    State(registry): State<Registry>,
    page: Page,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        caller(&registry, source, &headers).await?.must_be(&[Role::Admin])?;
        let after = after::<u64>(page)?.unwrap_or(0);
        registry.audit().flush().await?;
        Ok(registry.audit().page(after).await?)
    };
    answer(&registry, Operation::Audit, work.await.map(ok))
}

/// The end of the audit log.
#[utoipa::path(
    get,
    path = "/v1/audit/head",
    tag = "audit",
    responses((status = 200, description = "Its last row.", body = Head), Refusals),
)]
pub(super) async fn audit_head(
    State(registry): State<Registry>,
    source: Source,
    headers: HeaderMap,
) -> Response {
    let work = async {
        caller(&registry, source, &headers).await?.must_be(&[Role::Admin])?;
        registry.audit().flush().await?;
        Ok(registry.audit().head().await?)
    };
    answer(&registry, Operation::Audit, work.await.map(ok))
}
