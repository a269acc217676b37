//! The identity behind a request, a registration or a websocket.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::token::TokenId;

/// A permanent name of a caller. Not secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A token of this registry, or an enrolled executor.
    Token(TokenId),
    /// The subject of another issuer's tokens.
    Foreign(ForeignId),
}

/// Names the `sub` of one issuer, independent of its current token: `jwt_<8 hex
/// digits of the issuer's hash>_<22 characters base64url of the hash of issuer and
/// subject>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForeignId(Box<str>);

/// The text is not a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a subject is the id of a token, {} hexadecimal digits, or jwt_...", TokenId::DIGITS)]
pub struct InvalidSubject;

impl ForeignId {
    const PREFIX: &str = "jwt_";
    const ISSUER_DIGITS: usize = 8;
    const SUBJECT_CHARACTERS: usize = 22;

    /// Returns the name of `subject` at `issuer`.
    pub fn new(issuer: &str, subject: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"rendez/foreign-subject/v1\0");
        hash.update((issuer.len() as u64).to_be_bytes());
        hash.update(issuer);
        hash.update(subject);
        let hash: [u8; 32] = hash.finalize().into();
        let subject = URL_SAFE_NO_PAD.encode(&hash[..16]);
        Self(format!("{}{}_{subject}", Self::PREFIX, issuer_digits(issuer)).into())
    }

    /// Whether the subject belongs to this issuer.
    pub fn is_of(&self, issuer: &str) -> bool {
        self.0[Self::PREFIX.len()..].starts_with(&issuer_digits(issuer))
    }
}

fn issuer_digits(issuer: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(issuer).into();
    format!("{:08x}", u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]))
}

impl FromStr for ForeignId {
    type Err = InvalidSubject;
    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let rest = text.strip_prefix(Self::PREFIX).ok_or(InvalidSubject)?;
        let (issuer, subject) = rest.split_once('_').ok_or(InvalidSubject)?;
        let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let base64 = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let good = issuer.len() == Self::ISSUER_DIGITS
            && issuer.bytes().all(hex)
            && subject.len() == Self::SUBJECT_CHARACTERS
            && subject.bytes().all(base64);
        if good { Ok(Self(text.into())) } else { Err(InvalidSubject) }
    }
}

impl FromStr for Subject {
    type Err = InvalidSubject;
    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        match text.parse() {
            Ok(id) => Ok(Subject::Token(id)),
            Err(_) => text.parse().map(Subject::Foreign),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Token(id) => id.fmt(f),
            Subject::Foreign(id) => f.write_str(&id.0),
        }
    }
}

impl From<TokenId> for Subject {
    fn from(id: TokenId) -> Self {
        Subject::Token(id)
    }
}

/// A subject as a ticket names it, with the end of its websockets if it has one.
/// As text: the subject, and `~<seconds since 1970>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketSubject {
    /// The subject that requested the ticket.
    pub subject: Subject,
    /// When the websocket must end, in seconds since 1970.
    pub until: Option<u64>,
}

impl FromStr for TicketSubject {
    type Err = InvalidSubject;
    fn from_str(text: &str) -> Result<Self, InvalidSubject> {
        let (subject, until) = match text.split_once('~') {
            Some((subject, until)) => (subject, Some(until)),
            None => (text, None),
        };
        let until = until.map(|until| until.parse().map_err(|_| InvalidSubject)).transpose()?;
        Ok(Self { subject: subject.parse()?, until })
    }
}

impl fmt::Display for TicketSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.subject.fmt(f)?;
        self.until.map_or(Ok(()), |until| write!(f, "~{until}"))
    }
}

#[cfg(test)]
mod tests {
    use rendez_proto::limits;

    use super::*;

    #[test]
    fn subject_round_trips_as_text() {
        let token = Subject::Token(TokenId::from_random([0xab; 8]));
        let foreign = Subject::Foreign(ForeignId::new("https://issuer", "repo:a/b"));
        for subject in [token, foreign.clone()] {
            assert_eq!(subject.to_string().parse(), Ok(subject.clone()));
            for until in [None, Some(u64::MAX)] {
                let ticket = TicketSubject { subject: subject.clone(), until };
                assert_eq!(ticket.to_string().parse(), Ok(ticket.clone()));
                assert!(ticket.to_string().len() <= limits::TICKET_SUBJECT_MAX_BYTES);
            }
        }
        // part of tickets and logs: it must not change
        assert_eq!(foreign.to_string(), GOLDEN);
        for bad in ["", "jwt_", "jwt_0_a", "abababababababab~", "abababababababab~x", "~5"] {
            assert!(bad.parse::<TicketSubject>().is_err(), "{bad:?}");
        }
    }

    const GOLDEN: &str = "jwt_03dba21c_d7BQaXTTBnDeFVeJi2qskQ";

    #[test]
    fn foreign_id_depends_on_issuer_and_subject() {
        let id = ForeignId::new("https://a", "b");
        assert_ne!(id, ForeignId::new("https://a", "c"));
        assert_ne!(id, ForeignId::new("https://ab", ""));
        assert!(id.is_of("https://a") && !id.is_of("https://b"));
    }
}
