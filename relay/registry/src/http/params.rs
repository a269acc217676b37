//! Parameters in a request's path and query.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use rendez_proto::ids::{EnvironmentId, InvalidId};
use rendez_proto::registry::error::ErrorCode;
use serde::Deserialize;

use super::error::Failure;

pub(super) type PathParam = Result<Path<String>, PathRejection>;
pub(super) type Page = Result<Query<After>, QueryRejection>;

/// The start of a page.
#[derive(Debug, Deserialize)]
pub(super) struct After {
    after: Option<String>,
}

pub(super) fn text(path: PathParam) -> Result<String, Failure> {
    match path {
        Ok(Path(text)) => Ok(text),
        Err(_) => Err(Failure::new(ErrorCode::InvalidRequest, "the path is not valid UTF-8")),
    }
}

pub(super) fn environment(path: PathParam) -> Result<EnvironmentId, Failure> {
    text(path)?
        .parse()
        .map_err(|error: InvalidId| Failure::new(ErrorCode::InvalidRequest, error.to_string()))
}

pub(super) fn after<T: std::str::FromStr>(page: Page) -> Result<Option<T>, Failure> {
    let invalid = || Failure::new(ErrorCode::InvalidRequest, "`after` is not an id");
    let Query(page) = page.map_err(|_| invalid())?;
    page.after.map(|after| after.parse().map_err(|_| invalid())).transpose()
}
