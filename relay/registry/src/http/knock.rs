//! Who asks: by a bearer token, or by a proof that it holds a key.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::proof::{Call, InvalidProof, PROOF_HEADER};

use super::error::Failure;
use super::peer::Source;
use crate::model::{Caller, Role};
use crate::service::Registry;
use crate::service::auth::AuthError;
use crate::service::proofs::{ProofError, Proven};

/// Whoever asks for an executor's call.
pub(super) enum Knock {
    /// The bearer of a token.
    Bearer(Caller),
    /// The holder of a key; its body is still to be compared.
    Key(Box<Proven>),
}

impl Knock {
    pub(super) async fn new(
        registry: &Registry,
        call: Call,
        source: Source,
        headers: &HeaderMap,
    ) -> Result<Self, Failure> {
        let Some(proof) = headers.get(PROOF_HEADER) else {
            return Ok(Self::Bearer(caller(registry, source, headers).await?));
        };
        let proof = proof.to_str().map_err(|_| ProofError::from(InvalidProof))?;
        let bearer = match bearer(headers) {
            Err(AuthError::Missing) => None,
            bearer => Some(bearer?),
        };
        Ok(Self::Key(Box::new(registry.prove(call, proof, bearer, source.0).await?)))
    }

    /// Checks that it may be the environment's executor.
    pub(super) fn may(&self, environment: &EnvironmentId) -> Result<(), Failure> {
        match self {
            Knock::Bearer(caller) => Ok(caller.may(Role::Executor, environment)?),
            Knock::Key(proven) => Ok(proven.may(environment)?),
        }
    }

    /// Who it is, now that the body is here.
    pub(super) async fn settle(self, registry: &Registry, body: &[u8]) -> Result<Caller, Failure> {
        match self {
            Knock::Bearer(caller) => Ok(caller),
            Knock::Key(proven) => Ok(registry.settle(*proven, body).await?),
        }
    }
}

/// The bearer of a token, for all other calls.
pub(super) async fn caller(
    registry: &Registry,
    source: Source,
    headers: &HeaderMap,
) -> Result<Caller, Failure> {
    Ok(registry.authenticate(bearer(headers)?, source.0).await?)
}

fn bearer(headers: &HeaderMap) -> Result<&str, AuthError> {
    let value = headers.get(AUTHORIZATION).ok_or(AuthError::Missing)?;
    let text = value.to_str().map_err(|_| AuthError::Unknown)?;
    match text.split_once(' ') {
        Some((scheme, bearer)) if scheme.eq_ignore_ascii_case("bearer") => Ok(bearer.trim()),
        _ => Err(AuthError::Missing),
    }
}
