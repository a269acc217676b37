//! Executors that authenticate with a key: enrolment and proofs of possession.
//!
//! A request with a proof is checked in two steps. [`ExecutorKeys::verify`] needs
//! only the head of the request, so that the body of a stranger is never read.
//! [`ExecutorKeys::accept`] compares the body with the signed hash, uses up the
//! nonce, and enrols a new key if a join token permits it. Nothing changes before
//! that, so a request that is refused for its body costs nothing.

use std::net::IpAddr;

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::proof::{self, Call, InvalidProof, Proof};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::context::Context;
use super::tokens::{AuthError, Tokens};
use crate::model::{Caller, Credential, Forbidden, Grant, Role, Subject, Token, TokenId};
use crate::store::{EnrolOutcome, RedeemOutcome, Redemption, StoreError};
use crate::store_retry::StoreRetry;
use crate::traits::NoRandomness;

/// A proof was not accepted. Its sender is at fault, except for the last two.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It is not a proof.
    #[error(transparent)]
    Invalid(#[from] InvalidProof),
    /// It is for another call, environment or body.
    #[error("the proof of possession is for another request")]
    OtherRequest,
    /// It was signed at another time.
    #[error(
        "the proof of possession was signed {0} seconds away from this registry's clock; set the \
         executor's clock"
    )]
    ClockSkew(u64),
    /// Its nonce was used before.
    #[error("the proof of possession was used before")]
    Replayed,
    /// The key is unknown.
    #[error("this executor's key is not enrolled; join with a join token")]
    NotEnrolled,
    /// The key was revoked, which is permanent.
    #[error(
        "this executor was revoked; to enrol the machine again, remove the agent's credential \
         file and join with a new join token"
    )]
    Revoked,
    /// The bearer token that came with the proof was refused.
    #[error(transparent)]
    Join(#[from] AuthError),
    /// The token or key does not permit the request.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The store failed; a retry may succeed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

/// A verified proof of a key, whose request is not accepted yet.
#[derive(Debug)]
pub struct VerifiedProof {
    proof: Proof,
    source: Option<IpAddr>,
    holder: Holder,
}

#[derive(Debug)]
enum Holder {
    /// An enrolled executor.
    Enrolled(Caller),
    /// An unknown key, with a token that may permit its enrolment.
    Joining { join: TokenId, caller: Caller },
}

impl VerifiedProof {
    /// Checks that the request is about the signed environment and that the holder
    /// of the key may be its executor.
    ///
    /// # Errors
    /// [`ProofError::OtherRequest`], [`ProofError::Forbidden`]
    pub fn authorize(&self, environment: &EnvironmentId) -> Result<(), ProofError> {
        if self.proof.environment != *environment {
            return Err(ProofError::OtherRequest);
        }
        let allowed = match &self.holder {
            Holder::Enrolled(caller) => caller.authorize(Role::Executor, environment),
            Holder::Joining { caller, .. } => caller.authorize(Role::Join, environment),
        };
        Ok(allowed?)
    }
}

/// Executors that prove possession of a key instead of bearing a token.
#[derive(Clone, Copy)]
pub struct ExecutorKeys<'a> {
    ctx: &'a Context,
}

impl<'a> ExecutorKeys<'a> {
    pub(super) fn new(ctx: &'a Context) -> Self {
        Self { ctx }
    }
}

impl ExecutorKeys<'_> {
    /// Verifies a proof. `bearer` is the token that came with it, for an unknown
    /// key.
    ///
    /// # Errors
    /// See [`ProofError`].
    pub async fn verify(
        self,
        call: Call,
        text: &str,
        bearer: Option<&str>,
        source: Option<IpAddr>,
        retry: StoreRetry,
    ) -> Result<VerifiedProof, ProofError> {
        let proof = Proof::verify(text)?;
        if proof.call != call {
            return Err(ProofError::OtherRequest);
        }
        let off = proof.time.abs_diff(self.ctx.now());
        if off > limits::PROOF_WINDOW.as_secs() {
            return Err(ProofError::ClockSkew(off));
        }
        let known = retry.call(|| self.ctx.store().token_by_key(&proof.key)).await?;
        let Some(token) = known else {
            let bearer = bearer.filter(|_| call == Call::Register);
            let bearer = bearer.ok_or(ProofError::NotEnrolled)?;
            let caller = Tokens::new(self.ctx).authenticate(bearer, source, retry).await?;
            caller.require_role(&[Role::Join])?;
            let Subject::Token(join) = caller.subject.clone() else {
                return Err(Forbidden::Role.into());
            };
            return Ok(VerifiedProof { proof, source, holder: Holder::Joining { join, caller } });
        };
        let holder = Holder::Enrolled(self.executor(token, source)?);
        Ok(VerifiedProof { proof, source, holder })
    }

    /// Returns the caller with this enrolled key at `source`.
    fn executor(self, token: Token, source: Option<IpAddr>) -> Result<Caller, ProofError> {
        if !token.is_active(self.ctx.now()) {
            return Err(ProofError::Revoked);
        }
        if !token.sources.permit(source) {
            return Err(AuthError::Source(source).into());
        }
        Ok(caller(token.id, token.environments))
    }

    /// Accepts a verified proof for this body, once.
    ///
    /// # Errors
    /// See [`ProofError`].
    pub async fn accept(
        self,
        proven: VerifiedProof,
        body: &[u8],
        retry: StoreRetry,
    ) -> Result<Caller, ProofError> {
        let VerifiedProof { proof, source, holder } = proven;
        if !bool::from(proof::body_hash(body).ct_eq(&proof.body)) {
            return Err(ProofError::OtherRequest);
        }
        let (caller, joining) = match holder {
            Holder::Enrolled(caller) => (caller, None),
            Holder::Joining { join, caller } => (caller, Some(join)),
        };
        let redemption = Redemption {
            ticket: nonce_id(&proof),
            expires_at: proof.time.saturating_add(limits::PROOF_WINDOW.as_secs()),
            subject: caller.subject.clone(),
        };
        match retry.call(|| self.ctx.store().redeem(&redemption, self.ctx.now())).await? {
            RedeemOutcome::Redeemed => {}
            RedeemOutcome::AlreadyRedeemed => return Err(ProofError::Replayed),
            RedeemOutcome::TokenInactive => return Err(ProofError::Revoked),
        }
        match joining {
            None => Ok(caller),
            Some(join) => self.enrol(&proof, source, join, retry).await,
        }
    }

    async fn enrol(
        self,
        proof: &Proof,
        source: Option<IpAddr>,
        join: TokenId,
        retry: StoreRetry,
    ) -> Result<Caller, ProofError> {
        let now = self.ctx.now();
        let join_token = retry.call(|| self.ctx.store().token(&join)).await?;
        let join_token = join_token.ok_or(AuthError::Unknown)?;
        // the id of an environment is a pattern without stars
        let environments = proof.environment.as_str().parse();
        let environments = environments.map_err(|_| StoreError::Corrupt("environment"))?;
        let id = TokenId::from_random(self.ctx.random()?);
        let credential = Credential::Key { public: proof.key, enrolled_by: join.clone() };
        let token = Token {
            label: join_token.label,
            // the networks of the join token bind the executor too
            sources: join_token.sources,
            ..Token::new(id, Role::Executor, environments, credential, now)
        };
        let event = self.ctx.audit().event(AuditKind::Enrol);
        let event = AuditEvent {
            actor: Some(join.to_string()),
            environment: Some(proof.environment.clone()),
            what: Some(format!("executor_enrolled {}", token.id)),
            ..event
        };
        retry.call(|| self.ctx.audit().flush()).await?;
        match retry.call(|| self.ctx.store().enrol(&token, &join, now, &event)).await? {
            EnrolOutcome::Enrolled => {
                let environment = &proof.environment;
                tracing::info!(token = %token.id, %environment, %join, "executor enrolled");
                Ok(caller(token.id, token.environments))
            }
            EnrolOutcome::UsedUp => Err(Forbidden::UsedUp.into()),
            EnrolOutcome::Inactive => Err(AuthError::Revoked.into()),
            EnrolOutcome::EnvironmentRevoked => Err(Forbidden::EnvironmentRevoked.into()),
            // Another first request with the same key came between `verify` and
            // here. This one has proven the key as well, so it is treated like a
            // later request, and its join token is not used.
            EnrolOutcome::KeyKnown => {
                let known = retry.call(|| self.ctx.store().token_by_key(&proof.key)).await?;
                let caller = self.executor(known.ok_or(ProofError::NotEnrolled)?, source)?;
                caller.authorize(Role::Executor, &proof.environment)?;
                Ok(caller)
            }
        }
    }
}

fn caller(id: TokenId, environments: crate::model::TokenPattern) -> Caller {
    Caller {
        subject: id.into(),
        grants: vec![Grant { role: Role::Executor, environments }],
        until: None,
    }
}

/// The id under which a nonce is remembered. It includes the key, so that one key
/// cannot use up the nonces of another.
fn nonce_id(proof: &Proof) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"rendez/proof-nonce/v1\0");
    hash.update(proof.key);
    hash.update(proof.nonce);
    let hash: [u8; 32] = hash.finalize().into();
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    id
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use rendez_proto::registry::admin::CreateToken;

    use super::*;
    use crate::testing::{Fixture, START, env};

    const BODY: &[u8] = b"{\"a\":1}";

    fn key(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn signed(key: &SigningKey, call: Call, environment: &str, time: u64, nonce: u8) -> String {
        let proof = Proof {
            call,
            environment: env(environment),
            key: [0; 32],
            time,
            nonce: [nonce; 16],
            body: proof::body_hash(BODY),
        };
        proof.sign(key)
    }

    async fn go(
        fixture: &Fixture,
        text: &str,
        bearer: Option<&str>,
        call: Call,
        environment: &str,
    ) -> Result<Caller, ProofError> {
        let proven = fixture
            .registry
            .executor_keys()
            .verify(call, text, bearer, None, StoreRetry::NEVER)
            .await?;
        proven.authorize(&env(environment))?;
        fixture.registry.executor_keys().accept(proven, BODY, StoreRetry::NEVER).await
    }

    async fn join(fixture: &Fixture, environments: &str, max_uses: u32) -> (String, TokenId) {
        let new = CreateToken {
            environments: environments.to_owned(),
            max_uses: Some(max_uses),
            label: "for the fleet".to_owned(),
            ..CreateToken::new(Role::Join)
        };
        let created = fixture.registry.tokens().create(None, &new).await.unwrap();
        (created.token.expose().to_owned(), created.entry.id.parse().unwrap())
    }

    #[tokio::test]
    async fn join_token_enrols_one_key() {
        let fixture = Fixture::new().await;
        let (token, join) = join(&fixture, "dev-*", 1).await;
        let register = |n, nonce| signed(&key(n), Call::Register, "dev-1", START, nonce);
        let refused = go(&fixture, &register(1, 0), None, Call::Register, "dev-1").await;
        assert!(matches!(refused, Err(ProofError::NotEnrolled)));
        let caller = go(&fixture, &register(1, 1), Some(&token), Call::Register, "dev-1").await;
        let caller = caller.unwrap();
        assert_eq!(caller.authorize(Role::Executor, &env("dev-1")), Ok(()));
        assert!(
            caller.authorize(Role::Executor, &env("dev-2")).is_err(),
            "for its environment only"
        );

        let list = fixture.registry.tokens().list(None).await.unwrap().tokens;
        let entry = list.iter().find(|entry| entry.id == caller.subject.to_string()).unwrap();
        assert_eq!(entry.enrolled_by, Some(join.to_string()));
        assert_eq!((entry.environments.as_str(), entry.label.as_str()), ("dev-1", "for the fleet"));

        // again without the token, and with it, which is not a second use
        for (nonce, bearer) in [(2, None), (3, Some(token.as_str()))] {
            let again = go(&fixture, &register(1, nonce), bearer, Call::Register, "dev-1").await;
            assert_eq!(again.unwrap(), caller);
        }
        let validate = signed(&key(1), Call::Validate, "dev-1", START, 4);
        let again = go(&fixture, &validate, None, Call::Validate, "dev-1").await;
        assert_eq!(again.unwrap(), caller);
        let second = go(&fixture, &register(2, 5), Some(&token), Call::Register, "dev-1").await;
        assert!(matches!(second, Err(ProofError::Forbidden(Forbidden::UsedUp))));

        // the enrolment outlives the token; the key can be revoked
        fixture.registry.tokens().revoke(None, &join.into()).await.unwrap();
        go(&fixture, &register(1, 6), None, Call::Register, "dev-1").await.unwrap();
        fixture.registry.tokens().revoke(None, &caller.subject).await.unwrap();
        let refused = go(&fixture, &register(1, 7), None, Call::Register, "dev-1").await;
        assert!(matches!(refused, Err(ProofError::Revoked)));
    }

    /// A response is lost while its request is still in progress, and the agent
    /// retries: both requests find the key unknown.
    #[tokio::test]
    async fn concurrent_first_requests_enrol_once() {
        let fixture = Fixture::new().await;
        let (token, join_id) = join(&fixture, "dev-*", 1).await;
        let ask = async |n, nonce, environment: &str, bearer: &str, source: Option<&str>| {
            let text = signed(&key(n), Call::Register, environment, START, nonce);
            let source = source.map(|source| source.parse().unwrap());
            let asked = fixture
                .registry
                .executor_keys()
                .verify(Call::Register, &text, Some(bearer), source, StoreRetry::NEVER)
                .await;
            asked.unwrap()
        };
        let settle = async |proven, body| {
            fixture.registry.executor_keys().accept(proven, body, StoreRetry::NEVER).await
        };
        let first = ask(1, 1, "dev-1", &token, None).await;
        let second = ask(1, 2, "dev-1", &token, None).await;
        let other_body = ask(1, 3, "dev-1", &token, None).await;
        let elsewhere = ask(1, 4, "dev-2", &token, None).await;
        let same = ask(1, 1, "dev-1", &token, None).await;
        let other_key = ask(2, 5, "dev-1", &token, None).await;
        let late = ask(1, 6, "dev-1", &token, None).await;
        let caller = settle(first, BODY).await.unwrap();
        assert_eq!(settle(second, BODY).await.unwrap(), caller);
        let used = fixture.registry.ctx.store().token(&join_id).await.unwrap().unwrap().uses;
        assert_eq!(used, 1);

        // requests whose proof does not match are refused
        let refused = settle(other_body, b"{}").await;
        assert!(matches!(refused, Err(ProofError::OtherRequest)));
        let refused = settle(same, BODY).await;
        assert!(matches!(refused, Err(ProofError::Replayed)));
        let refused = settle(elsewhere, BODY).await;
        assert!(matches!(refused, Err(ProofError::Forbidden(Forbidden::Environment))));
        let refused = settle(other_key, BODY).await;
        assert!(matches!(refused, Err(ProofError::Forbidden(Forbidden::UsedUp))));
        fixture.registry.tokens().revoke(None, &caller.subject).await.unwrap();
        assert!(matches!(settle(late, BODY).await, Err(ProofError::Revoked)));

        // the first executor has the networks of its join token
        let new = CreateToken {
            source_cidrs: vec!["10.0.0.0/8".to_owned()],
            ..CreateToken::new(Role::Join)
        };
        let bound = fixture.registry.tokens().create(None, &new).await.unwrap();
        let (anywhere, _) = join(&fixture, "dev-*", 1).await;
        let inside = ask(3, 7, "dev-3", bound.token.expose(), Some("10.0.0.1")).await;
        let outside = ask(3, 8, "dev-3", &anywhere, Some("192.0.2.1")).await;
        settle(inside, BODY).await.unwrap();
        let refused = settle(outside, BODY).await;
        assert!(matches!(refused, Err(ProofError::Join(AuthError::Source(_)))));
    }

    #[tokio::test]
    async fn replayed_proof_is_refused() {
        let fixture = Fixture::new().await;
        let (token, _) = join(&fixture, "*", 2).await;
        let text = signed(&key(1), Call::Register, "dev", START, 1);
        go(&fixture, &text, Some(&token), Call::Register, "dev").await.unwrap();
        let replayed = go(&fixture, &text, None, Call::Register, "dev").await;
        assert!(matches!(replayed, Err(ProofError::Replayed)));

        let fresh = signed(&key(1), Call::Register, "dev", START, 2);
        let other_call = go(&fixture, &fresh, None, Call::Validate, "dev").await;
        assert!(matches!(other_call, Err(ProofError::OtherRequest)));
        let other_place = go(&fixture, &fresh, None, Call::Register, "prod").await;
        assert!(matches!(other_place, Err(ProofError::OtherRequest)));
        let registry = &fixture.registry;
        let proven = registry
            .executor_keys()
            .verify(Call::Register, &fresh, None, None, StoreRetry::NEVER)
            .await
            .unwrap();
        let other_body =
            registry.executor_keys().accept(proven, b"{\"a\":2}", StoreRetry::NEVER).await;
        assert!(matches!(other_body, Err(ProofError::OtherRequest)));
        // none of these used up the nonce, and another key cannot use it up
        let thief = signed(&key(2), Call::Register, "dev", START, 2);
        go(&fixture, &thief, Some(&token), Call::Register, "dev").await.unwrap();
        go(&fixture, &fresh, None, Call::Register, "dev").await.unwrap();
    }

    #[tokio::test]
    async fn jwt_times_have_leeway() {
        let fixture = Fixture::new().await;
        let (token, _) = join(&fixture, "*", 1).await;
        let window = limits::PROOF_WINDOW.as_secs();
        for (nonce, (time, good)) in [
            (START - window - 1, false),
            (START - window, true),
            (START + window, true),
            (START + window + 1, false),
            (0, false),
            (u64::MAX, false),
        ]
        .into_iter()
        .enumerate()
        {
            let text = signed(&key(1), Call::Register, "dev", time, nonce as u8);
            let result = go(&fixture, &text, Some(&token), Call::Register, "dev").await;
            match good {
                true => drop(result.unwrap()),
                false => assert!(matches!(result, Err(ProofError::ClockSkew(_))), "{time}"),
            }
        }
        // a nonce is remembered as long as its proof is valid
        let early = signed(&key(1), Call::Register, "dev", START + window, 2);
        fixture.advance(2 * window);
        let replayed = go(&fixture, &early, None, Call::Register, "dev").await;
        assert!(matches!(replayed, Err(ProofError::Replayed)));
    }

    #[tokio::test]
    async fn only_join_tokens_enrol() {
        let fixture = Fixture::new().await;
        let (elsewhere, _) = join(&fixture, "prod-*", 1).await;
        for role in [Role::Executor, Role::Orchestrator, Role::Admin] {
            let token = fixture.token(role, "*").await;
            let text = signed(&key(1), Call::Register, "dev", START, 1);
            let result = go(&fixture, &text, Some(&token), Call::Register, "dev").await;
            assert!(matches!(result, Err(ProofError::Forbidden(Forbidden::Role))), "{role}");
        }
        let text = signed(&key(1), Call::Register, "dev", START, 1);
        let result = go(&fixture, &text, Some(&elsewhere), Call::Register, "dev").await;
        assert!(matches!(result, Err(ProofError::Forbidden(Forbidden::Environment))));
        let result = go(&fixture, &text, Some("rdz_j_nonsense"), Call::Register, "dev").await;
        assert!(matches!(result, Err(ProofError::Join(AuthError::Unknown))));
        let text = signed(&key(1), Call::Validate, "dev", START, 1);
        let (token, _) = join(&fixture, "*", 1).await;
        let result = go(&fixture, &text, Some(&token), Call::Validate, "dev").await;
        assert!(matches!(result, Err(ProofError::NotEnrolled)), "validating does not enrol");
    }
}
