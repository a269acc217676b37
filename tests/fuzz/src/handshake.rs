//! Handshake bytes into both roles of both suites. A message that the peer did
//! not make for this very stream is refused, and the genuine message is still
//! accepted after any number of forged ones.

use std::sync::OnceLock;

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;
use rendez_endpoint::noise::{AwaitingResponse, initiate, respond};
use rendez_proto::limits::NOISE_MESSAGE_MAX_BYTES;
use rendez_proto::profile::{Profile, Suite};
use zeroize::Zeroizing;

use crate::frames::{Patch, patched};
use crate::noise::{executor, orchestrator, prologue};

const AUTHORIZATION: &[u8] = b"auth";

#[derive(Debug, Arbitrary)]
enum Recipe<'a> {
    /// Any bytes as message 1.
    First(&'a [u8]),
    /// A damaged message 1.
    FirstDamaged { patches: Vec<Patch>, cut: u16, tail: &'a [u8] },
    /// A genuine message 1 for another stream.
    FirstSpliced,
    /// Forged messages 2, then the genuine one.
    Second(Vec<Forged<'a>>),
    /// A message 1 with this authorization.
    Whole { authorization: &'a [u8], reject: bool },
}

#[derive(Debug, Arbitrary)]
enum Forged<'a> {
    Bytes(&'a [u8]),
    Damaged { patches: Vec<Patch>, cut: u16 },
}

/// A genuine handshake of one profile, made once.
struct Genuine {
    message_1: Bytes,
    message_2: Bytes,
}

/// Follows one recipe per input. Most use the IK suite, which costs a tenth.
pub fn run(data: &[u8]) {
    let Some((&which, rest)) = data.split_first() else { return };
    let profile = match which % 8 {
        0 => Profile::RendezHybridIkV1,
        1 => Profile::NoiseHybridIkV1,
        _ => Profile::RendezIkV1,
    };
    if let Ok(recipe) = Recipe::arbitrary_take_rest(Unstructured::new(rest)) {
        follow(profile, recipe);
    }
}

fn follow(profile: Profile, recipe: Recipe<'_>) {
    match recipe {
        Recipe::First(bytes) => {
            assert!(!accepts(profile, 0, bytes), "accepted arbitrary bytes as message 1")
        }
        Recipe::FirstDamaged { patches, cut, tail } => {
            let genuine = &genuine(profile).message_1;
            let mut damaged = patched(genuine, &patches);
            damaged.truncate(damaged.len() - usize::from(cut) % damaged.len());
            damaged.extend_from_slice(tail);
            assert_eq!(accepts(profile, 0, &damaged), damaged == *genuine, "damage was accepted");
        }
        Recipe::FirstSpliced => {
            let message = &genuine(profile).message_1;
            assert!(!accepts(profile, 1, message), "another stream's message 1");
            for other in Profile::ALL.into_iter().filter(|other| *other != profile) {
                assert!(!accepts(other, 0, message), "another profile's message 1");
            }
        }
        Recipe::Second(forged) => second(profile, forged),
        Recipe::Whole { authorization, reject } => whole(profile, authorization, reject),
    }
}

fn seed(byte: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([byte; 32])
}

fn start(profile: Profile, authorization: &[u8]) -> Option<(AwaitingResponse, Bytes)> {
    let key = executor().public_for(profile.suite());
    let started = initiate(
        profile.suite(),
        orchestrator(),
        key,
        &prologue(profile, 0),
        authorization,
        seed(3),
    );
    let fits = authorization.len() + message_1_overhead(profile) <= NOISE_MESSAGE_MAX_BYTES;
    assert_eq!(started.is_ok(), fits, "only the length may fail");
    started.ok()
}

/// The overhead in docs/codex-wire.md#noise-channel.
fn message_1_overhead(profile: Profile) -> usize {
    match profile.suite() {
        Suite::HybridIk => 3568,
        Suite::Ik => 96,
    }
}

fn genuine(profile: Profile) -> &'static Genuine {
    static GENUINE: [OnceLock<Genuine>; 3] = [const { OnceLock::new() }; 3];
    let index = Profile::ALL.into_iter().position(|known| known == profile).unwrap_or_default();
    GENUINE[index].get_or_init(|| {
        let (_, message_1) = start(profile, AUTHORIZATION).expect("it is short");
        let message_2 = answer(profile, &message_1);
        Genuine { message_1, message_2 }
    })
}

fn answer(profile: Profile, message_1: &[u8]) -> Bytes {
    let responder = respond(profile.suite(), executor(), &prologue(profile, 0), message_1, seed(4))
        .expect("a genuine message 1");
    assert_eq!(responder.peer(), orchestrator().public_for(profile.suite()));
    let proof = responder.pending().authorize();
    responder.authorize(proof).expect("the right key").1
}

fn accepts(profile: Profile, stream: u8, message: &[u8]) -> bool {
    respond(profile.suite(), executor(), &prologue(profile, stream), message, seed(4)).is_ok()
}

fn second(profile: Profile, forged: Vec<Forged<'_>>) {
    let genuine = genuine(profile);
    let Some((mut waiting, message_1)) = start(profile, AUTHORIZATION) else { return };
    assert_eq!(message_1, genuine.message_1, "one seed, one message");
    for forged in forged.into_iter().take(4) {
        let bytes = match forged {
            Forged::Bytes(bytes) => bytes.to_vec(),
            Forged::Damaged { patches, cut } => {
                let mut damaged = patched(&genuine.message_2, &patches);
                damaged.truncate(damaged.len() - usize::from(cut) % damaged.len());
                damaged
            }
        };
        if bytes == genuine.message_2 {
            continue;
        }
        let refused = waiting.finish(&bytes).expect_err("a forged message 2");
        waiting = refused.state.expect("a forged message must not end a handshake");
    }
    let keys = waiting.finish(&genuine.message_2).expect("the true message after forged ones");
    assert!(keys.payload.is_empty());
}

fn whole(profile: Profile, authorization: &[u8], reject: bool) {
    let Some((waiting, message_1)) = start(profile, authorization) else { return };
    let read = respond(profile.suite(), executor(), &prologue(profile, 0), &message_1, seed(4));
    let responder = read.expect("a genuine message 1");
    assert_eq!(responder.authorization(), authorization);
    if reject {
        let message_2 = responder.reject().expect("no primitive fails");
        let keys = waiting.finish(&message_2).expect("a genuine message 2");
        assert!(!keys.payload.is_empty());
        return;
    }
    let proof = responder.pending().authorize();
    let (executor, message_2) = responder.authorize(proof).expect("the right key");
    let orchestrator = waiting.finish(&message_2).expect("a genuine message 2");
    for (from, to) in
        [(&executor.sealer, &orchestrator.opener), (&orchestrator.sealer, &executor.opener)]
    {
        let record = from.seal(1, b"ad", authorization).expect("it is short");
        assert_eq!(to.open(1, b"ad", record.clone()).expect("our own record"), authorization);
        assert!(to.open(2, b"ad", record).is_err(), "another nonce");
    }
}
