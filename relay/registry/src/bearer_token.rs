//! Bearer tokens: `rdz_<role letter>_<id>_<secret>`.
//!
//! The role's letter is `e`, `o`, `a` or `j`; the id is 16 hexadecimal digits; the
//! secret is 32 random bytes as base64url without padding, 43 characters. Only
//! the SHA-256 of the secret is stored: it is random and long, so a slow hash
//! would add nothing. The prefix is for secret scanners.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rendez_proto::registry::admin::TokenText;
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize as _, Zeroizing};

use crate::model::{Role, TokenId};

/// The longest bearer token that is parsed, in bytes. Ours have 66.
pub(crate) const BEARER_MAX_BYTES: usize = 256;

/// The bytes of a token's secret.
pub const SECRET_BYTES: usize = 32;

/// A token with its secret.
pub struct BearerToken {
    role: Role,
    id: TokenId,
    secret: Zeroizing<[u8; SECRET_BYTES]>,
}

/// The text is not a token of this registry. The error does not repeat it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is not a Rendez token")]
pub struct InvalidToken;

fn letter(role: Role) -> char {
    match role {
        Role::Executor => 'e',
        Role::Orchestrator => 'o',
        Role::Admin => 'a',
        Role::Join => 'j',
    }
}

impl BearerToken {
    /// Creates a token from random bytes.
    pub fn new(role: Role, id: TokenId, secret: [u8; SECRET_BYTES]) -> Self {
        Self { role, id, secret: Zeroizing::new(secret) }
    }

    /// Parses the text of a token.
    ///
    /// # Errors
    /// [`InvalidToken`], without the reason: a stranger needs no help.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        if text.len() > BEARER_MAX_BYTES {
            return Err(InvalidToken);
        }
        // the secret may contain '_'
        let mut parts = text.splitn(4, '_');
        let mut next = || parts.next().ok_or(InvalidToken);
        if next()? != "rdz" {
            return Err(InvalidToken);
        }
        let written = next()?;
        let is_written = |role: &Role| written.chars().eq([letter(*role)]);
        let role = Role::ALL.into_iter().find(is_written).ok_or(InvalidToken)?;
        let id = next()?.parse().map_err(|_| InvalidToken)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(next()?).map_err(|_| InvalidToken)?;
        let secret = <[u8; SECRET_BYTES]>::try_from(bytes.as_slice());
        bytes.zeroize();
        Ok(Self::new(role, id, secret.map_err(|_| InvalidToken)?))
    }

    /// The role in the text. Only the stored role counts.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The id of the token.
    pub fn id(&self) -> &TokenId {
        &self.id
    }

    /// The hash of the secret, as it is stored.
    pub fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret.as_slice()).into()
    }

    /// The text for the bearer.
    pub fn to_text(&self) -> TokenText {
        let mut secret = URL_SAFE_NO_PAD.encode(self.secret.as_slice());
        let text = format!("rdz_{}_{}_{secret}", letter(self.role), self.id);
        secret.zeroize();
        text.into()
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerToken({:?}, {}, redacted)", self.role, self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(role: Role, secret: u8) -> BearerToken {
        BearerToken::new(role, TokenId::from_random([0xab; 8]), [secret; SECRET_BYTES])
    }

    #[test]
    fn token_text_form_is_stable() {
        for (role, letter) in [
            (Role::Executor, 'e'),
            (Role::Orchestrator, 'o'),
            (Role::Admin, 'a'),
            (Role::Join, 'j'),
        ] {
            let text = bearer(role, 0xff).to_text();
            let golden = format!(
                "rdz_{letter}_abababababababab___________________________________________8"
            );
            assert_eq!(text.expose(), golden);
            let read = BearerToken::parse(&golden).unwrap();
            assert_eq!((read.role(), read.id()), (role, bearer(role, 0).id()));
            assert_eq!(read.secret_hash(), bearer(role, 0xff).secret_hash());
            assert_ne!(read.secret_hash(), bearer(role, 0xfe).secret_hash());
        }
    }

    #[test]
    fn join_token_has_its_own_prefix() {
        use rendez_proto::registry::admin::JOIN_TOKEN_PREFIX;
        for role in Role::ALL {
            let text = bearer(role, 1).to_text();
            assert_eq!(text.expose().starts_with(JOIN_TOKEN_PREFIX), role == Role::Join);
        }
    }

    #[test]
    fn invalid_tokens_are_refused() {
        let good = bearer(Role::Admin, 1).to_text();
        let good = good.expose();
        let long = format!("{good}{}", "A".repeat(BEARER_MAX_BYTES));
        for bad in [
            "",
            "rdz",
            "rdz_a",
            "sk-live-1",
            &good[1..],
            &good[..good.len() - 1],
            &long,
            &good.replace("rdz_a", "rdz_x"),
            &good.replace("abab", "ABAB"),
            &format!("{good}="),
        ] {
            assert_eq!(BearerToken::parse(bad).unwrap_err(), InvalidToken, "{bad:?}");
        }
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let token = bearer(Role::Admin, 1);
        let text = token.to_text();
        let secret = text.expose().rsplit('_').next().unwrap();
        assert!(!format!("{token:?} {text:?}").contains(secret));
    }
}
