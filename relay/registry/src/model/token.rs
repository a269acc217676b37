//! Tokens: their ids, patterns and stored form.

use std::fmt;
use std::str::FromStr;

use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::admin::Role;
use subtle::{Choice, ConstantTimeEq as _};

use super::source::SourceCidrs;

/// The id of a token: 8 random bytes as lower-case hexadecimal digits. Not secret.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenId(Box<str>);

/// The text is not the id of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token id has {} hexadecimal digits", TokenId::DIGITS)]
pub struct InvalidTokenId;

impl TokenId {
    /// The length of the text.
    pub const DIGITS: usize = 16;

    /// Creates an id from these bytes.
    pub fn from_random(bytes: [u8; 8]) -> Self {
        Self(format!("{:016x}", u64::from_be_bytes(bytes)).into())
    }

    /// Returns the id as text.
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
/// stands for any run of characters, also an empty one.
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
    /// Returns the pattern that covers every environment.
    pub fn everything() -> Self {
        Self("*".into())
    }

    /// Returns the pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the pattern covers `environment`.
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

/// Matches greedily and backtracks to the last star only: O(pattern * text).
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
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
                // let the last star match one more character
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

/// How the bearer of a token proves its identity. Neither variant holds a secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A secret, of which the SHA-256 is kept.
    Secret {
        /// The hash of the current secret.
        hash: [u8; 32],
        /// The hash of the secret before the last rotation, and the end of its
        /// validity in seconds since 1970.
        previous: Option<([u8; 32], u64)>,
    },
    /// Signatures of an enrolled executor.
    Key {
        /// Its Ed25519 public key.
        public: [u8; 32],
        /// The join token that enrolled it.
        enrolled_by: TokenId,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Credential::Secret { .. } => "Secret(redacted)",
            Credential::Key { .. } => "Key(..)",
        })
    }
}

impl Credential {
    /// Whether `hash` belongs to a secret that is valid at `now`. Takes constant
    /// time.
    pub fn matches_secret(&self, hash: &[u8; 32], now: u64) -> bool {
        match self {
            Credential::Secret { hash: current, previous } => {
                let (old, until) = previous.unwrap_or(([0; 32], 0));
                let in_time = Choice::from(u8::from(now < until));
                (current.ct_eq(hash) | (old.ct_eq(hash) & in_time)).into()
            }
            Credential::Key { .. } => false,
        }
    }
}

/// A token as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Its role.
    pub role: Role,
    /// The environments that it covers.
    pub environments: TokenPattern,
    /// A description for humans.
    pub label: String,
    /// How its bearer authenticates.
    pub credential: Credential,
    /// The networks from which it may be used.
    pub sources: SourceCidrs,
    /// The largest number of uses.
    pub max_uses: Option<u32>,
    /// The uses so far, counted only if there is a maximum.
    pub uses: u32,
    /// The time of creation, in seconds since 1970.
    pub created_at: u64,
    /// The time of the last rotation, in seconds since 1970.
    pub rotated_at: Option<u64>,
    /// The time of expiry, in seconds since 1970.
    pub expires_at: Option<u64>,
    /// The time of revocation, in seconds since 1970.
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
    /// Creates a token that works from any source, any number of times, until it
    /// is revoked.
    pub fn new(
        id: TokenId,
        role: Role,
        environments: TokenPattern,
        credential: Credential,
        created_at: u64,
    ) -> Self {
        Self {
            id,
            role,
            environments,
            label: String::new(),
            credential,
            sources: SourceCidrs::default(),
            max_uses: None,
            uses: 0,
            created_at,
            rotated_at: None,
            expires_at: None,
            revoked_at: None,
        }
    }

    /// Whether the token is neither revoked nor expired at `now`.
    pub fn is_active(&self, now: u64) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }
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
    fn patterns_have_bounded_length_and_alphabet() {
        let long = "*".repeat(limits::ENVIRONMENT_ID_MAX_BYTES + 1);
        for bad in ["", "a b", "a?", "[a]", "a/b", &long] {
            assert!(bad.parse::<TokenPattern>().is_err(), "{bad:?}");
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

    #[test]
    fn previous_secret_is_valid_until_its_end() {
        let one = Credential::Secret { hash: [1; 32], previous: None };
        assert!(one.matches_secret(&[1; 32], 5));
        assert!(!one.matches_secret(&[0; 32], 0) && !one.matches_secret(&[2; 32], 5));
        let two = Credential::Secret { hash: [2; 32], previous: Some(([1; 32], 10)) };
        assert!(two.matches_secret(&[2; 32], 10) && two.matches_secret(&[1; 32], 9));
        assert!(!two.matches_secret(&[1; 32], 10));
        let key = Credential::Key { public: [3; 32], enrolled_by: TokenId::from_random([0; 8]) };
        assert!(!key.matches_secret(&[3; 32], 0));
    }
}
