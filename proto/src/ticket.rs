//! Signed permissions: one type for every websocket ticket and for the
//! authorization of an orchestrator's key.
//!
//! The registry signs, the relay verifies with the registry's public key, and all
//! others pass the text on unread. A ticket is base64url without
//! padding (one text per byte string) over canonical bytes:
//!
//! ```text
//! offset
//! 0        version, 1 byte: 1
//! 1        purpose, 1 byte: 1 executor, 2 orchestrator, 3 key authorization
//! 2        eight fields, each [length: u16 big endian][bytes]
//!            environment   UTF-8, an EnvironmentId
//!            registration  UTF-8, a RegistrationId
//!            generation    8 bytes, big endian
//!            subject       UTF-8, the requester: the id of a token or another
//!                          subject, and ~<seconds since 1970> if the websocket
//!                          that it opens ends then
//!            profile       UTF-8, a profile's name
//!            expires       8 bytes, big endian, seconds since 1970; empty: never
//!            id            16 bytes, random, for tickets that are used once
//!            binding       32 bytes; zero in an executor's ticket
//! end-64   Ed25519 signature over domain(purpose) || everything before it
//! ```
//!
//! Invariants: nothing follows the fields, so that equal claims have equal
//! bytes; there is no algorithm field, so there is nothing to downgrade; each
//! purpose has a signature domain of its own, so that a ticket for one never
//! verifies as another, regardless of its purpose byte.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{SIGNATURE_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use crate::fields::{self, Reader};
use crate::ids::{EnvironmentId, Generation, REGISTRATION_ID_MAX_BYTES, RegistrationId};
use crate::keys::PublicKey;
use crate::limits;
use crate::profile::Profile;

/// Longest ticket in bytes, as text in a URL.
pub const TICKET_MAX_BYTES: usize = 2048;

const _: () = {
    // a ticket as base64: header, fields with their lengths, signature
    assert!(
        (2 + 8 * 2
            + limits::ENVIRONMENT_ID_MAX_BYTES
            + REGISTRATION_ID_MAX_BYTES
            + limits::TICKET_SUBJECT_MAX_BYTES
            + (8 + 32 + 8 + 16 + 32)
            + 64)
            .div_ceil(3)
            * 4
            <= TICKET_MAX_BYTES
    );
    assert!(TICKET_MAX_BYTES <= limits::AUTHORIZATION_MAX_BYTES);
};

const VERSION: u8 = 1;
/// Bytes of [`Claims::id`].
pub const ID_BYTES: usize = 16;
/// Bytes of [`Claims::binding`].
pub const BINDING_BYTES: usize = 32;

/// Declares a text that is a bearer secret: it goes into JSON in clear, never
/// into `Debug`, and is wiped when dropped.
macro_rules! secret_text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(secrecy::SecretString);

        impl $name {
            /// The text itself; not for logs.
            pub fn expose(&self) -> &str {
                secrecy::ExposeSecret::expose_secret(&self.0)
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.expose())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from).map(Self::from)
            }
        }
    };
}
pub(crate) use secret_text;

/// A ticket or a key authorization as text: opaque to all but the registry
/// that issued it, which may not be ours. At most
/// [`limits::AUTHORIZATION_MAX_BYTES`].
#[derive(Clone)]
pub struct TicketText(SecretString);

impl TicketText {
    /// The text itself; not for logs.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// A text that is too long for a ticket or an authorization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ticket has {len} bytes, at most {max} are allowed", max = limits::AUTHORIZATION_MAX_BYTES)]
pub struct TicketTooLong {
    /// Its length in bytes.
    pub len: usize,
}

impl TryFrom<String> for TicketText {
    type Error = TicketTooLong;
    fn try_from(text: String) -> Result<Self, TicketTooLong> {
        if text.len() > limits::AUTHORIZATION_MAX_BYTES {
            return Err(TicketTooLong { len: text.len() });
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for TicketText {
    type Err = TicketTooLong;
    fn from_str(text: &str) -> Result<Self, TicketTooLong> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Debug for TicketText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketText(redacted)")
    }
}

impl Serialize for TicketText {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for TicketText {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::try_from(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// The permission of a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To open the executor's websocket, while its registration is current.
    Executor,
    /// To open one orchestrator's websocket, once.
    Orchestrator,
    /// To complete one handshake between two keys.
    KeyAuthorization,
}

impl Purpose {
    const ALL: [Purpose; 3] = [Purpose::Executor, Purpose::Orchestrator, Purpose::KeyAuthorization];

    fn code(self) -> u8 {
        match self {
            Purpose::Executor => 1,
            Purpose::Orchestrator => 2,
            Purpose::KeyAuthorization => 3,
        }
    }

    /// The prefix of the signed bytes: it separates purposes, and tickets from
    /// anything else that the key may ever sign.
    fn domain(self) -> &'static [u8] {
        match self {
            Purpose::Executor => b"rendez/ticket/v1/executor\0",
            Purpose::Orchestrator => b"rendez/ticket/v1/orchestrator\0",
            Purpose::KeyAuthorization => b"rendez/ticket/v1/key-authorization\0",
        }
    }
}

/// The content of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The permission.
    pub purpose: Purpose,
    /// The environment that it is for.
    pub environment: EnvironmentId,
    /// The registration that it was issued under.
    pub registration: RegistrationId,
    /// That registration's place in the environment's order.
    pub generation: Generation,
    /// The requester, in a form that only the registry reads: the id of a token or
    /// another subject, and the end of the websocket that it opens, if it has one.
    /// Not a secret.
    pub subject: String,
    /// The profile that was chosen.
    pub profile: Profile,
    /// When it ends, in seconds since 1970; `None` for an executor's, which
    /// ends with its registration.
    pub expires_at_unix_secs: Option<u64>,
    /// Random; names this ticket where it may be used only once.
    pub id: [u8; ID_BYTES],
    /// [`binding`] of the two keys for a key authorization, the fingerprint of
    /// the orchestrator's key for its ticket, zero otherwise.
    pub binding: [u8; BINDING_BYTES],
}

/// Why a ticket was refused. Its bearer is at fault, except for `Expired`: a slow
/// network may cause it too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TicketError {
    /// Not a valid ticket of this version.
    #[error("the ticket is malformed")]
    Malformed,
    /// Not signed by this key for the purpose that it names.
    #[error("the ticket's signature is not this registry's")]
    BadSignature,
    /// Its time is over.
    #[error("the ticket is expired")]
    Expired,
    /// A genuine ticket for something else.
    #[error("the ticket is for another purpose")]
    WrongPurpose,
}

/// Ties a key authorization to the two keys it is for: SHA-256 over the
/// orchestrator key's fingerprint, then the executor key's, both in the form
/// of the chosen profile's suite.
pub fn binding(orchestrator: &PublicKey, executor: &PublicKey) -> [u8; BINDING_BYTES] {
    let mut hash = Sha256::new();
    hash.update(orchestrator.fingerprint());
    hash.update(executor.fingerprint());
    hash.finalize().into()
}

/// Issuing and verifying.
#[derive(Debug)]
pub enum Ticket {}

impl Ticket {
    /// Signs `claims`. Only the registry has the key, and calls this.
    ///
    /// # Errors
    /// [`SubjectTooLong`] if the subject is over [`limits::TICKET_SUBJECT_MAX_BYTES`].
    pub fn issue(claims: &Claims, key: &SigningKey) -> Result<TicketText, SubjectTooLong> {
        if claims.subject.len() > limits::TICKET_SUBJECT_MAX_BYTES {
            return Err(SubjectTooLong);
        }
        let mut bytes = encode(claims);
        let signature = key.sign(&signed(claims.purpose, &bytes));
        bytes.extend_from_slice(&signature.to_bytes());
        Ok(TicketText(URL_SAFE_NO_PAD.encode(bytes).into()))
    }

    /// Checks a ticket at `now_unix_secs` and returns its claims. The caller checks
    /// whether it was used before and whether its registration is current.
    ///
    /// # Errors
    /// See [`TicketError`]; the first that applies, in that order, except that
    /// the purpose is compared before the time.
    pub fn verify(
        text: &str,
        key: &VerifyingKey,
        purpose: Purpose,
        now_unix_secs: u64,
    ) -> Result<Claims, TicketError> {
        if text.len() > TICKET_MAX_BYTES {
            return Err(TicketError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TicketError::Malformed)?;
        let (body, signature) =
            bytes.split_last_chunk::<SIGNATURE_LENGTH>().ok_or(TicketError::Malformed)?;
        let claims = decode(body).ok_or(TicketError::Malformed)?;
        key.verify_strict(&signed(claims.purpose, body), &Signature::from_bytes(signature))
            .map_err(|_| TicketError::BadSignature)?;
        if claims.purpose != purpose {
            return Err(TicketError::WrongPurpose);
        }
        match claims.expires_at_unix_secs {
            Some(end) if now_unix_secs >= end => Err(TicketError::Expired),
            _ => Ok(claims),
        }
    }
}

/// The subject of the claims is too long for a ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ticket's subject has over {} bytes", limits::TICKET_SUBJECT_MAX_BYTES)]
pub struct SubjectTooLong;

fn signed(purpose: Purpose, body: &[u8]) -> Vec<u8> {
    [purpose.domain(), body].concat()
}

fn encode(claims: &Claims) -> Vec<u8> {
    let expires = claims.expires_at_unix_secs.map(u64::to_be_bytes);
    let fields: [&[u8]; 8] = [
        claims.environment.as_str().as_bytes(),
        claims.registration.as_str().as_bytes(),
        &claims.generation.0.to_be_bytes(),
        claims.subject.as_bytes(),
        claims.profile.name().as_bytes(),
        expires.as_ref().map_or(&[], |end| end.as_slice()),
        &claims.id,
        &claims.binding,
    ];
    // ids and the subject are bounded far below 2^16; an assertion above relates
    // them to TICKET_MAX_BYTES
    fields::encode(VERSION, claims.purpose.code(), &fields)
}

fn decode(body: &[u8]) -> Option<Claims> {
    let (purpose, mut fields) = Reader::new(body, VERSION)?;
    let claims = Claims {
        purpose: Purpose::ALL.into_iter().find(|known| known.code() == purpose)?,
        environment: fields.parse()?,
        registration: fields.parse()?,
        generation: Generation(fields.number()?),
        subject: fields
            .text()
            .filter(|subject| subject.len() <= limits::TICKET_SUBJECT_MAX_BYTES)?
            .to_owned(),
        profile: fields.parse()?,
        expires_at_unix_secs: match fields.bytes()? {
            [] => None,
            end => Some(u64::from_be_bytes(end.try_into().ok()?)),
        },
        id: fields.array()?,
        binding: fields.array()?,
    };
    fields.end().map(|()| claims)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    fn claims(purpose: Purpose) -> Claims {
        Claims {
            purpose,
            environment: "env-abc".parse().unwrap(),
            registration: "reg-1".parse().unwrap(),
            generation: Generation(3),
            subject: "00112233aabbccdd".to_owned(),
            profile: Profile::RendezHybridIkV1,
            expires_at_unix_secs: Some(1_800_000_060),
            id: [0xa1; ID_BYTES],
            binding: [0xb2; BINDING_BYTES],
        }
    }

    fn verify(text: &str, purpose: Purpose, now: u64) -> Result<Claims, TicketError> {
        Ticket::verify(text, &key().verifying_key(), purpose, now)
    }

    /// Layout and signature were also made with another Ed25519 implementation.
    const GOLDEN: &str = "\
        AQIAB2Vudi1hYmMABXJlZy0xAAgAAAAAAAAAAwAQMDAxMTIyMzNhYWJiY2NkZAATcmVuZG\
        V6X2h5YnJpZF9pa192MQAIAAAAAGtJ0jwAEKGhoaGhoaGhoaGhoaGhoaEAILKysrKysrKy\
        srKysrKysrKysrKysrKysrKysrKysrKyhpFxx7oJE8FkJvF1uAb_1s32DAgxMhxyQ9X0KZ\
        PZqEsL_p-hFVZcN_FOF2-b4_ndYnyufdW0bvtaXZt2RMtAAw";

    #[test]
    fn bytes_are_stable() {
        let ticket = Ticket::issue(&claims(Purpose::Orchestrator), &key()).unwrap();
        assert_eq!(ticket.expose(), GOLDEN);
        let read = verify(GOLDEN, Purpose::Orchestrator, 1_800_000_059).unwrap();
        assert_eq!(read, claims(Purpose::Orchestrator));
    }

    #[test]
    fn ticket_without_expiry_never_expires() {
        let claims = Claims { expires_at_unix_secs: None, ..claims(Purpose::Executor) };
        let ticket = Ticket::issue(&claims, &key()).unwrap();
        assert_eq!(verify(ticket.expose(), Purpose::Executor, u64::MAX), Ok(claims));
    }

    #[test]
    fn time_purpose_and_key_are_checked() {
        use TicketError::*;
        let end = 1_800_000_060;
        assert_eq!(verify(GOLDEN, Purpose::Orchestrator, end), Err(Expired));
        for other in [Purpose::Executor, Purpose::KeyAuthorization] {
            assert_eq!(verify(GOLDEN, other, end - 1), Err(WrongPurpose));
            // the purpose is checked first, so an expired ticket reveals nothing more
            assert_eq!(verify(GOLDEN, other, end), Err(WrongPurpose));
        }
        let stranger = SigningKey::from_bytes(&[8; 32]).verifying_key();
        assert_eq!(Ticket::verify(GOLDEN, &stranger, Purpose::Orchestrator, 0), Err(BadSignature));
    }

    /// The purpose byte alone must not turn one kind into another.
    #[test]
    fn purposes_have_separate_signatures() {
        let mut bytes = URL_SAFE_NO_PAD.decode(GOLDEN).unwrap();
        bytes[1] = Purpose::Executor.code();
        let forged = URL_SAFE_NO_PAD.encode(bytes);
        assert_eq!(verify(&forged, Purpose::Executor, 0), Err(TicketError::BadSignature));
    }

    #[test]
    fn malformed_tickets_are_refused() {
        let long = "A".repeat(TICKET_MAX_BYTES + 1);
        let padded = format!("{GOLDEN}=");
        for text in ["", "A", "not base64!", &long, &padded, &GOLDEN[..GOLDEN.len() - 1]] {
            assert_eq!(verify(text, Purpose::Orchestrator, 0), Err(TicketError::Malformed));
        }
        // well signed, but with bytes behind the fields, or of another version
        for change in [|b: &mut Vec<u8>| b.push(0), |b: &mut Vec<u8>| b[0] = 2] {
            let mut body = encode(&claims(Purpose::Orchestrator));
            change(&mut body);
            let signature = key().sign(&signed(Purpose::Orchestrator, &body)).to_bytes();
            let text = URL_SAFE_NO_PAD.encode([body.as_slice(), &signature].concat());
            assert_eq!(verify(&text, Purpose::Orchestrator, 0), Err(TicketError::Malformed));
        }
    }

    #[test]
    fn largest_ticket_fits() {
        let claims = Claims {
            environment: "e".repeat(limits::ENVIRONMENT_ID_MAX_BYTES).parse().unwrap(),
            registration: "r".repeat(REGISTRATION_ID_MAX_BYTES).parse().unwrap(),
            subject: "s".repeat(limits::TICKET_SUBJECT_MAX_BYTES),
            ..claims(Purpose::KeyAuthorization)
        };
        let ticket = Ticket::issue(&claims, &key()).unwrap();
        assert!(ticket.expose().len() <= TICKET_MAX_BYTES);
        assert_eq!(verify(ticket.expose(), Purpose::KeyAuthorization, 0), Ok(claims.clone()));
        let over = Claims { subject: claims.subject + "s", ..claims };
        assert_eq!(Ticket::issue(&over, &key()).unwrap_err(), SubjectTooLong);
    }

    #[test]
    fn binding_depends_on_both_keys_and_their_order() {
        let a = PublicKey::x25519_only([1; 32]);
        let b = PublicKey::x25519_only([2; 32]);
        assert_ne!(binding(&a, &b), binding(&b, &a));
        assert_ne!(binding(&a, &b), binding(&a, &a));
    }

    #[test]
    fn ticket_text_is_bounded_and_hidden() {
        assert!("x".repeat(limits::AUTHORIZATION_MAX_BYTES).parse::<TicketText>().is_ok());
        assert!("x".repeat(limits::AUTHORIZATION_MAX_BYTES + 1).parse::<TicketText>().is_err());
        let text: TicketText = "planted".parse().unwrap();
        assert!(!format!("{text:?}").contains("planted"));
    }

    proptest! {
        #[test]
        fn changed_byte_is_noticed(at in 0_usize..1000, flip in 1_u8..) {
            let mut bytes = URL_SAFE_NO_PAD.decode(GOLDEN).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            let text = URL_SAFE_NO_PAD.encode(bytes);
            let error = verify(&text, Purpose::Orchestrator, 0).unwrap_err();
            prop_assert!(matches!(error, TicketError::Malformed | TicketError::BadSignature));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,300}", bytes: Vec<u8>) {
            prop_assert!(verify(&text, Purpose::Executor, 0).is_err());
            let bytes = URL_SAFE_NO_PAD.encode(bytes);
            prop_assert!(verify(&bytes, Purpose::Executor, 0).is_err());
        }
    }
}
