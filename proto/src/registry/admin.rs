//! Bodies under `/v1/`, for operators and our command line.
//!
//! ```text
//! GET    /v1/tokens?after=ID         admin               -> TokenList
//! POST   /v1/tokens                  admin  CreateToken  -> TokenCreated
//! DELETE /v1/tokens/{id}             admin               -> 204
//! ```

use serde::{Deserialize, Serialize};

pub use super::environments::{EnvironmentEntry, EnvironmentList};
use super::error::ErrorDetail;
use super::parse;
use crate::ticket::secret_text;

secret_text! {
    /// A bearer token: `rdz_<role letter>_<id>_<secret>`.
    TokenText
}

/// What a token's bearer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Register as an environment's executor, and validate keys for it.
    Executor,
    /// Connect to environments and list them.
    Orchestrator,
    /// Manage tokens and list environments; neither of the above.
    Admin,
}

/// A new token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it permits.
    pub role: Role,
    /// Where: an environment id, in which `*` stands for any run of characters.
    #[serde(default = "everywhere")]
    pub environments: String,
    /// For people, at most [`crate::limits::TOKEN_LABEL_MAX_BYTES`].
    #[serde(default)]
    pub label: String,
    /// Seconds until it ends; without it, only revocation ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_secs: Option<u64>,
}

impl CreateToken {
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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenCreated {
    /// The secret to hand to its bearer.
    pub token: TokenText,
    /// What is kept of it.
    #[serde(flatten)]
    pub entry: TokenEntry,
}

/// One page of tokens, ordered by id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenList {
    /// The entries.
    pub tokens: Vec<TokenEntry>,
    /// Ask again with `after` set to this for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What the registry keeps of a token, except for its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// Names the token; part of its text, not secret.
    pub id: String,
    /// What it permits.
    pub role: Role,
    /// Where.
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::error::ErrorCode;

    #[test]
    fn a_token_request_has_defaults_and_no_unknown_members() {
        let parse = |text: &str| CreateToken::parse(text.as_bytes());
        let least = parse(r#"{"role":"orchestrator"}"#).unwrap();
        assert_eq!(least.environments, "*");
        assert_eq!((least.label.as_str(), least.expires_in_secs), ("", None));
        for bad in [r#"{"role":"king"}"#, "{}", r#"{"role":"admin","source_cidr":"10.0.0.0/8"}"#] {
            assert_eq!(parse(bad).unwrap_err().code, ErrorCode::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn a_created_token_shows_its_text_in_json_only() {
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
            },
        };
        assert_eq!(
            serde_json::to_string(&created).unwrap(),
            r#"{"token":"rdz_e_planted","id":"00112233aabbccdd","role":"executor","environments":"dev-*","label":"","created_at_unix_secs":5,"expires_at_unix_secs":9}"#
        );
        assert!(!format!("{created:?}").contains("planted"));
    }
}
