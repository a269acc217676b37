//! Tokens of other issuers: GitHub Actions, Kubernetes, any OIDC provider.
//!
//! Only configured values are trusted: the issuer by its exact name, one audience,
//! public key algorithms, keys from the configured location, and rules that map
//! claims to permissions. The header fields `jku`, `jwk` and `x5u` of a token are
//! ignored.

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

/// The longest JWT in bytes: those of GitHub have 2 KiB, and the head of a request
/// has 16.
pub(crate) const JWT_MAX_BYTES: usize = 8 * 1024;

/// The largest deviation of an issuer's clock.
pub(crate) const JWT_LEEWAY: Duration = Duration::from_secs(30);

/// A JWT was refused. Its bearer is at fault, except for `KeysUnavailable`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// It is not a JWT, too long, or of an unsupported kind.
    #[error("the token is not a JWT that this registry accepts")]
    Malformed,
    /// Its issuer is not configured.
    #[error("the token's issuer is not configured in this registry")]
    UnknownIssuer,
    /// Its algorithm is not configured.
    #[error("the token's algorithm is not accepted for its issuer")]
    Algorithm,
    /// It does not name its key.
    #[error("the token names no key (kid)")]
    NoKeyId,
    /// Its issuer has no such key.
    #[error("the token's issuer has no such key")]
    UnknownKey,
    /// Its signature, issuer, audience or subject is wrong.
    #[error("the token's signature, audience or subject is invalid")]
    Invalid,
    /// It is expired.
    #[error("the token is expired")]
    Expired,
    /// It is not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// It is valid, but no rule matches.
    #[error("no rule of this registry matches this token")]
    NoRule,
    /// The issuer's keys cannot be fetched.
    #[error("the keys of the token's issuer cannot be fetched; try again")]
    KeysUnavailable,
}

/// All trusted issuers.
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
                return Err(InvalidIssuer::new(config, "it is configured more than once"));
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

    /// Whether this bearer may be a JWT of an issuer.
    pub(crate) fn accept_format(&self, bearer: &str) -> bool {
        !self.0.is_empty() && bearer.bytes().filter(|byte| *byte == b'.').count() == 2
    }

    /// Whether the subject belongs to a trusted issuer.
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
        // checked below against the registry's own clock
        validation.validate_exp = false;
        validation.validate_nbf = false;
        let claims = decode::<Map<String, Value>>(bearer, &key, &validation);
        let claims = claims.map_err(|_| JwtError::Invalid)?.claims;
        let time = |name: &str| claims.get(name).and_then(seconds);
        let end = time("exp").ok_or(JwtError::Invalid)?;
        let leeway = JWT_LEEWAY.as_secs();
        // No leeway for websockets that end with their token: a registration within
        // the leeway would displace the environment's executor with a ticket that
        // is already refused.
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

/// Parses a NumericDate, which may have a fraction.
fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let seconds = value.as_f64().filter(|seconds| (0.0..1e15).contains(seconds))?;
        Some(seconds as u64)
    })
}

/// Returns the issuer that the token names, to select the keys that verify it.
fn claimed_issuer(bearer: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(bearer.split('.').nth(1)?).ok()?;
    let claims: Map<String, Value> = serde_json::from_slice(&payload).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests;
