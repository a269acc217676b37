//! The configuration of trusted token issuers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use serde::{Deserialize, Deserializer};

use crate::model::Role;

/// One trusted issuer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The issuer's name, which the `iss` of its tokens must equal.
    pub issuer: String,
    /// The audience that must be in the `aud` of its tokens. Choose a name of your
    /// own, so that tokens for other services are refused.
    pub audience: String,
    /// The location of its public keys.
    pub keys: KeySource,
    /// The accepted signature algorithms; by default all supported ones.
    #[serde(default = "JwtAlgorithm::all")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Whether a websocket ends when the token that requested it expires (`exp`,
    /// then without a leeway for clocks). By default it stays open, because such
    /// tokens are valid for minutes only.
    #[serde(default)]
    pub websockets_end_with_token: bool,
    /// The permissions of its tokens: the union of all matching rules.
    pub rules: Vec<RuleConfig>,
}

/// The location of an issuer's public keys, a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// A file.
    File(PathBuf),
    /// An `https://` URL.
    Url(String),
}

/// A signature algorithm with a public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum JwtAlgorithm {
    /// RSA PKCS #1 1.5 with SHA-256, for keys of at least 2048 bits.
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

/// A rule: tokens with these claims have this role in these environments.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleConfig {
    /// The claims that the token must have; at least one. A key is the name of a
    /// claim or a JSON pointer such as `/kubernetes.io/namespace`. In a value, `*`
    /// stands for any run of characters. In a list, one entry must match.
    pub claims: BTreeMap<String, String>,
    /// The role: `executor`, `orchestrator` or `admin`.
    #[serde(deserialize_with = "role")]
    pub role: Role,
    /// The environments: a pattern, in which `{claim}` stands for the value of
    /// that claim. Bytes other than letters, digits and `-` are written as `_` and
    /// two hexadecimal digits. Two values never share an environment: text after a
    /// value must mark the end of the value, for example `__`, and no `*` may
    /// stand before one.
    pub environments: String,
}

/// The roles that a rule may have. Joining needs a join token of the relay.
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

/// An issuer's configuration is invalid. The operator is at fault.
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
    /// Checks everything except the rules.
    pub(crate) fn check(&self) -> Result<(), InvalidIssuer> {
        let refuse = |why: &str| Err(InvalidIssuer::new(self, why));
        if self.issuer.is_empty() || self.audience.is_empty() {
            return refuse("issuer and audience must not be empty");
        }
        if self.algorithms.is_empty() {
            return refuse("it needs at least one algorithm");
        }
        if self.rules.is_empty() {
            return refuse("it needs at least one rule");
        }
        match &self.keys {
            KeySource::Url(url) if !url.starts_with("https://") => {
                refuse("its keys must come from an https:// URL or a file")
            }
            _ => Ok(()),
        }
    }
}
