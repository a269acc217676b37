//! `Noise_IK_25519_AESGCM_SHA256` by snow, over the same primitives as the
//! hybrid suite.
//!
//! ```text
//! <- s
//! -> e, es, s, ss       96 bytes + payload
//! <- e, ee, se          48 bytes + payload
//! ```

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits::{NOISE_MESSAGE_MAX_BYTES, TAG_BYTES};
use sha2::Digest as _;
use snow::params::{CipherChoice, DHChoice, HashChoice, NoiseParams};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error, HandshakeState};
use zeroize::Zeroizing;

use super::aead::{Aead, AeadFailure};
use super::dh;
use super::error::HandshakeError;
use super::identity::Identity;
use super::prologue::Prologue;
use super::transport_keys::TransportKeys;

const NAME: &str = "Noise_IK_25519_AESGCM_SHA256";

/// One side of a handshake in progress.
pub(super) struct IkHandshake(Box<HandshakeState>);

impl IkHandshake {
    pub(super) fn initiator(
        me: &Identity,
        peer: &PublicKey,
        prologue: &Prologue,
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Self, HandshakeError> {
        builder(seed)?
            .local_private_key(me.x25519())
            .and_then(|builder| builder.prologue(prologue.as_bytes()))
            .and_then(|builder| builder.remote_public_key(peer.x25519()))
            .and_then(Builder::build_initiator)
            .map(|state| Self(Box::new(state)))
            .map_err(|_| HandshakeError::Crypto)
    }

    pub(super) fn responder(
        me: &Identity,
        prologue: &Prologue,
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Self, HandshakeError> {
        builder(seed)?
            .local_private_key(me.x25519())
            .and_then(|builder| builder.prologue(prologue.as_bytes()))
            .and_then(Builder::build_responder)
            .map(|state| Self(Box::new(state)))
            .map_err(|_| HandshakeError::Crypto)
    }

    pub(super) fn write(&mut self, payload: &[u8]) -> Result<Bytes, HandshakeError> {
        const OVERHEAD: usize = 96; // of message 1, the longer one
        if payload.len() + OVERHEAD > NOISE_MESSAGE_MAX_BYTES {
            return Err(HandshakeError::TooLong);
        }
        let mut message = vec![0; payload.len() + OVERHEAD];
        let len =
            self.0.write_message(payload, &mut message).map_err(|_| HandshakeError::Crypto)?;
        message.truncate(len);
        Ok(message.into())
    }

    /// Reads a message. A failure leaves the state unchanged.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Bytes, HandshakeError> {
        if message.len() > NOISE_MESSAGE_MAX_BYTES {
            return Err(HandshakeError::TooLong);
        }
        let mut payload = vec![0; message.len()];
        let len =
            self.0.read_message(message, &mut payload).map_err(|_| HandshakeError::NotForUs)?;
        payload.truncate(len);
        Ok(payload.into())
    }

    /// The initiator's proven static key, after the responder has read message
    /// 1.
    pub(super) fn peer(&self) -> Result<PublicKey, HandshakeError> {
        self.0
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .map(PublicKey::x25519_only)
            .ok_or(HandshakeError::Crypto)
    }

    /// The transport keys, after both messages.
    pub(super) fn keys(mut self) -> Result<TransportKeys, HandshakeError> {
        if !self.0.is_handshake_finished() {
            return Err(HandshakeError::Crypto);
        }
        let (initiator, responder) = self.0.dangerously_get_raw_split();
        Ok(TransportKeys {
            initiator_to_responder: Zeroizing::new(initiator),
            responder_to_initiator: Zeroizing::new(responder),
        })
    }
}

fn builder<'a>(seed: Zeroizing<[u8; 32]>) -> Result<Builder<'a>, HandshakeError> {
    let params: NoiseParams = NAME.parse().map_err(|_| HandshakeError::Crypto)?;
    Ok(Builder::with_resolver(params, Box::new(Resolver(seed))))
}

/// Gives snow our primitives and a generator with the handshake's seed.
struct Resolver(Zeroizing<[u8; 32]>);

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(SeededRng(ChaCha20Rng::from_seed(*self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::<X25519>::default() as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::<Sha256>::default() as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::AESGCM).then(|| Box::new(AesGcm(None)) as Box<dyn Cipher>)
    }
}

struct SeededRng(ChaCha20Rng);

impl Random for SeededRng {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

#[derive(Default)]
struct X25519 {
    secret: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        self.secret.copy_from_slice(secret);
        self.public = dh::public(&self.secret);
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), Error> {
        rng.try_fill_bytes(self.secret.as_mut_slice())?;
        self.public = dh::public(&self.secret);
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_slice()
    }

    fn dh(&self, peer: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let peer: &[u8; 32] = peer.first_chunk().ok_or(Error::Dh)?;
        let shared = dh::shared(&self.secret, peer).ok_or(Error::Dh)?;
        out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(shared.as_slice());
        Ok(())
    }
}

#[derive(Default)]
struct Sha256(sha2::Sha256);

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        64
    }

    fn hash_len(&self) -> usize {
        32
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        out[..32].copy_from_slice(&self.0.finalize_reset());
    }
}

struct AesGcm(Option<Aead>);

impl Cipher for AesGcm {
    fn name(&self) -> &'static str {
        "AESGCM"
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0 = Aead::new(key).ok();
    }

    /// The signature cannot fail. If the AEAD fails, the output is zeros, which
    /// no peer accepts.
    fn encrypt(&self, nonce: u64, ad: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let len = plaintext.len() + TAG_BYTES;
        let (head, tail) = out[..len].split_at_mut(plaintext.len());
        head.copy_from_slice(plaintext);
        match self.0.as_ref().ok_or(AeadFailure).and_then(|aead| aead.seal(nonce, ad, head)) {
            Ok(tag) => tail.copy_from_slice(&tag),
            Err(AeadFailure) => out[..len].fill(0),
        }
        len
    }

    fn decrypt(
        &self,
        nonce: u64,
        ad: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        let aead = self.0.as_ref().ok_or(Error::Decrypt)?;
        let len = aead.open(nonce, ad, &mut buffer).map_err(|AeadFailure| Error::Decrypt)?;
        out.get_mut(..len).ok_or(Error::Decrypt)?.copy_from_slice(&buffer[..len]);
        Ok(len)
    }
}
