//! What the registry knows, in its own types: neither rows nor JSON.

use std::fmt;
use std::str::FromStr;

use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
pub use rendez_proto::registry::admin::Role;

/// Names a token: 8 random bytes as lower-case hexadecimal digits. Not secret.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(Box<str>);

/// The text is not the id of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token id has {} hexadecimal digits", TokenId::DIGITS)]
pub struct InvalidTokenId;

impl TokenId {
    /// Length of the text.
    pub const DIGITS: usize = 16;

    /// The id made of these bytes.
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(bytes)).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TokenId {
    type Err = InvalidTokenId;
    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        let digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == Self::DIGITS && text.bytes().all(digit) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTokenId)
        }
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({})", self.0)
    }
}

/// The environments that a token covers: an environment id in which each `*`
/// stands for any run of characters, also none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenPattern(Box<str>);

/// The text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a pattern has 1 to {} characters out of letters, digits, '-', '_' and '*'",
    limits::ENVIRONMENT_ID_MAX_BYTES
)]
pub struct InvalidPattern;

impl TokenPattern {
    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the token covers `environment`.
    pub fn matches(&self, environment: &EnvironmentId) -> bool {
        glob(self.0.as_bytes(), environment.as_str().as_bytes())
    }
}

impl FromStr for TokenPattern {
    type Err = InvalidPattern;
    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'*');
        let length = 1..=limits::ENVIRONMENT_ID_MAX_BYTES;
        if length.contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidPattern)
        }
    }
}

/// Greedy match that goes back to the last star only: O(pattern * text).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(byte) if *byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                // let the last star swallow one more character
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// A token as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub id: TokenId,
    /// What it permits.
    pub role: Role,
    /// Where.
    pub environments: TokenPattern,
    /// For people.
    pub label: String,
    /// SHA-256 of the secret's bytes.
    pub secret_hash: [u8; 32],
    /// In seconds since 1970.
    pub created_at: u64,
    /// When it ends, in seconds since 1970.
    pub expires_at: Option<u64>,
    /// When it was revoked, in seconds since 1970.
    pub revoked_at: Option<u64>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id)
            .field("role", &self.role)
            .field("environments", &self.environments)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// Whether it permits anything at `now`.
    pub fn is_active(&self, now: u64) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
}

/// Who is asking: the bearer of an active token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token.
    pub token: TokenId,
    /// What it permits.
    pub role: Role,
    /// Where.
    pub environments: TokenPattern,
}

/// The caller's token does not permit this. The caller is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It has another role.
    #[error("the token's role does not permit this")]
    Role,
    /// It does not cover the environment.
    #[error("the token does not cover this environment")]
    Environment,
    /// Another token made the registration.
    #[error("the registration was made with another token")]
    Token,
}

impl Caller {
    /// Checks the role.
    ///
    /// # Errors
    /// [`Forbidden::Role`].
    pub fn must_be(&self, roles: &[Role]) -> Result<(), Forbidden> {
        if roles.contains(&self.role) { Ok(()) } else { Err(Forbidden::Role) }
    }

    /// Checks the role and the environment.
    ///
    /// # Errors
    /// [`Forbidden::Role`], [`Forbidden::Environment`].
    pub fn may(&self, role: Role, environment: &EnvironmentId) -> Result<(), Forbidden> {
        self.must_be(&[role])?;
        if self.environments.matches(environment) { Ok(()) } else { Err(Forbidden::Environment) }
    }
}

/// A claim that is about to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRegistration {
    /// The environment; created if it does not exist.
    pub environment: EnvironmentId,
    /// The claim's name.
    pub id: RegistrationId,
    /// The executor's static key.
    pub key: PublicKey,
    /// What the executor offers.
    pub profiles: Vec<Profile>,
    /// Who claims.
    pub token: TokenId,
}

/// An environment's current claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The environment.
    pub environment: EnvironmentId,
    /// The claim's name.
    pub id: RegistrationId,
    /// Its place in the environment's order.
    pub generation: Generation,
    /// The executor's static key.
    pub key: PublicKey,
    /// What the executor offers.
    pub profiles: Vec<Profile>,
    /// Who claimed.
    pub token: TokenId,
    /// When, in seconds since 1970.
    pub registered_at: u64,
}

/// An environment; there is one as soon as an executor has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// When it was first registered, in seconds since 1970.
    pub created_at: u64,
    /// The current claim.
    pub registration: Registration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_ids() {
        let table: [(&str, &[&str], &[&str]); 6] = [
            ("*", &["a", "dev-1"], &[]),
            ("dev", &["dev"], &["dev1", "de", "xdev"]),
            ("dev-*", &["dev-", "dev-1"], &["dev", "xdev-1"]),
            ("*-gpu", &["a-gpu", "a-gpu-gpu"], &["gpu", "a-gpu1"]),
            ("a*b*c", &["abc", "axxbyyc", "abbcbc"], &["ab", "acb", "abcx"]),
            ("**", &["a"], &[]),
        ];
        for (pattern, good, bad) in table {
            let pattern: TokenPattern = pattern.parse().unwrap();
            for id in good {
                assert!(pattern.matches(&id.parse().unwrap()), "{pattern:?} misses {id}");
            }
            for id in bad {
                assert!(!pattern.matches(&id.parse().unwrap()), "{pattern:?} takes {id}");
            }
        }
    }

    #[test]
    fn patterns_are_bounded_and_plain() {
        let long = "*".repeat(limits::ENVIRONMENT_ID_MAX_BYTES + 1);
        for bad in ["", "a b", "a?", "[a]", "a/b", &long] {
            assert!(bad.parse::<TokenPattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_role_is_exactly_its_role() {
        let environment: EnvironmentId = "dev".parse().unwrap();
        for role in [Role::Executor, Role::Orchestrator, Role::Admin] {
            for needed in [Role::Executor, Role::Orchestrator, Role::Admin] {
                let caller = Caller {
                    token: TokenId::from_random([0; 8]),
                    role,
                    environments: "*".parse().unwrap(),
                };
                assert_eq!(caller.may(needed, &environment).is_ok(), role == needed);
            }
        }
    }

    #[test]
    fn token_ids_are_lower_case_hex() {
        let id = TokenId::from_random([0, 1, 2, 3, 0xaa, 0xbb, 0xcc, 0xdd]);
        assert_eq!(id.as_str(), "00010203aabbccdd");
        assert_eq!(id.as_str().parse(), Ok(id));
        for bad in
            ["", "00010203AABBCCDD", "00010203aabbccd", "00010203aabbccdd0", "g0010203aabbccdd"]
        {
            assert!(bad.parse::<TokenId>().is_err(), "{bad:?}");
        }
    }
}
