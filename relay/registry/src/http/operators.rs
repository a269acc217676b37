//! The relay as a whole, for administrators: what is open, and the audit log.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::response::Response;
use rendez_proto::audit::{AuditPage, Head};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::error::ErrorCode;
use rendez_proto::registry::status::ConnectionCursor;
use rendez_proto::registry::status::{ConnectionList, RelayStatus};
use serde::Deserialize;

use super::ask::Ask;
use super::error::Failure;
use super::params::{Page, after};
use super::refusals::Refusals;
use super::reply::ok;
use crate::stats::Operation;

/// The relay as a whole.
#[utoipa::path(
    get,
    path = "/v1/status",
    tag = "relay",
    responses((status = 200, description = "The relay.", body = RelayStatus), Refusals),
)]
pub(super) async fn status(ask: Ask) -> Response {
    let work = async {
        ask.admin().await?;
        Ok(ask.registry.node().status().await?)
    };
    ask.answer(Operation::Status, work.await.map(ok))
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
pub(super) async fn connections(ask: Ask, which: Result<Query<Which>, QueryRejection>) -> Response {
    let work = async {
        ask.admin().await?;
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
        Ok(ask.registry.node().connections(environment.as_ref(), after.as_ref()).await)
    };
    ask.answer(Operation::Status, work.await.map(ok))
}

/// The audit log, ordered by number.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "audit",
    params(("after" = Option<u64>, Query, description = "The last number of the page before.")),
    responses((status = 200, description = "A page of it.", body = AuditPage), Refusals),
)]
pub(super) async fn audit(ask: Ask, page: Page) -> Response {
    let work = async {
        ask.admin().await?;
        let after = after::<u64>(page)?.unwrap_or(0);
        ask.registry.audit().flush().await?;
        Ok(ask.registry.audit().page(after).await?)
    };
    ask.answer(Operation::Audit, work.await.map(ok))
}

/// The end of the audit log.
#[utoipa::path(
    get,
    path = "/v1/audit/head",
    tag = "audit",
    responses((status = 200, description = "Its last row.", body = Head), Refusals),
)]
pub(super) async fn audit_head(ask: Ask) -> Response {
    let work = async {
        ask.admin().await?;
        ask.registry.audit().flush().await?;
        Ok(ask.registry.audit().head().await?)
    };
    ask.answer(Operation::Audit, work.await.map(ok))
}
