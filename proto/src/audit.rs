//! The audit log: rows that are chained by their hashes, and how to check the
//! chain. Ids and sizes only; no secret, no content.
//!
//! ```text
//! hash = SHA-256("rendez/audit/v1\0" | previous | seq | at | texts | numbers)
//! text   = 0 | 1, length (4 bytes), bytes      kind actor environment registration stream what
//! number = 0 | 1, 8 bytes                      received_bytes sent_bytes count
//! ```
//!
//! Integers are big-endian. `previous` is the hash of the row before, zeros for
//! the first row ever. Two kinds of row speak about the log itself:
//!
//! * `gap`: `count` events were lost here, because they came faster than the
//!   database took them.
//! * `checkpoint`: all rows up to number `count`, whose hash is `what`, were
//!   removed because they were old. Then the log begins with the row after it.
//!
//! Whoever can write the database can forge a whole new chain. Against that
//! helps a [`Head`] that was noted elsewhere: a chain that contains it has
//! nothing changed before it.

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
#[error("a hash has 64 hexadecimal digits")]
pub struct InvalidHash;

impl AuditHash {
    /// What the first row ever has before it.
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
        /// What a row is about.
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum AuditKind {
            $($(#[$doc])* $name,)*
        }

        impl AuditKind {
            /// All kinds.
            pub const ALL: &'static [AuditKind] = &[$(AuditKind::$name,)*];

            /// The word on the wire, in the database and in the hash.
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
    /// An orchestrator asked for a way to an executor.
    Connect = "connect",
    /// A handshake's key was judged.
    Validate = "validate",
    /// A websocket opened.
    Open = "open",
    /// A websocket ended.
    Close = "close",
    /// A token, a registration or an environment was revoked.
    Revoke = "revoke",
    /// Somebody ran into a limit.
    Quota = "quota",
    /// An administrator changed something.
    Admin = "admin",
    /// Events were lost here.
    Gap = "gap",
    /// Old rows were removed.
    Checkpoint = "checkpoint",
}

impl AuditKind {
    /// Reads [`as_str`](Self::as_str)'s word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }
}

/// What happened: a row without its place in the chain.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When, in seconds since 1970.
    pub at_unix_secs: u64,
    /// What about.
    pub kind: AuditKind,
    /// Who: the id of a token, or another subject. Absent: the relay, or
    /// whoever can write its state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<EnvironmentId>,
    /// Under which registration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<RegistrationId>,
    /// Which stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// What happened or to whom, in a word and an id: `valid`, `token_created
    /// 0011223344556677`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
    /// Bytes that came from the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
    /// Bytes that went to the peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes: Option<u64>,
    /// Of a gap, how many events; of a checkpoint, the last removed row; of a
    /// quota, how often since the row before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl AuditEvent {
    /// An event of this kind that says nothing else yet.
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

    /// Its row behind this one.
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
    /// What happened.
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

/// The end of a chain, as `SEQ:HASH`: who notes it elsewhere can tell later
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
    /// Of an empty log.
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

fn hash(event: &AuditEvent, seq: u64, previous: AuditHash) -> AuditHash {
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

/// Where a chain is broken. Somebody changed the log, or the disk did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The row's own hash is not that of its contents.
    #[error("row {seq} was changed: its contents do not have its hash")]
    Edited {
        /// The row.
        seq: u64,
    },
    /// Numbers are missing.
    #[error("rows {from} to {to} are missing")]
    Missing {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// A number that was there before, or a smaller one.
    #[error("row {seq} comes after row {after}")]
    Order {
        /// The row.
        seq: u64,
        /// The one before it.
        after: u64,
    },
    /// Its contents have its hash, but it names another row before it.
    #[error("row {seq} does not continue row {}, one of the two was replaced", seq - 1)]
    Unchained {
        /// The row.
        seq: u64,
    },
    /// What was before the first row is gone, and no checkpoint says so.
    #[error("rows before row {first} are missing, and no checkpoint says that they were removed")]
    Beginning {
        /// The first row that is there.
        first: u64,
    },
    /// The end was cut off.
    #[error("row {head} was the last one once and is missing: the log ends with row {last}")]
    CutOff {
        /// The row that was noted.
        head: u64,
        /// The last that is there.
        last: u64,
    },
    /// The noted row is there and another one.
    #[error("row {seq} is not the one that was noted: the log was made anew")]
    Replaced {
        /// The row.
        seq: u64,
    },
    /// The noted row was removed in good order.
    #[error("row {head} that was noted was removed as too old: note a newer one")]
    HeadTooOld {
        /// The row that was noted.
        head: u64,
    },
}

/// What a whole chain says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intact {
    /// How many rows there are.
    pub rows: u64,
    /// The first row's number, and thereby how many were removed before.
    pub first: u64,
    /// Its end.
    pub head: Head,
    /// Events that were lost, all gaps together.
    pub lost: u64,
}

/// Checks a chain, row by row, in the order of their numbers.
#[derive(Debug, Default)]
pub struct Verifier {
    known: Option<Head>,
    first: Option<AuditRow>,
    last: Option<Head>,
    /// A checkpoint says what was before the first row.
    vouched: bool,
    rows: u64,
    lost: u64,
}

impl Verifier {
    /// Also demands that this row, noted before, is in the chain.
    pub fn expecting(known: Option<Head>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Checks the next row.
    ///
    /// # Errors
    /// [`Broken`]; nothing after it is worth checking.
    pub fn check(&mut self, row: &AuditRow) -> Result<(), Broken> {
        let seq = row.seq;
        if hash(&row.event, seq, row.previous) != row.hash {
            return Err(Broken::Edited { seq });
        }
        match self.last {
            Some(last) if seq <= last.seq => return Err(Broken::Order { seq, after: last.seq }),
            Some(last) if seq > last.seq + 1 => {
                return Err(Broken::Missing { from: last.seq + 1, to: seq - 1 });
            }
            Some(last) if row.previous != last.hash => return Err(Broken::Unchained { seq }),
            Some(_) => {}
            None => {
                self.vouched = seq == 1 && row.previous == AuditHash::NONE;
                self.first = Some(row.clone());
            }
        }
        if self.known.is_some_and(|known| known.seq == seq && known.hash != row.hash) {
            return Err(Broken::Replaced { seq });
        }
        match row.event.kind {
            AuditKind::Checkpoint => {
                self.vouched |= self.first.as_ref().is_some_and(|first| {
                    let removed = row.event.what.as_deref().map(str::parse);
                    row.event.count == first.seq.checked_sub(1)
                        && removed == Some(Ok(first.previous))
                });
            }
            AuditKind::Gap => self.lost = self.lost.saturating_add(row.event.count.unwrap_or(0)),
            _ => {}
        }
        self.rows += 1;
        self.last = Some(row.into());
        Ok(())
    }

    /// To be called after the last row.
    ///
    /// # Errors
    /// [`Broken`]: the beginning or the end is missing.
    pub fn finish(self) -> Result<Intact, Broken> {
        let head = self.last.unwrap_or(Head::EMPTY);
        let first = self.first.as_ref().map_or(0, |row| row.seq);
        if first > 0 && !self.vouched {
            return Err(Broken::Beginning { first });
        }
        match self.known {
            Some(known) if known.seq > head.seq => {
                return Err(Broken::CutOff { head: known.seq, last: head.seq });
            }
            Some(known) if known.seq < first && known.seq + 1 != first => {
                return Err(Broken::HeadTooOld { head: known.seq });
            }
            _ => {}
        }
        Ok(Intact { rows: self.rows, first, head, lost: self.lost })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> AuditEvent {
        AuditEvent {
            actor: Some("0011223344556677".to_owned()),
            environment: Some("dev".parse().unwrap()),
            registration: Some("reg_a".parse().unwrap()),
            what: Some("client_closed".to_owned()),
            received_bytes: Some(n),
            ..AuditEvent::new(AuditKind::Close, 100 + n)
        }
    }

    fn chain(n: u64) -> Vec<AuditRow> {
        let mut head = Head::EMPTY;
        (1..=n)
            .map(|n| {
                let row = event(n).chain(head);
                head = (&row).into();
                row
            })
            .collect()
    }

    fn verify(rows: &[AuditRow], known: Option<Head>) -> Result<Intact, Broken> {
        let mut verifier = Verifier::expecting(known);
        rows.iter().try_for_each(|row| verifier.check(row))?;
        verifier.finish()
    }

    #[test]
    fn the_hash_is_stable() {
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
    fn a_whole_chain_is_intact_also_when_it_is_empty() {
        let rows = chain(9);
        let intact = verify(&rows, Some((&rows[4]).into())).unwrap();
        assert_eq!((intact.rows, intact.first, intact.head), (9, 1, (&rows[8]).into()));
        assert_eq!(verify(&[], None).unwrap().head, Head::EMPTY);
    }

    #[test]
    fn no_field_can_be_changed() {
        let rows = chain(3);
        let change: [fn(&mut AuditEvent); 9] = [
            |event| event.at_unix_secs += 1,
            |event| event.kind = AuditKind::Open,
            |event| event.actor = None,
            |event| event.environment = Some("prod".parse().unwrap()),
            |event| event.registration = None,
            |event| event.stream = event.what.take(),
            |event| event.what = Some(String::new()),
            |event| event.sent_bytes = event.received_bytes.take(),
            |event| event.count = Some(0),
        ];
        for change in change {
            let mut rows = rows.clone();
            change(&mut rows[1].event);
            assert_eq!(verify(&rows, None), Err(Broken::Edited { seq: 2 }));
            // with a hash that fits, the next row does not
            let forged = rows[1].event.clone().chain((&rows[0]).into());
            rows[1] = forged;
            assert_eq!(verify(&rows, None), Err(Broken::Unchained { seq: 3 }));
        }
    }

    #[test]
    fn what_is_missing_moved_or_cut_off_is_named() {
        let rows = chain(6);
        let without = |seqs: &[u64]| {
            let rows = rows.iter().filter(|row| !seqs.contains(&row.seq));
            rows.cloned().collect::<Vec<_>>()
        };
        let head = Some(Head::from(&rows[5]));
        assert_eq!(verify(&without(&[3, 4]), None), Err(Broken::Missing { from: 3, to: 4 }));
        assert_eq!(verify(&without(&[1]), None), Err(Broken::Beginning { first: 2 }));
        assert!(verify(&without(&[5, 6]), None).is_ok(), "nobody can tell without a head");
        assert_eq!(verify(&without(&[5, 6]), head), Err(Broken::CutOff { head: 6, last: 4 }));

        let mut swapped = rows.clone();
        swapped.swap(2, 3);
        assert_eq!(verify(&swapped, None), Err(Broken::Missing { from: 3, to: 3 }));
        let mut twice = rows.clone();
        twice.insert(2, rows[1].clone());
        assert_eq!(verify(&twice, None), Err(Broken::Order { seq: 2, after: 2 }));
        // contents that changed places keep their hashes and lose their numbers
        let mut exchanged = rows.clone();
        let (two, three) = (rows[1].event.clone(), rows[2].event.clone());
        (exchanged[1].event, exchanged[2].event) = (three, two);
        assert_eq!(verify(&exchanged, None), Err(Broken::Edited { seq: 2 }));
        // a chain made anew
        let anew: Vec<_> = {
            let mut head = Head::EMPTY;
            let make = |n: u64| {
                let row = event(n + 10).chain(head);
                head = (&row).into();
                row
            };
            (1..=6).map(make).collect()
        };
        assert!(verify(&anew, None).is_ok());
        assert_eq!(verify(&anew, head), Err(Broken::Replaced { seq: 6 }));
    }

    #[test]
    fn a_checkpoint_vouches_for_what_was_removed() {
        let mut rows = chain(6);
        let checkpoint = |through: &AuditRow, after: &AuditRow| {
            AuditEvent {
                what: Some(through.hash.to_string()),
                count: Some(through.seq),
                ..AuditEvent::new(AuditKind::Checkpoint, 500)
            }
            .chain(after.into())
        };
        rows.push(checkpoint(&rows[3], &rows[5]));
        assert!(verify(&rows, None).is_ok(), "not removed yet");
        let intact = verify(&rows[4..], None).unwrap();
        assert_eq!((intact.first, intact.rows), (5, 3));
        // more was removed than that, or less
        assert_eq!(verify(&rows[5..], None), Err(Broken::Beginning { first: 6 }));
        assert_eq!(verify(&rows[3..], None), Err(Broken::Beginning { first: 4 }));
        assert_eq!(
            verify(&rows[4..], Some((&rows[1]).into())),
            Err(Broken::HeadTooOld { head: 2 })
        );
        // everything but the checkpoint itself
        let all = checkpoint(&rows[6], &rows[6]);
        assert!(verify(&[all], None).is_ok());
    }

    #[test]
    fn gaps_add_up_and_heads_are_text() {
        let gap = |n, head| {
            AuditEvent { count: Some(n), ..AuditEvent::new(AuditKind::Gap, 1) }.chain(head)
        };
        let one = gap(3, Head::EMPTY);
        let two = gap(4, (&one).into());
        let head = Head::from(&two);
        assert_eq!(verify(&[one, two], None).unwrap().lost, 7);
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "7", "7:", "7:00", ":", &format!("x:{}", AuditHash::NONE)] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }
}
