//! Authentication of an executor: by a bearer token, or by a proof that it holds a
//! key.

use rendez_proto::ids::EnvironmentId;
use rendez_proto::proof::{Call, InvalidProof, PROOF_HEADER};

use super::error::Failure;
use super::request_context::RequestContext;
use crate::model::{Caller, Role};
use crate::registry::executor_keys::{ProofError, VerifiedProof};
use crate::registry::tokens::AuthError;

/// The credential of an executor's request.
pub(super) enum ExecutorAuth {
    /// A bearer token.
    Token(Caller),
    /// A proof of a key. The body is not checked yet.
    Proof(Box<VerifiedProof>),
}

impl ExecutorAuth {
    pub(super) async fn new(ctx: &RequestContext, call: Call) -> Result<Self, Failure> {
        let Some(proof) = ctx.headers.get(PROOF_HEADER) else {
            return Ok(Self::Token(ctx.caller().await?));
        };
        let proof = proof.to_str().map_err(|_| ProofError::from(InvalidProof))?;
        let bearer = match ctx.bearer() {
            Err(AuthError::Missing) => None,
            bearer => Some(bearer?),
        };
        let keys = ctx.registry.executor_keys();
        let proven = keys.verify(call, proof, bearer, ctx.source, ctx.retry).await?;
        ctx.credential_shown();
        Ok(Self::Proof(Box::new(proven)))
    }

    /// Checks that the caller may be the environment's executor.
    pub(super) fn authorize(&self, environment: &EnvironmentId) -> Result<(), Failure> {
        match self {
            ExecutorAuth::Token(caller) => Ok(caller.authorize(Role::Executor, environment)?),
            ExecutorAuth::Proof(proven) => Ok(proven.authorize(environment)?),
        }
    }

    /// Checks the body and returns the caller.
    pub(super) async fn finish(self, ctx: &RequestContext, body: &[u8]) -> Result<Caller, Failure> {
        match self {
            ExecutorAuth::Token(caller) => Ok(caller),
            ExecutorAuth::Proof(proven) => {
                Ok(ctx.registry.executor_keys().accept(*proven, body, ctx.retry).await?)
            }
        }
    }
}
