//! The keys of an open stream, one per direction.
//!
//! The nonce is an argument. The stream derives it from the record's sequence
//! number (`nonce = seq - first`) or, for a proof, from its counter with the
//! top bit set. The caller never seals two plaintexts under one nonce.

use std::fmt;

use bytes::{Bytes, BytesMut};
use rendez_proto::limits::TAG_BYTES;

use super::aead::{Aead, AeadFailure};
use super::error::HandshakeError;

/// Seals outgoing records. Caches the key schedule.
pub struct Sealer(Aead);

/// Opens incoming records. Caches the key schedule.
pub struct Opener(Aead);

/// The bytes differ from what the peer sealed under this nonce and associated
/// data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record was not sealed by the peer")]
pub struct SealError;

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self, HandshakeError> {
        Aead::new(key).map(Self).map_err(|AeadFailure| HandshakeError::Crypto)
    }

    /// Seals `buffer` in place and appends the tag.
    ///
    /// # Errors
    /// [`SealError`] if the length is beyond what AES-GCM allows (tens of GiB).
    pub fn seal_in_place(
        &self,
        nonce: u64,
        ad: &[u8],
        buffer: &mut BytesMut,
    ) -> Result<(), SealError> {
        let tag = self.0.seal(nonce, ad, buffer).map_err(|AeadFailure| SealError)?;
        buffer.extend_from_slice(&tag);
        Ok(())
    }

    /// Seals a copy of `plaintext`. Returns ciphertext and tag.
    ///
    /// # Errors
    /// As [`Sealer::seal_in_place`].
    pub fn seal(&self, nonce: u64, ad: &[u8], plaintext: &[u8]) -> Result<Bytes, SealError> {
        let mut buffer = BytesMut::with_capacity(plaintext.len() + TAG_BYTES);
        buffer.extend_from_slice(plaintext);
        self.seal_in_place(nonce, ad, &mut buffer)?;
        Ok(buffer.freeze())
    }

    /// Returns the tag over `ad` alone.
    ///
    /// # Errors
    /// As [`Sealer::seal_in_place`].
    pub fn prove(&self, nonce: u64, ad: &[u8]) -> Result<[u8; TAG_BYTES], SealError> {
        self.0.seal(nonce, ad, &mut []).map_err(|AeadFailure| SealError)
    }
}

impl Opener {
    pub(super) fn new(key: &[u8; 32]) -> Result<Self, HandshakeError> {
        Aead::new(key).map(Self).map_err(|AeadFailure| HandshakeError::Crypto)
    }

    /// Opens ciphertext and tag. Works in place if `record` is the only handle
    /// to its bytes, and on a copy otherwise.
    ///
    /// # Errors
    /// [`SealError`] if anything differs from what was sealed.
    pub fn open(&self, nonce: u64, ad: &[u8], record: Bytes) -> Result<Bytes, SealError> {
        let mut buffer = BytesMut::from(record);
        let len = self.0.open(nonce, ad, &mut buffer).map_err(|AeadFailure| SealError)?;
        buffer.truncate(len);
        Ok(buffer.freeze())
    }

    /// Whether `tag` is the peer's tag over `ad` alone.
    pub fn verify(&self, nonce: u64, ad: &[u8], tag: &[u8; TAG_BYTES]) -> bool {
        self.0.open(nonce, ad, &mut tag.clone()).is_ok()
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(redacted)")
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opener(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(&[9; 32]).unwrap(), Opener::new(&[9; 32]).unwrap())
    }

    #[test]
    fn only_genuine_records_open() {
        let (sealer, opener) = pair();
        let record = sealer.seal(5, b"ad", b"hello").unwrap();
        assert_eq!(record.len(), 5 + TAG_BYTES);
        assert_eq!(opener.open(5, b"ad", record.clone()).unwrap(), "hello");
        assert_eq!(opener.open(6, b"ad", record.clone()), Err(SealError));
        assert_eq!(opener.open(5, b"AD", record.clone()), Err(SealError));
        for at in 0..record.len() {
            let mut damaged = record.to_vec();
            damaged[at] ^= 1;
            assert_eq!(opener.open(5, b"ad", damaged.into()), Err(SealError));
        }
        assert_eq!(opener.open(5, b"ad", record.slice(..record.len() - 1)), Err(SealError));
        assert_eq!(opener.open(5, b"ad", Bytes::new()), Err(SealError));
    }

    #[test]
    fn proofs_bind_nonce_and_associated_data() {
        let (sealer, opener) = pair();
        let tag = sealer.prove(1 << 63, b"ack").unwrap();
        assert!(opener.verify(1 << 63, b"ack", &tag));
        assert!(!opener.verify(1 << 63, b"rst", &tag));
        assert!(!opener.verify(1 << 63 | 1, b"ack", &tag));
    }

    #[test]
    fn sole_owner_opens_record_in_place() {
        let (sealer, opener) = pair();
        let record = sealer.seal(0, b"", &[1; 1000]).unwrap();
        let at = record.as_ptr();
        assert_eq!(opener.open(0, b"", record).unwrap().as_ptr(), at);
    }
}
