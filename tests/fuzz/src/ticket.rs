//! [`Ticket::verify`]: only a ticket that the registry signed for this purpose
//! passes, and equal claims have one text.

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Result, Unstructured};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use rendez_proto::ids::Generation;
use rendez_proto::limits::TICKET_SUBJECT_MAX_BYTES;
use rendez_proto::profile::Profile;
use rendez_proto::ticket::{Claims, Purpose, Ticket, TicketError};

use crate::frames::{Patch, patched};

/// A purpose with the domain that its signature covers; part of the format.
const PURPOSES: [(Purpose, &[u8]); 3] = [
    (Purpose::Executor, b"rendez/ticket/v1/executor\0"),
    (Purpose::Orchestrator, b"rendez/ticket/v1/orchestrator\0"),
    (Purpose::KeyAuthorization, b"rendez/ticket/v1/key-authorization\0"),
];

fn key() -> &'static SigningKey {
    static KEY: OnceLock<SigningKey> = OnceLock::new();
    KEY.get_or_init(|| SigningKey::from_bytes(&[7; 32]))
}

#[derive(Debug, Arbitrary)]
enum Recipe<'a> {
    /// Any text.
    Text(&'a str),
    /// Any body, with a genuine signature.
    Signed { purpose: u8, body: &'a [u8] },
    /// A genuine ticket.
    Issued(Parts<'a>),
    /// A genuine ticket with changed characters in its text.
    Respelt { parts: Parts<'a>, patches: Vec<Patch> },
    /// A genuine ticket with changed bytes below the base64.
    Body { parts: Parts<'a>, patches: Vec<Patch> },
}

#[derive(Debug, Arbitrary)]
struct Parts<'a> {
    purpose: u8,
    environment: &'a str,
    registration: &'a str,
    generation: u64,
    subject: &'a str,
    profile: u8,
    expires: Option<u64>,
    id: [u8; 16],
    binding: [u8; 32],
}

/// Follows one recipe per input.
pub fn run(data: &[u8]) {
    let _ = follow(&mut Unstructured::new(data));
}

fn follow(u: &mut Unstructured<'_>) -> Result<()> {
    let now: u64 = u.arbitrary()?;
    match u.arbitrary()? {
        Recipe::Text(text) => {
            for (purpose, _) in PURPOSES {
                assert!(verify(text, purpose, now).is_err(), "a ticket without the key");
            }
        }
        Recipe::Signed { purpose, body } => signed(purpose, body, now),
        Recipe::Issued(parts) => {
            if let Some((claims, text)) = issue(&parts) {
                issued(&claims, &text, now);
            }
        }
        Recipe::Respelt { parts, patches } => {
            if let Some((claims, text)) = issue(&parts)
                && let Ok(changed) = String::from_utf8(patched(text.as_bytes(), &patches))
                && changed != text
            {
                assert!(verify(&changed, claims.purpose, 0).is_err(), "a changed text passed");
            }
        }
        Recipe::Body { parts, patches } => {
            if let Some((claims, text)) = issue(&parts) {
                let bytes = URL_SAFE_NO_PAD.decode(&text).expect("our own ticket");
                let changed = patched(&bytes, &patches);
                if changed != bytes {
                    let changed = URL_SAFE_NO_PAD.encode(changed);
                    assert!(verify(&changed, claims.purpose, 0).is_err(), "changed bytes passed");
                }
            }
        }
    }
    Ok(())
}

fn verify(text: &str, purpose: Purpose, now: u64) -> std::result::Result<Claims, TicketError> {
    Ticket::verify(text, &key().verifying_key(), purpose, now)
}

fn signed(purpose: u8, body: &[u8], now: u64) {
    let (purpose, domain) = PURPOSES[usize::from(purpose) % PURPOSES.len()];
    let signature = key().sign(&[domain, body].concat());
    let text = URL_SAFE_NO_PAD.encode([body, &signature.to_bytes()].concat());
    if let Ok(claims) = verify(&text, purpose, now) {
        let issued = Ticket::issue(&claims, key()).expect("the subject was accepted");
        assert_eq!(issued.expose(), text, "equal claims have two texts");
    }
}

fn issue(parts: &Parts<'_>) -> Option<(Claims, String)> {
    let claims = Claims {
        purpose: PURPOSES[usize::from(parts.purpose) % PURPOSES.len()].0,
        environment: parts.environment.parse().ok()?,
        registration: parts.registration.parse().ok()?,
        generation: Generation(parts.generation),
        subject: parts.subject.to_owned(),
        profile: Profile::ALL[usize::from(parts.profile) % Profile::ALL.len()],
        expires_at_unix_secs: parts.expires,
        id: parts.id,
        binding: parts.binding,
    };
    let issued = Ticket::issue(&claims, key());
    assert_eq!(issued.is_err(), claims.subject.len() > TICKET_SUBJECT_MAX_BYTES);
    let text = issued.ok()?.expose().to_owned();
    Some((claims, text))
}

fn issued(claims: &Claims, text: &str, now: u64) {
    for (purpose, _) in PURPOSES {
        let expected = if purpose != claims.purpose {
            Err(TicketError::WrongPurpose)
        } else if claims.expires_at_unix_secs.is_some_and(|end| now >= end) {
            Err(TicketError::Expired)
        } else {
            Ok(claims.clone())
        };
        assert_eq!(verify(text, purpose, now), expected);
    }
    let stranger = SigningKey::from_bytes(&[8; 32]).verifying_key();
    let foreign = Ticket::verify(text, &stranger, claims.purpose, 0);
    assert_eq!(foreign, Err(TicketError::BadSignature));
}
