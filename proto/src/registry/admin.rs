//! Bodies under `/v1/`, for operators and our command line.
//!
//! ```text
//! GET    /v1/tokens?after=ID         admin               -> TokenList
//! POST   /v1/tokens                  admin  CreateToken  -> TokenCreated
//! POST   /v1/tokens/{id}/rotate      admin  RotateToken  -> TokenCreated
//! DELETE /v1/tokens/{id}             admin               -> 204
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use super::environments::{EnvironmentEntry, EnvironmentList};
use super::error::ErrorDetail;
use super::parse;
use crate::ticket::secret_text;

/// How long the old secret of a rotated token stays valid unless the caller
/// asks for another time: long enough to roll out a fleet's configuration.
pub const ROTATION_OVERLAP: Duration = Duration::from_secs(3600);

secret_text! {
    /// A bearer token: `rdz_<role letter>_<id>_<secret>`.
    TokenText
}

/// The prefix of a join token: it marks the token as one to enrol a key with.
pub const JOIN_TOKEN_PREFIX: &str = "rdz_j_";

/// The permissions of a token.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Register as an environment's executor, and validate keys for it.
    Executor,
    /// Connect to environments and list them.
    Orchestrator,
    /// Manage tokens and list environments; neither of the above.
    Admin,
    /// Enrol an executor, which then has a key of its own; nothing else.
    Join,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 4] = [Role::Executor, Role::Orchestrator, Role::Admin, Role::Join];

    /// The role's name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Executor => "executor",
            Role::Orchestrator => "orchestrator",
            Role::Admin => "admin",
            Role::Join => "join",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A new token.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Its permissions.
    pub role: Role,
    /// The environments: an id, in which `*` stands for any run of characters.
    #[serde(default = "everywhere")]
    pub environments: String,
    /// For people, at most [`crate::limits::TOKEN_LABEL_MAX_BYTES`].
    #[serde(default)]
    pub label: String,
    /// Seconds until it ends; without it, only revocation ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_secs: Option<u64>,
    /// Networks that it may be used from, such as `10.0.0.0/8`, at most
    /// [`crate::limits::TOKEN_CIDRS_MAX`]; none: from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_cidrs: Vec<String>,
    /// How often it may be used: an executor's token at `/register`, an
    /// orchestrator's at `/connect`, a join token to enrol. Without it a join
    /// token has one use and others have no bound; an admin's cannot have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<u32>,
}

/// A new secret for a token.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateToken {
    /// Seconds that the old secret stays valid beside the new one, at most
    /// [`ROTATION_OVERLAP_MAX`](crate::limits::ROTATION_OVERLAP_MAX); 0 ends it at once.
    #[serde(default = "overlap")]
    pub overlap_secs: u64,
}

fn overlap() -> u64 {
    ROTATION_OVERLAP.as_secs()
}

impl RotateToken {
    /// Parses a request body; an empty one has the default overlap.
    ///
    /// # Errors
    /// The sender's: `invalid_request`.
    pub fn parse(body: &[u8]) -> Result<Self, ErrorDetail> {
        if body.trim_ascii().is_empty() {
            return Ok(Self { overlap_secs: overlap() });
        }
        parse(body)
    }
}

impl CreateToken {
    /// A token of this role for every environment, from any network, without an
    /// expiry.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            environments: everywhere(),
            label: String::new(),
            expires_in_secs: None,
            source_cidrs: Vec::new(),
            max_uses: None,
        }
    }

    /// Parses a request body. Unknown members are refused here: a restriction
    /// that this version does not know must not be dropped silently.
    ///
    /// # Errors
    /// The sender's: `invalid_request`.
    pub fn parse(body: &[u8]) -> Result<Self, ErrorDetail> {
        parse(body)
    }
}

fn everywhere() -> String {
    "*".to_owned()
}

/// The only time that a token's text is shown.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The secret to hand to its bearer.
    pub token: TokenText,
    /// The token's entry.
    #[serde(flatten)]
    pub entry: TokenEntry,
}

/// One page of tokens, ordered by id.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// The entries.
    pub tokens: Vec<TokenEntry>,
    /// Ask again with `after` set to this for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The registry's record of a token, without its hash.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// Names the token; part of its text, not secret.
    pub id: String,
    /// Its permissions.
    pub role: Role,
    /// The environments that it covers.
    pub environments: String,
    /// For people.
    pub label: String,
    /// In seconds since 1970.
    pub created_at_unix_secs: u64,
    /// When it ends, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_unix_secs: Option<u64>,
    /// When it was revoked, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at_unix_secs: Option<u64>,
    /// Networks that it may be used from; none: from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_cidrs: Vec<String>,
    /// How often it may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_uses: Option<u32>,
    /// How often it was used; counted only if there is a maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// When its secret was replaced last, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at_unix_secs: Option<u64>,
    /// Until when the secret before the last rotation is valid too, in seconds
    /// since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_secret_until_unix_secs: Option<u64>,
    /// The join token by which this executor was enrolled: it has a key, and
    /// no secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_by: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::error::ErrorCode;

    #[test]
    fn token_request_has_defaults_and_refuses_unknown_members() {
        let parse = |text: &str| CreateToken::parse(text.as_bytes());
        let least = parse(r#"{"role":"orchestrator"}"#).unwrap();
        assert_eq!(least.environments, "*");
        assert_eq!((least.label.as_str(), least.expires_in_secs), ("", None));
        assert_eq!((least.source_cidrs.len(), least.max_uses), (0, None));
        for (text, seconds) in [("", 3600), ("{}", 3600), (r#"{"overlap_secs":0}"#, 0)] {
            assert_eq!(RotateToken::parse(text.as_bytes()).unwrap().overlap_secs, seconds);
        }
        for bad in [r#"{"role":"king"}"#, "{}", r#"{"role":"admin","allowed_hours":"9-17"}"#] {
            assert_eq!(parse(bad).unwrap_err().code, ErrorCode::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn role_has_one_name_everywhere() {
        for role in Role::ALL {
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
    }

    #[test]
    fn created_token_is_shown_only_in_json() {
        let created = TokenCreated {
            token: "rdz_e_planted".to_owned().into(),
            entry: TokenEntry {
                id: "00112233aabbccdd".to_owned(),
                role: Role::Executor,
                environments: "dev-*".to_owned(),
                label: String::new(),
                created_at_unix_secs: 5,
                expires_at_unix_secs: Some(9),
                revoked_at_unix_secs: None,
                source_cidrs: Vec::new(),
                max_uses: None,
                uses: None,
                rotated_at_unix_secs: None,
                previous_secret_until_unix_secs: None,
                enrolled_by: None,
            },
        };
        assert_eq!(
            serde_json::to_string(&created).unwrap(),
            r#"{"token":"rdz_e_planted","id":"00112233aabbccdd","role":"executor","environments":"dev-*","label":"","created_at_unix_secs":5,"expires_at_unix_secs":9}"#
        );
        assert!(!format!("{created:?}").contains("planted"));
    }
}
