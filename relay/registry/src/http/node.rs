//! The relay node and the audit log, for administrators.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::Response;
use rendez_proto::audit::{AuditPage, Head};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::error::ErrorCode;
use rendez_proto::registry::status::ConnectionCursor;
use rendez_proto::registry::status::{ConnectionList, RelayStatus};
use serde::Deserialize;

use super::error::Failure;
use super::error_responses::ErrorResponses;
use super::params::{Page, after};
use super::request_context::RequestContext;
use super::response::ok;
use crate::stats::Operation;

/// Returns the status of the relay.
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "relay",
    responses((status = 200, description = "The relay.", body = RelayStatus), ErrorResponses),
)]
pub(super) async fn status(ctx: RequestContext) -> Response {
    let work = async {
        ctx.admin().await?;
        Ok(ctx.registry.node().status().await?)
    };
    ctx.respond(Operation::Status, work.await.map(ok))
}

/// The query of [`connections`].
#[derive(Debug, Deserialize)]
pub(super) struct ConnectionsQuery {
    environment: Option<EnvironmentId>,
    after: Option<String>,
}

/// Lists the open websockets, ordered by environment.
#[utoipa::path(
    get,
    path = "/v1/connections",
    tag = "relay",
    params(
        ("environment" = Option<String>, Query, description = "Only those of this environment."),
        ("after" = Option<String>, Query, description = "The last id of the previous page."),
    ),
    responses((status = 200, description = "One page of them.", body = ConnectionList), ErrorResponses),
)]
pub(super) async fn connections(
    ctx: RequestContext,
    which: Result<Query<ConnectionsQuery>, QueryRejection>,
) -> Response {
    let work = async {
        ctx.admin().await?;
        let invalid = |what: &str| Failure::new(ErrorCode::InvalidRequest, what);
        let Query(which) = which.map_err(|_| invalid("`environment` is not an id"))?;
        let (environment, after) = (which.environment, which.after);
        let after = after.map(|after| after.parse::<ConnectionCursor>()).transpose();
        let after = after.map_err(|_| invalid("`after` is not the id of a connection"))?;
        let elsewhere = |after: &ConnectionCursor| {
            environment.as_ref().is_some_and(|wanted| *wanted != after.environment)
        };
        if after.as_ref().is_some_and(elsewhere) {
            return Err(invalid("`after` is the id of a connection in another environment"));
        }
        Ok(ctx.registry.node().connections(environment.as_ref(), after.as_ref()).await)
    };
    ctx.respond(Operation::Status, work.await.map(ok))
}

/// Lists the rows of the audit log, ordered by number.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "audit",
    params(("after" = Option<u64>, Query, description = "The last number of the previous page.")),
    responses((status = 200, description = "One page of it.", body = AuditPage), ErrorResponses),
)]
pub(super) async fn audit(ctx: RequestContext, page: Page) -> Response {
    let work = async {
        ctx.admin().await?;
        let after = after::<u64>(page)?.unwrap_or(0);
        ctx.registry.audit().flush().await?;
        Ok(ctx.registry.audit().page(after).await?)
    };
    ctx.respond(Operation::Audit, work.await.map(ok))
}

/// Returns the end of the audit log.
#[utoipa::path(
    get,
    path = "/v1/audit/head",
    tag = "audit",
    responses((status = 200, description = "The last row.", body = Head), ErrorResponses),
)]
pub(super) async fn audit_head(ctx: RequestContext) -> Response {
    let work = async {
        ctx.admin().await?;
        ctx.registry.audit().flush().await?;
        Ok(ctx.registry.audit().head().await?)
    };
    ctx.respond(Operation::Audit, work.await.map(ok))
}
