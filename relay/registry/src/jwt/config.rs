//! Which issuers are believed, as an operator configures it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer};

use crate::model::Role;

/// One issuer of tokens that are believed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// Its name: `iss` of its tokens must be exactly this.
    pub issuer: String,
    /// For whom its tokens must be: this must be (among) their `aud`. Choose
    /// one of your own, so that tokens for others are good for nothing here.
    pub audience: String,
    /// Where its public keys are.
    pub keys: KeySource,
    /// Ways of signing that are accepted; by default all that there are.
    #[serde(default = "JwtAlgorithm::all")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Whether a websocket ends when the token that asked for it does (`exp`,
    /// then without a leeway for clocks). By default it lives on, because such
    /// tokens are good for minutes.
    #[serde(default)]
    pub websockets_end_with_token: bool,
    /// What its tokens permit: all that any of these grants.
    pub rules: Vec<RuleConfig>,
}

/// Where an issuer's public keys (a JSON Web Key Set) are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// In a file.
    File(PathBuf),
    /// At an `https://` URL.
    Url(String),
}

/// A way of signing, with a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum JwtAlgorithm {
    /// RSA PKCS #1 1.5 with SHA-256, keys of 2048 bits and more.
    RS256,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// Ed25519.
    EdDSA,
}

impl JwtAlgorithm {
    fn all() -> Vec<Self> {
        vec![Self::RS256, Self::ES256, Self::EdDSA]
    }
}

impl From<JwtAlgorithm> for Algorithm {
    fn from(algorithm: JwtAlgorithm) -> Self {
        match algorithm {
            JwtAlgorithm::RS256 => Algorithm::RS256,
            JwtAlgorithm::ES256 => Algorithm::ES256,
            JwtAlgorithm::EdDSA => Algorithm::EdDSA,
        }
    }
}

/// Tokens with these claims have this role in these environments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// Claims that the token must have, all of them, and at least one: the name
    /// of a claim, or a JSON pointer such as `/kubernetes.io/namespace`, and its
    /// value, in which `*` stands for any run of characters. Of a list, one
    /// entry must match.
    pub claims: BTreeMap<String, String>,
    /// What it permits: `executor`, `orchestrator` or `admin`.
    #[serde(deserialize_with = "role")]
    pub role: Role,
    /// Where: a pattern, in which `{claim}` stands for that claim's value with
    /// every byte but letters, digits and `-` written as `_` and two hexadecimal
    /// digits. No two values have an environment in common: what follows a value
    /// and is not the end must say where the value ends, such as `__`, and no
    /// `*` may come before one.
    pub environments: String,
}

/// The roles that a rule may have: who joins has a token of the relay's own.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RuleRole {
    Executor,
    Orchestrator,
    Admin,
}

fn role<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Role, D::Error> {
    Ok(match RuleRole::deserialize(deserializer)? {
        RuleRole::Executor => Role::Executor,
        RuleRole::Orchestrator => Role::Orchestrator,
        RuleRole::Admin => Role::Admin,
    })
}

/// An issuer's configuration cannot be. The operator is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("issuer {issuer:?}: {why}")]
pub struct InvalidIssuer {
    issuer: String,
    why: String,
}

impl InvalidIssuer {
    pub(crate) fn new(config: &IssuerConfig, why: impl Into<String>) -> Self {
        Self { issuer: config.issuer.clone(), why: why.into() }
    }
}

impl IssuerConfig {
    /// Checks all but the rules.
    pub(crate) fn check(&self) -> Result<(), InvalidIssuer> {
        let refuse = |why: &str| Err(InvalidIssuer::new(self, why));
        if self.issuer.is_empty() || self.audience.is_empty() {
            return refuse("issuer and audience must not be empty");
        }
        if self.algorithms.is_empty() {
            return refuse("it has no algorithm");
        }
        if self.rules.is_empty() {
            return refuse("it has no rule, so its tokens would permit nothing");
        }
        match &self.keys {
            KeySource::Url(url) if !url.starts_with("https://") => {
                refuse("its keys must come from an https:// URL, or from a file")
            }
            _ => Ok(()),
        }
    }
}
