//! The handshake's states as types: each holds what its moment knows, and a
//! transition consumes it.
//!
//! A handshake cannot be completed twice, nor without an [`Authorized`]:
//!
//! ```compile_fail,E0382
//! # use rendez_endpoint::noise::*;
//! fn twice(waiting: AwaitingAuthorization, a: Authorized, b: Authorized) {
//!     waiting.authorize(a);
//!     waiting.authorize(b); // consumed
//! }
//! ```
//! ```compile_fail,E0423
//! # use rendez_endpoint::noise::*;
//! let forged = Authorized { fingerprint: [0; 32] }; // the field is private
//! let forged = Authorized([0; 32]);
//! ```
//! ```compile_fail,E0382
//! # use rendez_endpoint::noise::*;
//! fn stale(waiting: AwaitingResponse, message: &[u8]) {
//!     let first = waiting.finish(message);
//!     let second = waiting.finish(message); // only what `Rejected` gives back may try again
//! }
//! ```

use std::fmt;

use bytes::Bytes;
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Suite;
use zeroize::Zeroizing;

use super::seal::{Opener, Sealer};
use super::{Identity, Prologue, hybrid_ik, ik};

/// The payload of message 2 that says: the registry did not accept the
/// executor's credentials (WIRE.md, section 1.3).
pub const AUTHENTICATION_REJECTED: &[u8] = b"codex-registry-authentication-rejected/v1";

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's message is not for this identity, prologue and moment, or
    /// was damaged on the way.
    #[error("the handshake message is not for this identity and stream")]
    NotForUs,
    /// A message above 65,535 bytes, the peer's or ours.
    #[error("the handshake message is longer than Noise allows")]
    TooLong,
    /// The peer's ML-KEM key is not a valid encapsulation key.
    #[error("the peer's public key is not valid")]
    InvalidPeerKey,
    /// The caller gave a key that lacks what the suite needs.
    #[error("the peer's public key does not fit the suite")]
    WrongSuite,
    /// The authorization was given for another key.
    #[error("the authorization is for another peer")]
    WrongPeer,
    /// A primitive failed; none of ours does on inputs of the right length.
    #[error("a cryptographic primitive failed")]
    Crypto,
}

/// The registry's consent to one peer key. The only way to
/// [`AwaitingAuthorization::authorize`].
#[derive(Debug)]
pub struct Authorized {
    fingerprint: [u8; 32],
}

impl Authorized {
    /// Call this only after the registry said yes for exactly this key, as
    /// [`AwaitingAuthorization::peer`] or
    /// [`Event::AuthorizationNeeded`](crate::Event::AuthorizationNeeded) named it.
    pub fn by_registry(peer: &PublicKey) -> Self {
        Self { fingerprint: peer.fingerprint() }
    }
}

/// What a completed handshake leaves behind.
#[derive(Debug)]
pub struct Established {
    /// Seals what we send.
    pub sealer: Sealer,
    /// Opens what the peer sent.
    pub opener: Opener,
    /// The payload of message 2: empty if the responder accepted.
    pub payload: Bytes,
}

/// Starts a handshake: the state to keep and message 1 to send.
///
/// `authorization` travels encrypted to the responder's static key. `seed` is
/// 32 uniformly random bytes that serve no other handshake.
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
            Noise::HybridIk(hybrid_ik::Handshake::initiator(me, peer, prologue, seed)?.into())
        }
        Suite::Ik => Noise::Ik(ik::Handshake::initiator(me, peer, prologue, seed)?),
    };
    let message = noise.write(authorization)?;
    Ok((AwaitingResponse { noise }, message))
}

/// Reads message 1.
///
/// `seed` as in [`initiate`].
///
/// # Errors
/// [`HandshakeError`] if the message does not fit; nothing is left behind.
pub fn respond(
    suite: Suite,
    me: &Identity,
    prologue: &Prologue,
    message: &[u8],
    seed: Zeroizing<[u8; 32]>,
) -> Result<AwaitingAuthorization, HandshakeError> {
    let mut noise = match suite {
        Suite::HybridIk => {
            Noise::HybridIk(hybrid_ik::Handshake::responder(me, prologue, seed)?.into())
        }
        Suite::Ik => Noise::Ik(ik::Handshake::responder(me, prologue, seed)?),
    };
    let authorization = noise.read(message)?;
    let peer = match &noise {
        Noise::HybridIk(noise) => noise.peer()?,
        Noise::Ik(noise) => noise.peer()?,
    };
    Ok(AwaitingAuthorization { noise, peer, authorization })
}

/// An initiator that has sent message 1.
pub struct AwaitingResponse {
    noise: Noise,
}

/// Message 2 was refused. A relay can always damage one, so the handshake may
/// wait for another.
#[derive(Debug)]
pub struct Rejected {
    /// The state before the message; `None` if the handshake cannot go on.
    pub state: Option<AwaitingResponse>,
    /// What was wrong with it.
    pub error: HandshakeError,
}

impl AwaitingResponse {
    /// Reads message 2.
    ///
    /// # Errors
    /// [`Rejected`] gives the state back.
    pub fn finish(self, message: &[u8]) -> Result<Established, Box<Rejected>> {
        let mut noise = self.noise;
        let before = match &noise {
            Noise::HybridIk(noise) => Some(noise.clone()),
            Noise::Ik(_) => None, // snow restores itself
        };
        match noise.read(message) {
            Ok(payload) => noise
                .establish(true, payload)
                .map_err(|error| Box::new(Rejected { state: None, error })),
            Err(error) => {
                let noise = before.map_or(noise, Noise::HybridIk);
                Err(Box::new(Rejected { state: Some(AwaitingResponse { noise }), error }))
            }
        }
    }
}

/// A responder that knows who asks, and has told nobody yet. Dropping it is
/// refusing.
pub struct AwaitingAuthorization {
    noise: Noise,
    peer: PublicKey,
    authorization: Bytes,
}

impl AwaitingAuthorization {
    /// The initiator's static key: it holds the secret half.
    pub fn peer(&self) -> &PublicKey {
        &self.peer
    }

    /// The payload of message 1. Its content is the registry's business.
    pub fn authorization(&self) -> &Bytes {
        &self.authorization
    }

    /// Completes the handshake: the keys, and message 2 to send.
    ///
    /// # Errors
    /// [`HandshakeError::WrongPeer`] if `proof` was made for another key.
    pub fn authorize(mut self, proof: Authorized) -> Result<(Established, Bytes), HandshakeError> {
        if proof.fingerprint != self.peer.fingerprint() {
            return Err(HandshakeError::WrongPeer);
        }
        let message = self.noise.write(&[])?;
        Ok((self.noise.establish(false, Bytes::new())?, message))
    }

    /// Message 2 that says [`AUTHENTICATION_REJECTED`]; no keys are kept.
    ///
    /// # Errors
    /// [`HandshakeError::Crypto`] if a primitive failed.
    pub fn reject(mut self) -> Result<Bytes, HandshakeError> {
        self.noise.write(AUTHENTICATION_REJECTED)
    }
}

/// The transport keys by direction.
pub(super) struct Keys {
    pub(super) initiator_to_responder: Zeroizing<[u8; 32]>,
    pub(super) responder_to_initiator: Zeroizing<[u8; 32]>,
}

enum Noise {
    HybridIk(Box<hybrid_ik::Handshake>),
    Ik(ik::Handshake),
}

impl Noise {
    fn write(&mut self, payload: &[u8]) -> Result<Bytes, HandshakeError> {
        match self {
            Noise::HybridIk(noise) => noise.write(payload),
            Noise::Ik(noise) => noise.write(payload),
        }
    }

    fn read(&mut self, message: &[u8]) -> Result<Bytes, HandshakeError> {
        match self {
            Noise::HybridIk(noise) => noise.read(message),
            Noise::Ik(noise) => noise.read(message),
        }
    }

    fn establish(self, initiator: bool, payload: Bytes) -> Result<Established, HandshakeError> {
        let keys = match self {
            Noise::HybridIk(noise) => noise.keys()?,
            Noise::Ik(noise) => noise.keys()?,
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
