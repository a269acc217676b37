//! A row of the audit log and its place in the chain. Ids and sizes only; no
//! secret, no content.
//!
//! ```text
//! hash = SHA-256("rendez/audit/v1\0" | previous | seq | at | texts | numbers)
//! text   = 0 | 1, length (4 bytes), bytes      kind actor environment registration stream what
//! number = 0 | 1, 8 bytes                      received_bytes sent_bytes count
//! ```
//!
//! Integers are big-endian. `previous` is the hash of the row before, zeros for
//! the first row ever. Two kinds of row are about the log itself:
//!
//! * `gap`: `count` events were lost here, because they came faster than the
//!   database took them.
//! * `checkpoint`: all rows up to number `count`, whose hash is `what`, were
//!   removed because they were old. Then the log begins with the row after it.
//!   Removed rows about actions of people may follow it again, as new rows: a
//!   chain that is cut at its beginning cannot keep a row in its place.
//!
//! With write access to the database one can forge a whole new chain. A [`Head`]
//! that was noted elsewhere detects that: a chain that contains it is unchanged
//! before it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::{EnvironmentId, RegistrationId};

const DOMAIN: &[u8] = b"rendez/audit/v1\0";

/// A hash of a row, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AuditHash(pub [u8; 32]);

/// The text is not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid hash: it must have 64 hexadecimal digits")]
pub struct InvalidHash;

impl AuditHash {
    /// The previous hash of the first row ever.
    pub const NONE: AuditHash = AuditHash([0; 32]);
}

impl fmt::Display for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AuditHash({self})")
    }
}

impl FromStr for AuditHash {
    type Err = InvalidHash;
    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let digit = |b: u8| (b as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let mut hash = [0; 32];
        if text.len() != 2 * hash.len() {
            return Err(InvalidHash);
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (high, low) = digit(pair[0]).zip(digit(pair[1])).ok_or(InvalidHash)?;
            *byte = high << 4 | low;
        }
        Ok(Self(hash))
    }
}

impl TryFrom<String> for AuditHash {
    type Error = InvalidHash;
    fn try_from(text: String) -> Result<Self, InvalidHash> {
        text.parse()
    }
}

impl From<AuditHash> for String {
    fn from(hash: AuditHash) -> String {
        hash.to_string()
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The kind of event that a row records.
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum AuditKind {
            $($(#[$doc])* $name,)*
        }

        impl AuditKind {
            /// All kinds.
            pub const ALL: &'static [AuditKind] = &[$(AuditKind::$name,)*];

            /// The name on the wire, in the database and in the hash.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(AuditKind::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// An executor got credentials of its own.
    Enrol = "enrol",
    /// An executor claimed an environment.
    Register = "register",
    /// An orchestrator asked for a connection to an executor.
    Connect = "connect",
    /// A handshake's key was accepted or refused.
    Validate = "validate",
    /// A websocket opened.
    Open = "open",
    /// A websocket ended.
    Close = "close",
    /// A token, a registration or an environment was revoked.
    Revoke = "revoke",
    /// A request, a websocket or a stream was refused because of a limit.
    Quota = "quota",
    /// An administrator changed something.
    Admin = "admin",
    /// Events were lost here.
    Gap = "gap",
    /// Old rows were removed.
    Checkpoint = "checkpoint",
}

impl AuditKind {
    /// Parses the name of [`as_str`](Self::as_str).
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// Whether the event is an action of people that changes permissions. Such rows
    /// are few, and they are the ones that are searched for a year later. Others
    /// appear as often as tokens are used.
    pub fn is_act(self) -> bool {
        matches!(self, AuditKind::Enrol | AuditKind::Revoke | AuditKind::Admin)
    }
}

/// An event: a row without its place in the chain.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// The time, in seconds since 1970.
    pub at_unix_secs: u64,
    /// The kind of event.
    pub kind: AuditKind,
    /// The actor: the id of a token, or another subject. Absent for the relay
    /// itself, and for a command with write access to its state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// The environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentId>,
    /// The registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<RegistrationId>,
    /// The stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// The outcome or the object, as a word and an id: `valid`, `token_created
    /// 0011223344556677`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// Bytes that came from the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Bytes that went to the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// For a gap, the number of lost events; for a checkpoint, the last removed row;
    /// for a quota or a refusal, the number of times since the row before; for an
    /// action of people, the number of its row before it was carried over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl AuditEvent {
    /// An event of this kind with only a time.
    pub fn new(kind: AuditKind, at_unix_secs: u64) -> Self {
        Self {
            at_unix_secs,
            kind,
            actor: None,
            environment: None,
            registration: None,
            stream: None,
            what: None,
            received_bytes: None,
            sent_bytes: None,
            count: None,
        }
    }

    /// The event's row after this head.
    pub fn chain(self, before: Head) -> AuditRow {
        let seq = before.seq + 1;
        let hash = hash(&self, seq, before.hash);
        AuditRow { seq, event: self, previous: before.hash, hash }
    }
}

/// A row of the log.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRow {
    /// Its number; the first row ever has 1.
    pub seq: u64,
    /// The event.
    #[serde(flatten)]
    pub event: AuditEvent,
    /// Hash of the row before.
    pub previous: AuditHash,
    /// Hash of this row.
    pub hash: AuditHash,
}

/// A page of the log, ordered by number.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// The rows.
    pub rows: Vec<AuditRow>,
    /// Ask again with `after` set to this for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<u64>,
}

/// The end of a chain, as `SEQ:HASH`. A head that is noted elsewhere proves later
/// that nothing before it was changed or cut off.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the last row; 0: there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: AuditHash,
}

impl Head {
    /// The head of an empty log.
    pub const EMPTY: Head = Head { seq: 0, hash: AuditHash::NONE };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

impl FromStr for Head {
    type Err = InvalidHash;
    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        let (seq, hash) = text.split_once(':').ok_or(InvalidHash)?;
        Ok(Self { seq: seq.parse().map_err(|_| InvalidHash)?, hash: hash.parse()? })
    }
}

impl From<&AuditRow> for Head {
    fn from(row: &AuditRow) -> Self {
        Self { seq: row.seq, hash: row.hash }
    }
}

pub(super) fn hash(event: &AuditEvent, seq: u64, previous: AuditHash) -> AuditHash {
    let mut sha = Sha256::new();
    sha.update(DOMAIN);
    sha.update(previous.0);
    sha.update(seq.to_be_bytes());
    sha.update(event.at_unix_secs.to_be_bytes());
    let texts = [
        Some(event.kind.as_str()),
        event.actor.as_deref(),
        event.environment.as_ref().map(EnvironmentId::as_str),
        event.registration.as_ref().map(RegistrationId::as_str),
        event.stream.as_deref(),
        event.what.as_deref(),
    ];
    for text in texts {
        match text {
            None => sha.update([0]),
            Some(text) => {
                sha.update([1]);
                // longer than that is nothing here
                sha.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
                sha.update(text);
            }
        }
    }
    for number in [event.received_bytes, event.sent_bytes, event.count] {
        match number {
            None => sha.update([0]),
            Some(number) => {
                sha.update([1]);
                sha.update(number.to_be_bytes());
            }
        }
    }
    AuditHash(sha.finalize().into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn event(n: u64) -> AuditEvent {
        AuditEvent {
            actor: Some("0011223344556677".to_owned()),
            environment: Some("dev".parse().unwrap()),
            registration: Some("reg_a".parse().unwrap()),
            what: Some("client_closed".to_owned()),
            received_bytes: Some(n),
            ..AuditEvent::new(AuditKind::Close, 100 + n)
        }
    }

    #[test]
    fn hash_is_stable() {
        let row = event(1).chain(Head::EMPTY);
        assert_eq!(
            row.hash.to_string(),
            "c1f2b816fc299e809bb6a7efa1612c78e3e8809df8d48cd64a28824615397bd9"
        );
        let json = serde_json::to_string(&row).unwrap();
        assert!(json.starts_with(r#"{"seq":1,"at_unix_secs":101,"kind":"close","actor":"0011"#));
        assert_eq!(serde_json::from_str::<AuditRow>(&json).unwrap(), row);
        for kind in AuditKind::ALL {
            let wire = serde_json::to_string(kind).unwrap();
            assert_eq!(wire, format!("\"{}\"", kind.as_str()));
            assert_eq!(AuditKind::parse(kind.as_str()), Some(*kind));
        }
    }

    #[test]
    fn heads_round_trip_as_text() {
        let head = Head::from(&event(1).chain(Head::EMPTY));
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "7", "7:", "7:00", ":", &format!("x:{}", AuditHash::NONE)] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }
}
