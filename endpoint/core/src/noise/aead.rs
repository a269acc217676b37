//! AES-256-GCM with a cached key schedule, as Noise uses it: the nonce is four
//! zero bytes and a 64-bit big-endian counter (Noise, section 12.4).
//!
//! The implementation is aws-lc-rs, except on wasm32, where aws-lc-rs does not
//! build and RustCrypto replaces it. Only this file depends on the choice.

use rendez_proto::limits::TAG_BYTES;

/// The AEAD failed: a forgery when opening, an impossible length when sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AeadFailure;

/// The key of one direction.
pub(super) struct Aead(backend::Key);

impl Aead {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self, AeadFailure> {
        backend::new(key).map(Self)
    }

    /// Encrypts `in_out` in place and returns the tag.
    pub(super) fn seal(
        &self,
        nonce: u64,
        ad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], AeadFailure> {
        backend::seal(&self.0, full_nonce(nonce), ad, in_out)
    }

    /// Decrypts `in_out`, ciphertext and tag, in place; the plaintext is all
    /// but its last [`TAG_BYTES`]. After a failure the content of the buffer is
    /// unspecified.
    pub(super) fn open(
        &self,
        nonce: u64,
        ad: &[u8],
        in_out: &mut [u8],
    ) -> Result<usize, AeadFailure> {
        let len = in_out.len().checked_sub(TAG_BYTES).ok_or(AeadFailure)?;
        backend::open(&self.0, full_nonce(nonce), ad, in_out)?;
        Ok(len)
    }
}

fn full_nonce(counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[cfg(not(target_arch = "wasm32"))]
mod backend {
    use super::{AeadFailure, TAG_BYTES};
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    pub(super) type Key = LessSafeKey;

    pub(super) fn new(key: &[u8; 32]) -> Result<Key, AeadFailure> {
        UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| AeadFailure)
    }

    pub(super) fn seal(
        key: &Key,
        nonce: [u8; 12],
        ad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], AeadFailure> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key
            .seal_in_place_separate_tag(nonce, Aad::from(ad), in_out)
            .map_err(|_| AeadFailure)?;
        tag.as_ref().try_into().map_err(|_| AeadFailure)
    }

    pub(super) fn open(
        key: &Key,
        nonce: [u8; 12],
        ad: &[u8],
        in_out: &mut [u8],
    ) -> Result<(), AeadFailure> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        key.open_in_place(nonce, Aad::from(ad), in_out).map(drop).map_err(|_| AeadFailure)
    }
}

#[cfg(target_arch = "wasm32")]
mod backend {
    use super::{AeadFailure, TAG_BYTES};
    use aes_gcm::{Aes256Gcm, KeyInit as _, aead::AeadInOut as _};

    pub(super) type Key = Box<Aes256Gcm>;

    pub(super) fn new(key: &[u8; 32]) -> Result<Key, AeadFailure> {
        Ok(Box::new(Aes256Gcm::new(key.into())))
    }

    pub(super) fn seal(
        key: &Key,
        nonce: [u8; 12],
        ad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], AeadFailure> {
        key.encrypt_inout_detached(&nonce.into(), ad, in_out.into())
            .map(Into::into)
            .map_err(|_| AeadFailure)
    }

    pub(super) fn open(
        key: &Key,
        nonce: [u8; 12],
        ad: &[u8],
        in_out: &mut [u8],
    ) -> Result<(), AeadFailure> {
        let (ciphertext, tag) = in_out.split_at_mut(in_out.len() - TAG_BYTES);
        let tag = <[u8; TAG_BYTES]>::try_from(&*tag).map_err(|_| AeadFailure)?;
        key.decrypt_inout_detached(&nonce.into(), ad, ciphertext.into(), &tag.into())
            .map_err(|_| AeadFailure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Test case 14 of the GCM specification (McGrew and Viega, 2005): zero
    /// key, zero nonce, sixteen zero bytes.
    #[test]
    fn gcm_test_case_14_matches() {
        let aead = Aead::new(&[0; 32]).unwrap();
        let mut block = [0; 16];
        let tag = aead.seal(0, &[], &mut block).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&block), "cea7403d4d606b6e074ec5d3baf39d18");
        assert_eq!(hex(&tag), "d0d1c8a799996bf0265b98b5d48ab919");
    }

    #[test]
    fn nonce_is_four_zero_bytes_and_counter() {
        assert_eq!(full_nonce(0x0102), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn too_short_ciphertext_fails_without_panic() {
        let aead = Aead::new(&[0; 32]).unwrap();
        assert_eq!(aead.open(0, &[], &mut [0; 15]), Err(AeadFailure));
    }
}
