//! Who asks as an executor: by a bearer token, or by a proof that it holds a key.

use rendez_proto::ids::EnvironmentId;
use rendez_proto::proof::{Call, InvalidProof, PROOF_HEADER};

use super::ask::Ask;
use super::error::Failure;
use crate::model::{Caller, Role};
use crate::registry::executor_keys::{ProofError, Proven};
use crate::registry::tokens::AuthError;

/// Whoever asks for an executor's call.
pub(super) enum Knock {
    /// The bearer of a token.
    Bearer(Caller),
    /// The holder of a key; its body is still to be compared.
    Key(Box<Proven>),
}

impl Knock {
    pub(super) async fn new(ask: &Ask, call: Call) -> Result<Self, Failure> {
        let Some(proof) = ask.headers.get(PROOF_HEADER) else {
            return Ok(Self::Bearer(ask.caller().await?));
        };
        let proof = proof.to_str().map_err(|_| ProofError::from(InvalidProof))?;
        let bearer = match ask.bearer() {
            Err(AuthError::Missing) => None,
            bearer => Some(bearer?),
        };
        Ok(Self::Key(Box::new(
            ask.registry.executor_keys().prove(call, proof, bearer, ask.source, ask.retry).await?,
        )))
    }

    /// Checks that it may be the environment's executor.
    pub(super) fn may(&self, environment: &EnvironmentId) -> Result<(), Failure> {
        match self {
            Knock::Bearer(caller) => Ok(caller.may(Role::Executor, environment)?),
            Knock::Key(proven) => Ok(proven.may(environment)?),
        }
    }

    /// Who it is, now that the body is here.
    pub(super) async fn settle(self, ask: &Ask, body: &[u8]) -> Result<Caller, Failure> {
        match self {
            Knock::Bearer(caller) => Ok(caller),
            Knock::Key(proven) => {
                Ok(ask.registry.executor_keys().settle(*proven, body, ask.retry).await?)
            }
        }
    }
}
