//! The parts of a request without path parameters and body.

use std::convert::Infallible;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;

use super::error::Failure;
use super::peer::{OnCredential, PeerAddr};
use super::response;
use crate::model::{Caller, Role};
use crate::registry::Registry;
use crate::registry::tokens::AuthError;
use crate::stats::{Operation, Outcome};
use crate::store_retry::StoreRetry;

/// The context that every handler starts from.
pub(super) struct RequestContext {
    pub(super) registry: Registry,
    /// The source address, if it is known.
    pub(super) source: Option<IpAddr>,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) on_credential: Option<OnCredential>,
    /// The retries of the store for this request.
    pub(super) retry: StoreRetry,
}

impl FromRequestParts<Registry> for RequestContext {
    type Rejection = Infallible;
    async fn from_request_parts(
        parts: &mut Parts,
        registry: &Registry,
    ) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<PeerAddr>().copied();
        Ok(Self {
            registry: registry.clone(),
            source: registry.source(peer, &parts.headers),
            uri: parts.uri.clone(),
            headers: parts.headers.clone(),
            on_credential: parts.extensions.get().cloned(),
            retry: StoreRetry::NEVER,
        })
    }
}

impl RequestContext {
    /// Authenticates the bearer token.
    pub(super) async fn caller(&self) -> Result<Caller, Failure> {
        let tokens = self.registry.tokens();
        let caller = tokens.authenticate(self.bearer()?, self.source, self.retry).await?;
        self.credential_shown();
        Ok(caller)
    }

    /// The request has shown a valid token or proof.
    pub(super) fn credential_shown(&self) {
        if let Some(OnCredential(tell)) = &self.on_credential {
            tell();
        }
    }

    /// Authenticates the bearer token of an administrator.
    pub(super) async fn admin(&self) -> Result<Caller, Failure> {
        let caller = self.caller().await?;
        caller.require_role(&[Role::Admin])?;
        Ok(caller)
    }

    /// Returns the bearer token without parsing it.
    pub(super) fn bearer(&self) -> Result<&str, AuthError> {
        let value = self.headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
        let text = value.to_str().map_err(|_| AuthError::Unknown)?;
        match text.split_once(' ') {
            Some((scheme, bearer)) if scheme.eq_ignore_ascii_case("bearer") => Ok(bearer.trim()),
            _ => Err(AuthError::Missing),
        }
    }

    /// Counts the result and converts it to a response.
    pub(super) fn respond(
        &self,
        operation: Operation,
        result: Result<(Outcome, Response), Failure>,
    ) -> Response {
        response::respond(&self.registry, operation, result)
    }
}
