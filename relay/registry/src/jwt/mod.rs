//! Bearers of other issuers: GitHub Actions, Kubernetes, any OIDC provider.
//!
//! Nothing is believed that was not configured: the issuer by its exact name,
//! one audience, algorithms with public keys only, keys from the configured
//! place, and rules that say which claims permit what. `jku`, `jwk` and `x5u`
//! in a token's header are not looked at.

pub mod config;
mod keys;
mod rules;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::{Map, Value};

use self::config::{InvalidIssuer, IssuerConfig};
use self::keys::IssuerKeys;
use self::rules::Rules;
use crate::model::subject::ForeignId;
use crate::model::{Caller, Subject};
use crate::traits::FetchKeys;

/// Longest bearer of another issuer in bytes: those of GitHub have 2 KiB, and a
/// request's head has 16.
pub(crate) const JWT_MAX_BYTES: usize = 8 * 1024;

/// How far an issuer's clock may be off.
pub(crate) const JWT_LEEWAY: Duration = Duration::from_secs(30);

/// A foreign token was not accepted. Its bearer is at fault, except for
/// `KeysUnavailable`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not a token, too long, or not of a kind that is accepted.
    #[error("the token is not a JWT that this registry accepts")]
    Malformed,
    /// Of an issuer that is not configured.
    #[error("the token's issuer is not one of this registry's")]
    UnknownIssuer,
    /// Signed in a way that is not configured.
    #[error("the token's algorithm is not accepted from its issuer")]
    Algorithm,
    /// It does not name its key.
    #[error("the token names no key (kid)")]
    NoKeyId,
    /// Its key is not among the issuer's.
    #[error("the token's key is not one of its issuer's")]
    UnknownKey,
    /// Signature, issuer, audience or subject are wrong.
    #[error("the token's signature, audience or subject is not right")]
    Invalid,
    /// Past its time.
    #[error("the token is expired")]
    Expired,
    /// Before its time.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Genuine, and no rule is for it.
    #[error("no rule of this registry permits this token anything")]
    NoRule,
    /// The issuer's keys cannot be had.
    #[error("the keys of the token's issuer cannot be had at the moment")]
    KeysUnavailable,
}

/// All issuers that are believed.
pub(crate) struct Issuers(Vec<Issuer>);

struct Issuer {
    name: String,
    algorithms: Vec<Algorithm>,
    audience: String,
    ends_with_token: bool,
    keys: IssuerKeys,
    rules: Rules,
}

impl Issuers {
    pub(crate) fn new(configs: &[IssuerConfig]) -> Result<Self, InvalidIssuer> {
        let mut issuers: Vec<Issuer> = Vec::new();
        for config in configs {
            config.check()?;
            if issuers.iter().any(|issuer| issuer.name == config.issuer) {
                return Err(InvalidIssuer::new(config, "it is configured twice"));
            }
            issuers.push(Issuer {
                name: config.issuer.clone(),
                algorithms: config.algorithms.iter().map(|algorithm| (*algorithm).into()).collect(),
                audience: config.audience.clone(),
                ends_with_token: config.websockets_end_with_token,
                keys: IssuerKeys::new(config.keys.clone()),
                rules: Rules::new(config)?,
            });
        }
        Ok(Self(issuers))
    }

    /// Whether this bearer is one to look at here at all.
    pub(crate) fn accept_format(&self, bearer: &str) -> bool {
        !self.0.is_empty() && bearer.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Whether the subject is of an issuer that is believed still.
    pub(crate) fn include(&self, id: &ForeignId) -> bool {
        self.0.iter().any(|issuer| id.is_of(&issuer.name))
    }

    pub(crate) async fn authenticate(
        &self,
        bearer: &str,
        now: u64,
        fetch: &Arc<dyn FetchKeys>,
    ) -> Result<Caller, JwtError> {
        if bearer.len() > JWT_MAX_BYTES {
            return Err(JwtError::Malformed);
        }
        let header = decode_header(bearer).map_err(|_| JwtError::Malformed)?;
        let claimed = claimed_issuer(bearer).ok_or(JwtError::Malformed)?;
        let issuer = self.0.iter().find(|issuer| issuer.name == claimed);
        let issuer = issuer.ok_or(JwtError::UnknownIssuer)?;
        if !issuer.algorithms.contains(&header.alg) {
            return Err(JwtError::Algorithm);
        }
        let kid = header.kid.ok_or(JwtError::NoKeyId)?;
        let key = issuer.keys.find(&kid, header.alg, fetch).await?;

        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&issuer.name]);
        validation.set_audience(&[&issuer.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        // judged below, by the registry's own clock
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let claims = decode::<Map<String, Value>>(bearer, &key, &validation);
        let claims = claims.map_err(|_| JwtError::Invalid)?.claims;
        let time = |name: &str| claims.get(name).and_then(seconds);
        let end = time("exp").ok_or(JwtError::Invalid)?;
        let leeway = JWT_LEEWAY.as_secs();
        // What ends with its token ends on time: beyond that, a registration
        // would be granted, and take the environment from the executor that has
        // it, with a ticket that opens nothing.
        let grace = if issuer.ends_with_token { 0 } else { leeway };
        if now >= end.saturating_add(grace) {
            return Err(JwtError::Expired);
        }
        for name in ["nbf", "iat"] {
            match claims.get(name).map(seconds) {
                None => {}
                Some(Some(start)) if start <= now.saturating_add(leeway) => {}
                Some(Some(_)) => return Err(JwtError::NotYetValid),
                Some(None) => return Err(JwtError::Invalid),
            }
        }
        let subject = claims.get("sub").and_then(Value::as_str).filter(|sub| !sub.is_empty());
        let subject = subject.ok_or(JwtError::Invalid)?;
        let grants = issuer.rules.grants(&claims);
        if grants.is_empty() {
            return Err(JwtError::NoRule);
        }
        Ok(Caller {
            subject: Subject::Foreign(ForeignId::new(&issuer.name, subject)),
            grants,
            until: issuer.ends_with_token.then_some(end),
        })
    }
}

/// A NumericDate, which may have a fraction.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let seconds = value.as_f64().filter(|seconds| (0.0..1e15).contains(seconds))?;
        Some(seconds as u64)
    })
}

/// What the token says of its issuer, to choose the keys that judge it.
fn claimed_issuer(bearer: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(bearer.split('.').nth(1)?).ok()?;
    let claims: Map<String, Value> = serde_json::from_slice(&payload).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests;
