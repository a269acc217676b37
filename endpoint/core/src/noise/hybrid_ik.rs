//! `Noise_hybridIK_25519+MLKEM768_AESGCM_SHA256` by clatter, over our own
//! choice of primitives: x25519-dalek, libcrux ML-KEM, SHA-256, and [`Aead`]
//! (docs/codex-wire.md#noise-channel).
//!
//! ```text
//! <- s
//! -> skem, e, es, s, ss            3568 bytes + payload
//! <- ekem, skem, e, ee, se         3424 bytes + payload
//! ```
//!
//! This module works around two properties of clatter. It panics on messages
//! above 65,535 bytes, so every length is checked first. It creates its random
//! generator by type (`Default`), so our generator takes a seed that the
//! constructor placed in a thread-local just before.

use std::cell::Cell;

use bytes::Bytes;
use clatter::bytearray::{HeapArray, SensitiveByteArray};
use clatter::error::{CipherError, CipherResult, DhError, DhResult, KemError, KemResult};
use clatter::handshakepattern::noise_hybrid_ik;
use clatter::rand_core as rand_core_06;
use clatter::traits::{Cipher, CryptoComponent, Dh, Hash, Kem};
use clatter::{Handshaker as _, HybridHandshakeCore, HybridHandshakeParams, KeyPair};
use libcrux_ml_kem::mlkem768;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rendez_proto::keys::{MLKEM768_BYTES, PublicKey};
use rendez_proto::limits::{NOISE_MESSAGE_MAX_BYTES, TAG_BYTES};
use sha2::Digest as _;
use zeroize::{Zeroize as _, Zeroizing};

use super::aead::{Aead, AeadFailure};
use super::dh;
use super::error::HandshakeError;
use super::identity::{Identity, MLKEM768_SECRET_BYTES};
use super::prologue::Prologue;
use super::transport_keys::TransportKeys;

const CIPHERTEXT_BYTES: usize = 1088;
/// Length of message 1 without its payload.
pub(super) const MESSAGE_1_BYTES: usize = CIPHERTEXT_BYTES
    + (32 + MLKEM768_BYTES)
    + (32 + TAG_BYTES)
    + (MLKEM768_BYTES + TAG_BYTES)
    + TAG_BYTES;
/// Length of message 2 without its payload.
pub(super) const MESSAGE_2_BYTES: usize =
    CIPHERTEXT_BYTES + (CIPHERTEXT_BYTES + TAG_BYTES) + (32 + MLKEM768_BYTES) + TAG_BYTES;

const _: () = assert!(MESSAGE_1_BYTES == 3568 && MESSAGE_2_BYTES == 3424);

/// One side of a handshake in progress.
#[derive(Clone)]
pub(super) struct HybridIkHandshake(
    HybridHandshakeCore<X25519, MlKem, MlKem, AesGcm, Sha256, StagedRng>,
);

impl HybridIkHandshake {
    pub(super) fn initiator(
        me: &Identity,
        peer: &PublicKey,
        prologue: &Prologue,
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Self, HandshakeError> {
        let kem = peer.mlkem768().ok_or(HandshakeError::WrongSuite)?;
        if !is_valid(kem) {
            return Err(HandshakeError::InvalidPeerKey);
        }
        let params = HybridHandshakeParams::new(noise_hybrid_ik(), true)
            .with_rs(*peer.x25519())
            .with_rs_kem(heap(kem));
        Self::new(params, me, prologue, seed)
    }

    pub(super) fn responder(
        me: &Identity,
        prologue: &Prologue,
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Self, HandshakeError> {
        Self::new(HybridHandshakeParams::new(noise_hybrid_ik(), false), me, prologue, seed)
    }

    fn new(
        params: HybridHandshakeParams<'_, X25519, MlKem, MlKem>,
        me: &Identity,
        prologue: &Prologue,
        seed: Zeroizing<[u8; 32]>,
    ) -> Result<Self, HandshakeError> {
        let params = params
            .with_prologue(prologue.as_bytes())
            .with_s(KeyPair {
                public: *me.public().x25519(),
                secret: SensitiveByteArray::new(*me.x25519()),
            })
            .with_s_kem(KeyPair {
                public: heap(me.mlkem768_public()),
                secret: SensitiveByteArray::new(heap(me.mlkem768())),
            });
        STAGED_SEED.set(Some(seed));
        let handshake = HybridHandshakeCore::new(params);
        STAGED_SEED.set(None);
        handshake.map(Self).map_err(|_| HandshakeError::Crypto)
    }

    pub(super) fn write(&mut self, payload: &[u8]) -> Result<Bytes, HandshakeError> {
        let overhead = self.0.get_next_message_overhead().map_err(|_| HandshakeError::Crypto)?;
        let len = overhead + payload.len();
        if len > NOISE_MESSAGE_MAX_BYTES {
            return Err(HandshakeError::TooLong);
        }
        let mut message = vec![0; len];
        let written =
            self.0.write_message(payload, &mut message).map_err(|_| HandshakeError::Crypto)?;
        message.truncate(written);
        Ok(message.into())
    }

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

    /// The initiator's proven static key, after message 1 was read. Its KEM
    /// keys are validated here, since message 2 encapsulates to them.
    pub(super) fn peer(&self) -> Result<PublicKey, HandshakeError> {
        let fixed = self.0.get_remote_static().ok_or(HandshakeError::Crypto)?;
        let ephemeral = self.0.get_remote_ephemeral().ok_or(HandshakeError::Crypto)?;
        let kem = |key: &HeapArray<MLKEM768_BYTES>| {
            <Box<[u8; MLKEM768_BYTES]>>::try_from(Box::<[u8]>::from(bytes_of(key)))
                .ok()
                .filter(|key| is_valid(key))
                .ok_or(HandshakeError::InvalidPeerKey)
        };
        kem(ephemeral.kem())?;
        Ok(PublicKey::hybrid(*fixed.dh(), kem(fixed.kem())?))
    }

    /// The transport keys, after both messages.
    pub(super) fn keys(self) -> Result<TransportKeys, HandshakeError> {
        let states = self.0.finalize().map_err(|_| HandshakeError::Crypto)?.take();
        let raw =
            |state: clatter::cipherstate::CipherState<AesGcm>| Zeroizing::new(*state.take().0);
        Ok(TransportKeys {
            initiator_to_responder: raw(states.initiator_to_responder),
            responder_to_initiator: raw(states.responder_to_initiator),
        })
    }
}

fn is_valid(key: &[u8; MLKEM768_BYTES]) -> bool {
    mlkem768::validate_public_key(&key.into())
}

fn heap<const N: usize>(bytes: &[u8]) -> HeapArray<N> {
    clatter::bytearray::ByteArray::from_slice(bytes)
}

fn bytes_of<const N: usize>(array: &HeapArray<N>) -> &[u8] {
    clatter::bytearray::ByteArray::as_slice(array)
}

thread_local! {
    /// The seed for the handshake that is being constructed on this thread.
    static STAGED_SEED: Cell<Option<Zeroizing<[u8; 32]>>> = const { Cell::new(None) };
}

/// The generator that clatter creates. It fails if no seed is staged.
#[derive(Clone)]
struct StagedRng(Option<ChaCha20Rng>);

impl Default for StagedRng {
    fn default() -> Self {
        Self(STAGED_SEED.take().map(|seed| ChaCha20Rng::from_seed(*seed)))
    }
}

impl rand_core_06::RngCore for StagedRng {
    fn next_u32(&mut self) -> u32 {
        rand_core_06::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core_06::impls::next_u64_via_fill(self)
    }

    /// Unused: our components draw with `try_fill_bytes`, because this
    /// signature cannot fail.
    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        if self.try_fill_bytes(bytes).is_err() {
            bytes.zeroize();
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core_06::Error> {
        match &mut self.0 {
            Some(rng) => {
                rng.fill_bytes(bytes);
                Ok(())
            }
            None => Err(rand_core_06::Error::from(UNSEEDED)),
        }
    }
}

/// An arbitrary code in the range that rand_core leaves to applications.
const UNSEEDED: std::num::NonZeroU32 =
    std::num::NonZeroU32::MIN.saturating_add(rand_core_06::Error::CUSTOM_START);

impl rand_core_06::CryptoRng for StagedRng {}

fn draw<const N: usize>(rng: &mut impl rand_core_06::RngCore) -> Option<Zeroizing<[u8; N]>> {
    let mut bytes = Zeroizing::new([0; N]);
    rng.try_fill_bytes(bytes.as_mut_slice()).ok()?;
    Some(bytes)
}

#[derive(Clone)]
struct X25519;

impl CryptoComponent for X25519 {
    fn name() -> &'static str {
        "25519"
    }
}

impl Dh for X25519 {
    type PrivateKey = SensitiveByteArray<[u8; 32]>;
    type PubKey = [u8; 32];
    type Output = SensitiveByteArray<[u8; 32]>;

    fn genkey_rng<R: clatter::traits::Rng>(
        rng: &mut R,
    ) -> DhResult<KeyPair<Self::PubKey, Self::PrivateKey>> {
        let secret = draw::<32>(rng).ok_or(DhError::KeyGeneration)?;
        Ok(KeyPair { public: dh::public(&secret), secret: SensitiveByteArray::new(*secret) })
    }

    fn pubkey(secret: &Self::PrivateKey) -> Self::PubKey {
        dh::public(secret)
    }

    fn dh(secret: &Self::PrivateKey, peer: &Self::PubKey) -> DhResult<Self::Output> {
        let shared = dh::shared(secret, peer).ok_or(DhError::KeyGeneration)?;
        Ok(SensitiveByteArray::new(*shared))
    }
}

#[derive(Clone)]
struct MlKem;

impl CryptoComponent for MlKem {
    fn name() -> &'static str {
        "MLKEM768"
    }
}

impl Kem for MlKem {
    type SecretKey = SensitiveByteArray<HeapArray<MLKEM768_SECRET_BYTES>>;
    type PubKey = HeapArray<MLKEM768_BYTES>;
    type Ct = HeapArray<CIPHERTEXT_BYTES>;
    type Ss = SensitiveByteArray<[u8; 32]>;

    fn genkey_rng<R: clatter::traits::Rng>(
        rng: &mut R,
    ) -> KemResult<KeyPair<Self::PubKey, Self::SecretKey>> {
        let pair = mlkem768::generate_key_pair(*draw(rng).ok_or(KemError::KeyGeneration)?);
        Ok(KeyPair { public: heap(pair.pk()), secret: SensitiveByteArray::new(heap(pair.sk())) })
    }

    fn encapsulate<R: clatter::traits::Rng>(
        key: &[u8],
        rng: &mut R,
    ) -> KemResult<(Self::Ct, Self::Ss)> {
        let key = mlkem768::MlKem768PublicKey::try_from(key).map_err(|_| KemError::Input)?;
        let randomness = draw(rng).ok_or(KemError::Encapsulation)?;
        let (ciphertext, shared) = mlkem768::encapsulate(&key, *randomness);
        let shared = Zeroizing::new(shared);
        Ok((heap(ciphertext.as_slice()), SensitiveByteArray::new(*shared)))
    }

    fn decapsulate(ciphertext: &[u8], secret: &[u8]) -> KemResult<Self::Ss> {
        let ciphertext =
            mlkem768::MlKem768Ciphertext::try_from(ciphertext).map_err(|_| KemError::Input)?;
        let secret = mlkem768::MlKem768PrivateKey::try_from(secret).map_err(|_| KemError::Input)?;
        let shared = Zeroizing::new(mlkem768::decapsulate(&secret, &ciphertext));
        Ok(SensitiveByteArray::new(*shared))
    }
}

#[derive(Clone, Default)]
struct Sha256(sha2::Sha256);

impl CryptoComponent for Sha256 {
    fn name() -> &'static str {
        "SHA256"
    }
}

impl Hash for Sha256 {
    type Block = [u8; 64];
    type Output = SensitiveByteArray<[u8; 32]>;

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(self) -> Self::Output {
        SensitiveByteArray::new(self.0.finalize().into())
    }
}

#[derive(Clone)]
struct AesGcm;

impl CryptoComponent for AesGcm {
    fn name() -> &'static str {
        "AESGCM"
    }
}

impl Cipher for AesGcm {
    type Key = SensitiveByteArray<[u8; 32]>;

    fn tag_len() -> usize {
        TAG_BYTES
    }

    fn encrypt(
        key: &Self::Key,
        nonce: u64,
        ad: &[u8],
        plaintext: &[u8],
        out: &mut [u8],
    ) -> CipherResult<()> {
        let (head, _) = out.split_at_mut_checked(plaintext.len()).ok_or(CipherError::Encrypt)?;
        head.copy_from_slice(plaintext);
        Self::encrypt_in_place(key, nonce, ad, out, plaintext.len()).map(drop)
    }

    fn encrypt_in_place(
        key: &Self::Key,
        nonce: u64,
        ad: &[u8],
        in_out: &mut [u8],
        plaintext_len: usize,
    ) -> CipherResult<usize> {
        let (plaintext, rest) =
            in_out.split_at_mut_checked(plaintext_len).ok_or(CipherError::Encrypt)?;
        let out = rest.get_mut(..TAG_BYTES).ok_or(CipherError::Encrypt)?;
        let tag = Aead::new(key)
            .and_then(|aead| aead.seal(nonce, ad, plaintext))
            .map_err(|AeadFailure| CipherError::Encrypt)?;
        out.copy_from_slice(&tag);
        Ok(plaintext_len + TAG_BYTES)
    }

    fn decrypt(
        key: &Self::Key,
        nonce: u64,
        ad: &[u8],
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> CipherResult<()> {
        let mut buffer = ciphertext.to_vec();
        let len = Self::decrypt_in_place(key, nonce, ad, &mut buffer, ciphertext.len())?;
        let out = out.get_mut(..len).ok_or(CipherError::Decrypt)?;
        out.copy_from_slice(&buffer[..len]);
        buffer.zeroize();
        Ok(())
    }

    fn decrypt_in_place(
        key: &Self::Key,
        nonce: u64,
        ad: &[u8],
        in_out: &mut [u8],
        ciphertext_len: usize,
    ) -> CipherResult<usize> {
        let ciphertext = in_out.get_mut(..ciphertext_len).ok_or(CipherError::Decrypt)?;
        Aead::new(key)
            .and_then(|aead| aead.open(nonce, ad, ciphertext))
            .map_err(|AeadFailure| CipherError::Decrypt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::identity::IdentitySeed;

    #[test]
    fn protocol_name_matches_stock_binaries() {
        let name =
            HybridHandshakeCore::<X25519, MlKem, MlKem, AesGcm, Sha256, StagedRng>::build_name(
                &noise_hybrid_ik(),
            );
        assert_eq!(name.as_str(), "Noise_hybridIK_25519+MLKEM768_AESGCM_SHA256");
    }

    #[test]
    fn rng_without_a_seed_fails() {
        assert!(draw::<32>(&mut StagedRng::default()).is_none());
    }

    /// Only a peer that holds its keys and misstates one can send this.
    #[test]
    fn invalid_kem_keys_of_initiator_are_refused() {
        let [me, peer] =
            [1, 2].map(|byte| Identity::from_seed(&IdentitySeed::from_bytes([byte; 96])));
        let prologue = Prologue::new(
            rendez_proto::profile::Profile::NoiseHybridIkV1,
            &"e".parse().unwrap(),
            &"r".parse().unwrap(),
            &"s".parse().unwrap(),
        );
        let pair = |public: &[u8]| KeyPair {
            public: heap(public),
            secret: SensitiveByteArray::new(heap(me.mlkem768())),
        };
        let (good, bad) = (me.mlkem768_public(), &[0xff; MLKEM768_BYTES]);
        let read = |fixed: &[u8], ephemeral: &[u8]| {
            let params = HybridHandshakeParams::new(noise_hybrid_ik(), true)
                .with_prologue(prologue.as_bytes())
                .with_rs(*peer.public().x25519())
                .with_rs_kem(heap(peer.mlkem768_public()))
                .with_s(KeyPair {
                    public: *me.public().x25519(),
                    secret: SensitiveByteArray::new(*me.x25519()),
                })
                .with_s_kem(pair(fixed))
                .with_e_kem(pair(ephemeral));
            STAGED_SEED.set(Some(Zeroizing::new([3; 32])));
            let mut initiator = HybridIkHandshake(HybridHandshakeCore::new(params).unwrap());
            let message = initiator.write(b"").unwrap();
            let seed = Zeroizing::new([4; 32]);
            let mut responder = HybridIkHandshake::responder(&peer, &prologue, seed).unwrap();
            responder.read(&message).unwrap();
            responder.peer().map(drop)
        };
        assert_eq!(read(good, good), Ok(()));
        assert_eq!(read(good, bad), Err(HandshakeError::InvalidPeerKey));
        assert_eq!(read(bad, good), Err(HandshakeError::InvalidPeerKey));
    }

    #[test]
    fn seed_serves_one_handshake_only() {
        let me = Identity::from_seed(&IdentitySeed::from_bytes([1; 96]));
        let prologue = Prologue::new(
            rendez_proto::profile::Profile::NoiseHybridIkV1,
            &"e".parse().unwrap(),
            &"r".parse().unwrap(),
            &"s".parse().unwrap(),
        );
        HybridIkHandshake::responder(&me, &prologue, Zeroizing::new([0; 32])).unwrap();
        assert!(STAGED_SEED.take().is_none());
    }
}
