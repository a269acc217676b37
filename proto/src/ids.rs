//! Names and counters, one type each, so that they cannot be mixed up.
//!
//! Every id is parsed where it enters and is valid from then on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Longest stream id in bytes. A UUID has 36; the rest is room for other
/// orchestrators; a relay keeps one id per stream.
pub const STREAM_ID_MAX_BYTES: usize = 128;
/// Longest registration id in bytes; ours have 26.
pub const REGISTRATION_ID_MAX_BYTES: usize = 128;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The text is empty or only white space.
    #[error("{what} is empty")]
    Empty {
        /// The kind of id.
        what: &'static str,
    },
    /// The text is too long.
    #[error("{what} is {len} bytes long, at most {max} are allowed")]
    TooLong {
        /// The kind of id.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The longest allowed length in bytes.
        max: usize,
    },
    /// A character outside of the allowed set.
    #[error("{what} contains {found:?}; allowed are {allowed}")]
    Character {
        /// The kind of id.
        what: &'static str,
        /// The first character that is not allowed.
        found: char,
        /// The allowed set, in words.
        allowed: &'static str,
    },
}

/// Letters, digits, `-` and `_`: safe in a URL path without escaping, which
/// stock executors don't do (docs/codex-wire.md#register).
const URL_SAFE: &str = "letters, digits, '-' and '_'";

fn url_safe(what: &'static str, max: usize, text: &str) -> Result<Box<str>, InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty { what });
    }
    if text.len() > max {
        return Err(InvalidId::TooLong { what, len: text.len(), max });
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
        Some(found) => Err(InvalidId::Character { what, found, allowed: URL_SAFE }),
        None => Ok(text.into()),
    }
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let parse: fn(&str) -> Result<Box<str>, InvalidId> = $parse;
                parse(text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        /// Allows look-ups by `&str` in maps keyed by the id.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

text_id! {
    /// The named place where work runs: what a user asks for.
    EnvironmentId, |text| url_safe("environment id", limits::ENVIRONMENT_ID_MAX_BYTES, text)
}

text_id! {
    /// One executor's current claim on an environment. Made by the registry.
    RegistrationId, |text| url_safe("registration id", REGISTRATION_ID_MAX_BYTES, text)
}

text_id! {
    /// Names one stream on a relay. Any non-blank text; our own and stock
    /// orchestrators use a UUID. It is not a capability.
    StreamId, |text| {
        let what = "stream id";
        let max = STREAM_ID_MAX_BYTES;
        if text.trim().is_empty() {
            return Err(InvalidId::Empty { what });
        }
        if text.len() > max {
            return Err(InvalidId::TooLong { what, len: text.len(), max });
        }
        Ok(text.into())
    }
}

impl StreamId {
    /// A random (version 4) UUID out of 16 random bytes.
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (i, byte) in bytes.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text.into())
    }

    /// Whether the id has the shape of a UUID (8-4-4-4-12 hexadecimal digits).
    pub fn is_uuid(&self) -> bool {
        self.0.len() == 36
            && self.0.bytes().enumerate().all(|(i, b)| match i {
                8 | 13 | 18 | 23 => b == b'-',
                _ => b.is_ascii_hexdigit(),
            })
    }
}

/// Orders the registrations of one environment; the highest is current.
///
/// Assigned by the registry's store, which never reuses or resets it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The position of a record in one direction of one stream.
///
/// It orders records and is their nonce, so it never wraps: a stream that runs
/// out of numbers ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u32);

impl Seq {
    /// The next number, or `None` at the end of the space.
    pub fn next(self) -> Option<Seq> {
        self.0.checked_add(1).map(Seq)
    }

    /// How far `self` lies after `earlier`; 0 if it does not.
    pub fn since(self, earlier: Seq) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_ids_are_url_safe() {
        for good in ["dev", "box-1", "A_b-9"] {
            assert_eq!(good.parse::<EnvironmentId>().unwrap().as_str(), good);
        }
        for bad in ["", " env", "a/b", "env.dot", "ä", "a%20"] {
            assert!(bad.parse::<EnvironmentId>().is_err(), "{bad:?} was accepted");
        }
        let long = "x".repeat(limits::ENVIRONMENT_ID_MAX_BYTES + 1);
        assert!(matches!(long.parse::<EnvironmentId>(), Err(InvalidId::TooLong { .. })));
    }

    #[test]
    fn stream_ids_may_be_any_text_but_blank() {
        assert!("any thing/ä".parse::<StreamId>().is_ok());
        assert!(" \t".parse::<StreamId>().is_err());
    }

    #[test]
    fn random_stream_ids_are_uuid_v4() {
        let id = StreamId::from_random([0xff; 16]);
        assert_eq!(id.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert!(id.is_uuid());
        assert!(!"x".parse::<StreamId>().unwrap().is_uuid());
    }

    #[test]
    fn invalid_id_does_not_deserialize() {
        assert!(serde_json::from_str::<EnvironmentId>("\"a b\"").is_err());
    }
}
