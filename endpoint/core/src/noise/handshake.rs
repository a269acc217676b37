//! The states of a handshake as types. A transition consumes its state, and
//! each state holds only what is known by then.
//!
//! A handshake cannot be completed twice, nor without an [`Authorized`]. This
//! is the correct use:
//!
//! ```
//! # use rendez_endpoint::noise::*;
//! # fn once(waiting: AwaitingAuthorization) {
//! let authorized = waiting.pending().authorize();
//! # let _ =
//! waiting.authorize(authorized);
//! # }
//! # fn fresh(waiting: AwaitingResponse, message: &[u8]) {
//! let first = waiting.finish(message);
//! # }
//! ```
//! These do not compile:
//!
//! ```compile_fail,E0382
//! # use rendez_endpoint::noise::*;
//! fn twice(waiting: AwaitingAuthorization, a: Authorized, b: Authorized) {
//!     waiting.authorize(a);
//!     waiting.authorize(b); // consumed
//! }
//! ```
//! ```compile_fail,E0451
//! # use rendez_endpoint::noise::*;
//! let forged = Authorized { fingerprint: [0; 32] }; // the field is private
//! ```
//! ```compile_fail,E0451
//! # use rendez_endpoint::noise::*;
//! let forged = PendingHandshake { fingerprint: [0; 32] }; // the field is private
//! ```
//! ```compile_fail,E0382
//! # use rendez_endpoint::noise::*;
//! fn two_of_one(pending: PendingHandshake) -> [Authorized; 2] {
//!     [pending.authorize(), pending.authorize()] // consumed
//! }
//! ```
//! ```compile_fail,E0382
//! # use rendez_endpoint::noise::*;
//! fn stale(waiting: AwaitingResponse, message: &[u8]) {
//!     let first = waiting.finish(message);
//!     let second = waiting.finish(message); // consumed; `FinishError` returns the state
//! }
//! ```

use std::fmt;

use bytes::Bytes;
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Suite;
use zeroize::Zeroizing;

use super::error::HandshakeError;
use super::hybrid_ik::HybridIkHandshake;
use super::identity::Identity;
use super::ik::IkHandshake;
use super::prologue::Prologue;
use super::seal::{Opener, Sealer};

/// The payload of message 2 when the registry did not accept the executor's
/// credentials (docs/codex-wire.md#validate).
pub const AUTHENTICATION_REJECTED: &[u8] = b"codex-registry-authentication-rejected/v1";

/// The registry's consent to one peer key, which
/// [`AwaitingAuthorization::authorize`] requires. Only
/// [`PendingHandshake::authorize`] makes one.
#[derive(Debug)]
pub struct Authorized {
    fingerprint: [u8; 32],
}

/// A handshake whose peer has proved its key and waits for the registry's
/// verdict. Only [`AwaitingAuthorization::pending`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct PendingHandshake {
    fingerprint: [u8; 32],
}

impl PendingHandshake {
    /// Records the registry's consent. Call this only after the registry has
    /// authorized the peer key of this very handshake.
    pub fn authorize(self) -> Authorized {
        Authorized { fingerprint: self.fingerprint }
    }
}

/// The result of a completed handshake.
#[derive(Debug)]
pub struct Established {
    /// Seals what we send.
    pub sealer: Sealer,
    /// Opens what the peer sent.
    pub opener: Opener,
    /// The payload of message 2: empty if the responder accepted.
    pub payload: Bytes,
}

/// Starts a handshake. Returns the next state and message 1.
///
/// `authorization` is encrypted to the responder's static key. `seed` is 32
/// uniformly random bytes that are used for no other handshake.
///
/// # Errors
/// [`HandshakeError::WrongSuite`] or [`HandshakeError::InvalidPeerKey`] for the
/// peer's key; [`HandshakeError::TooLong`] for the authorization.
pub fn initiate(
    suite: Suite,
    me: &Identity,
    peer: &PublicKey,
    prologue: &Prologue,
    authorization: &[u8],
    seed: Zeroizing<[u8; 32]>,
) -> Result<(AwaitingResponse, Bytes), HandshakeError> {
    let mut noise = match suite {
        Suite::HybridIk => {
            SuiteHandshake::HybridIk(HybridIkHandshake::initiator(me, peer, prologue, seed)?.into())
        }
        Suite::Ik => SuiteHandshake::Ik(IkHandshake::initiator(me, peer, prologue, seed)?),
    };
    let message = noise.write(authorization)?;
    Ok((AwaitingResponse { noise }, message))
}

/// Reads message 1. `seed` is as in [`initiate`].
///
/// # Errors
/// [`HandshakeError`] if the message is not valid here; no state is kept.
pub fn respond(
    suite: Suite,
    me: &Identity,
    prologue: &Prologue,
    message: &[u8],
    seed: Zeroizing<[u8; 32]>,
) -> Result<AwaitingAuthorization, HandshakeError> {
    let mut noise = match suite {
        Suite::HybridIk => {
            SuiteHandshake::HybridIk(HybridIkHandshake::responder(me, prologue, seed)?.into())
        }
        Suite::Ik => SuiteHandshake::Ik(IkHandshake::responder(me, prologue, seed)?),
    };
    let authorization = noise.read(message)?;
    let peer = match &noise {
        SuiteHandshake::HybridIk(noise) => noise.peer()?,
        SuiteHandshake::Ik(noise) => noise.peer()?,
    };
    Ok(AwaitingAuthorization { noise, peer, authorization })
}

/// An initiator that has sent message 1.
pub struct AwaitingResponse {
    noise: SuiteHandshake,
}

/// Message 2 was not accepted. A relay can damage any message, so the handshake
/// may wait for another one.
#[derive(Debug)]
pub struct FinishError {
    /// The state before the message; `None` if the handshake cannot continue.
    pub state: Option<AwaitingResponse>,
    /// The reason.
    pub error: HandshakeError,
}

impl AwaitingResponse {
    /// Reads message 2.
    ///
    /// # Errors
    /// [`FinishError`] returns the state.
    pub fn finish(self, message: &[u8]) -> Result<Established, Box<FinishError>> {
        let mut noise = self.noise;
        let before = match &noise {
            SuiteHandshake::HybridIk(noise) => Some(noise.clone()),
            SuiteHandshake::Ik(_) => None, // snow restores its state
        };
        match noise.read(message) {
            Ok(payload) => noise
                .establish(true, payload)
                .map_err(|error| Box::new(FinishError { state: None, error })),
            Err(error) => {
                let noise = before.map_or(noise, SuiteHandshake::HybridIk);
                Err(Box::new(FinishError { state: Some(AwaitingResponse { noise }), error }))
            }
        }
    }
}

/// A responder that has read message 1 and has not answered. Dropping it
/// refuses the peer.
pub struct AwaitingAuthorization {
    noise: SuiteHandshake,
    peer: PublicKey,
    authorization: Bytes,
}

impl AwaitingAuthorization {
    /// The initiator's static key, whose secret half the initiator proved to
    /// hold.
    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// The payload of message 1, which only the registry interprets.
    pub fn authorization(&self) -> &Bytes {
        &self.authorization
    }

    /// Returns the handshake as the registry's verdict on [`peer`](Self::peer)
    /// needs it.
    pub fn pending(&self) -> PendingHandshake {
        PendingHandshake { fingerprint: self.peer.fingerprint() }
    }

    /// Completes the handshake. Returns the keys, and message 2 to send.
    ///
    /// # Errors
    /// [`HandshakeError::WrongPeer`] if `authorized` belongs to another key.
    pub fn authorize(
        mut self,
        authorized: Authorized,
    ) -> Result<(Established, Bytes), HandshakeError> {
        if authorized.fingerprint != self.peer.fingerprint() {
            return Err(HandshakeError::WrongPeer);
        }
        let message = self.noise.write(&[])?;
        Ok((self.noise.establish(false, Bytes::new())?, message))
    }

    /// Returns a message 2 with the payload [`AUTHENTICATION_REJECTED`]; no
    /// keys are kept.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`] if a primitive failed.
    pub fn reject(mut self) -> Result<Bytes, HandshakeError> {
        self.noise.write(AUTHENTICATION_REJECTED)
    }
}

/// A handshake in progress, of either suite.
enum SuiteHandshake {
    HybridIk(Box<HybridIkHandshake>),
    Ik(IkHandshake),
}

impl SuiteHandshake {
    fn write(&mut self, payload: &[u8]) -> Result<Bytes, HandshakeError> {
        match self {
            SuiteHandshake::HybridIk(noise) => noise.write(payload),
            SuiteHandshake::Ik(noise) => noise.write(payload),
        }
    }

    fn read(&mut self, message: &[u8]) -> Result<Bytes, HandshakeError> {
        match self {
            SuiteHandshake::HybridIk(noise) => noise.read(message),
            SuiteHandshake::Ik(noise) => noise.read(message),
        }
    }

    fn establish(self, initiator: bool, payload: Bytes) -> Result<Established, HandshakeError> {
        let keys = match self {
            SuiteHandshake::HybridIk(noise) => noise.keys()?,
            SuiteHandshake::Ik(noise) => noise.keys()?,
        };
        let (ours, theirs) = if initiator {
            (keys.initiator_to_responder, keys.responder_to_initiator)
        } else {
            (keys.responder_to_initiator, keys.initiator_to_responder)
        };
        Ok(Established { sealer: Sealer::new(&ours)?, opener: Opener::new(&theirs)?, payload })
    }
}

impl fmt::Debug for AwaitingResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwaitingResponse(redacted)")
    }
}

impl fmt::Debug for AwaitingAuthorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AwaitingAuthorization({:?})", self.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::IdentitySeed;
    use rendez_proto::profile::Profile;
    use sha2::{Digest as _, Sha256};

    fn identity(byte: u8) -> Identity {
        Identity::from_seed(&IdentitySeed::from_bytes([byte; 96]))
    }

    fn prologue(profile: Profile, stream: &str) -> Prologue {
        Prologue::new(
            profile,
            &"env-abc".parse().unwrap(),
            &"reg-1".parse().unwrap(),
            &stream.parse().unwrap(),
        )
    }

    fn seed(byte: u8) -> Zeroizing<[u8; 32]> {
        Zeroizing::new([byte; 32])
    }

    struct Pair {
        waiting: AwaitingResponse,
        responder: AwaitingAuthorization,
        message_1: Bytes,
    }

    fn pair(profile: Profile, authorization: &[u8]) -> Pair {
        pair_of(profile, identity(1), authorization)
    }

    fn pair_of(profile: Profile, me: Identity, authorization: &[u8]) -> Pair {
        let peer = identity(2);
        let (suite, prologue) = (profile.suite(), prologue(profile, "s"));
        let key = peer.public_for(suite);
        let (waiting, message_1) =
            initiate(suite, &me, key, &prologue, authorization, seed(3)).unwrap();
        let responder = respond(suite, &peer, &prologue, &message_1, seed(4)).unwrap();
        assert_eq!(responder.peer(), me.public_for(suite));
        assert_eq!(responder.authorization(), authorization);
        Pair { waiting, responder, message_1 }
    }

    fn authorized(responder: &AwaitingAuthorization) -> Authorized {
        responder.pending().authorize()
    }

    #[test]
    fn suites_agree_on_keys_in_both_directions() {
        for profile in Profile::ALL {
            let Pair { waiting, responder, .. } = pair(profile, b"auth-1");
            let proof = authorized(&responder);
            let (executor, message_2) = responder.authorize(proof).unwrap();
            let orchestrator = waiting.finish(&message_2).unwrap();
            assert!(orchestrator.payload.is_empty());
            for (from, to) in
                [(&executor.sealer, &orchestrator.opener), (&orchestrator.sealer, &executor.opener)]
            {
                let record = from.seal(7, b"ad", b"hello").unwrap();
                assert_eq!(to.open(7, b"ad", record).unwrap(), "hello");
            }
            let record = executor.sealer.seal(0, b"", b"x").unwrap();
            assert_eq!(
                executor.opener.open(0, b"", record),
                Err(super::super::SealError),
                "each direction has its own key"
            );
        }
    }

    /// The lengths in docs/codex-wire.md#noise-channel.
    #[test]
    fn handshake_message_lengths_match_the_contract() {
        for authorization in [&b""[..], &[b'a'; 100], &[b'a'; 4096]] {
            let Pair { responder, message_1, .. } = pair(Profile::NoiseHybridIkV1, authorization);
            assert_eq!(message_1.len(), 3568 + authorization.len());
            let proof = authorized(&responder);
            assert_eq!(responder.authorize(proof).unwrap().1.len(), 3424);
        }
        let Pair { responder, message_1, .. } = pair(Profile::RendezIkV1, b"");
        assert_eq!(message_1.len(), 96);
        let proof = authorized(&responder);
        assert_eq!(responder.authorize(proof).unwrap().1.len(), 48);
    }

    /// The same seed gives the same transcript: the bytes of every suite are
    /// frozen. The code that made the hybrid ones was tested against clatter's
    /// own components, in both roles.
    #[test]
    fn transcripts_match_frozen_bytes() {
        let digest = |bytes: &[u8]| -> String {
            Sha256::digest(bytes)[..8].iter().map(|b| format!("{b:02x}")).collect()
        };
        for (profile, golden) in [
            (
                Profile::NoiseHybridIkV1,
                ["70fc7a3953195da2", "0db7509dc29c3632", "9a2e96bcfec51627"],
            ),
            (
                Profile::RendezHybridIkV1,
                ["7813ae58260d3b88", "397567bbbf6edf4e", "9a2e96bcfec51627"],
            ),
            (Profile::RendezIkV1, ["460cb8e472280921", "fcdb7f750bc78533", "573a9dc5264ee7e3"]),
        ] {
            let Pair { responder, message_1, .. } = pair(profile, b"auth-1");
            let proof = authorized(&responder);
            let (keys, message_2) = responder.authorize(proof).unwrap();
            let record = keys.sealer.seal(0, b"", b"hello").unwrap();
            assert_eq!(
                [digest(&message_1), digest(&message_2), digest(&record)],
                golden.map(str::to_owned),
                "{profile}"
            );
        }
    }

    #[test]
    fn genuine_message_2_counts_after_damaged_ones() {
        for profile in Profile::ALL {
            let Pair { mut waiting, responder, .. } = pair(profile, b"");
            let proof = authorized(&responder);
            let (_, message_2) = responder.authorize(proof).unwrap();
            for at in [0, message_2.len() / 2, message_2.len() - 1] {
                let mut damaged = message_2.to_vec();
                damaged[at] ^= 1;
                waiting = waiting.finish(&damaged).unwrap_err().state.unwrap();
            }
            for len in [0, 1, message_2.len() - 1] {
                waiting = waiting.finish(&message_2[..len]).unwrap_err().state.unwrap();
            }
            let huge = vec![0; 70_000];
            let refused = waiting.finish(&huge).unwrap_err();
            assert_eq!(refused.error, HandshakeError::TooLong);
            assert!(refused.state.unwrap().finish(&message_2).is_ok(), "{profile}");
        }
    }

    #[test]
    fn any_difference_in_inputs_breaks_the_handshake() {
        for profile in Profile::ALL {
            let suite = profile.suite();
            let (executor, message_1) = (identity(2), pair(profile, b"").message_1);
            let read = |me: &Identity, prologue: &Prologue, message: &[u8]| {
                respond(suite, me, prologue, message, seed(9)).map(drop)
            };
            let right = prologue(profile, "s");
            assert_eq!(read(&executor, &right, &message_1), Ok(()));
            for wrong in [
                read(&executor, &prologue(profile, "t"), &message_1),
                read(&identity(5), &right, &message_1),
                read(&executor, &right, &message_1[..message_1.len() - 1]),
                read(&executor, &right, &[&message_1[..], b"x"].concat()),
                read(&executor, &right, &[]),
            ] {
                assert_eq!(wrong, Err(HandshakeError::NotForUs), "{profile}");
            }
            assert_eq!(read(&executor, &right, &[0; 70_000]), Err(HandshakeError::TooLong));
            for at in (0..message_1.len()).step_by(61) {
                let mut damaged = message_1.to_vec();
                damaged[at] ^= 0x40;
                assert!(read(&executor, &right, &damaged).is_err(), "{profile}: byte {at}");
            }
        }
        let stripped = prologue(Profile::NoiseHybridIkV1, "s");
        let message_1 = pair(Profile::RendezHybridIkV1, b"").message_1;
        let downgraded =
            respond(Suite::HybridIk, &identity(2), &stripped, &message_1, seed(9)).map(drop);
        assert_eq!(downgraded, Err(HandshakeError::NotForUs), "a profile cannot be exchanged");
    }

    #[test]
    fn authorization_of_another_key_is_refused() {
        let profile = Profile::RendezHybridIkV1;
        let responder = pair(profile, b"").responder;
        let other = pair_of(profile, identity(7), b"").responder;
        assert_eq!(
            responder.authorize(authorized(&other)).map(drop),
            Err(HandshakeError::WrongPeer)
        );
    }

    #[test]
    fn rejected_credentials_arrive_as_payload() {
        for profile in Profile::ALL {
            let Pair { waiting, responder, .. } = pair(profile, b"");
            let answer = waiting.finish(&responder.reject().unwrap()).unwrap();
            assert_eq!(answer.payload, AUTHENTICATION_REJECTED);
        }
    }

    #[test]
    fn unsuitable_peer_key_is_an_error() {
        let (me, profile) = (identity(1), Profile::RendezHybridIkV1);
        let ik_key = identity(2).public_for(Suite::Ik).clone();
        let bad = PublicKey::hybrid(*ik_key.x25519(), Box::new([0xff; 1184]));
        let start = |key: &PublicKey, authorization: &[u8]| {
            initiate(profile.suite(), &me, key, &prologue(profile, "s"), authorization, seed(1))
                .map(drop)
        };
        assert_eq!(start(&ik_key, b""), Err(HandshakeError::WrongSuite));
        assert_eq!(start(&bad, b""), Err(HandshakeError::InvalidPeerKey));
        assert_eq!(start(identity(2).public(), &[0; 65_000]), Err(HandshakeError::TooLong));
    }
}
