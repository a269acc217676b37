//! Proof that a request comes from the holder of an executor's Ed25519 key.
//!
//! An enrolled executor has no bearer token. It sends, in the header
//! [`PROOF_HEADER`], base64url without padding over
//!
//! ```text
//! offset
//! 0        version, 1 byte: 1
//! 1        call, 1 byte: 1 register, 2 validate
//! 2        five fields, each [length: u16 big endian][bytes]
//!            environment  UTF-8, an EnvironmentId
//!            key          32 bytes, the Ed25519 public key that verifies this
//!            time         8 bytes, big endian, seconds since 1970
//!            nonce        16 bytes, random
//!            body         32 bytes, SHA-256 of the request's body
//! end-64   Ed25519 signature over domain(call) || everything before it
//! ```
//!
//! Invariants: the body's hash binds the whole request, above all the executor's
//! Noise public keys. The registry accepts each nonce once, within
//! [`limits::PROOF_WINDOW`] of its own clock, so a captured request is useless.
//! Each call has a signature domain of its own.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{SIGNATURE_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};
use sha2::{Digest as _, Sha256};

use crate::fields::{self, Reader};
use crate::ids::EnvironmentId;
use crate::limits;

/// Longest proof of possession in bytes, as text in a header.
pub const PROOF_MAX_BYTES: usize = 512;

// a proof as base64: header, fields with their lengths, signature
const _: () = assert!(
    (2 + 5 * 2 + limits::ENVIRONMENT_ID_MAX_BYTES + (32 + 8 + 16 + 32) + 64).div_ceil(3) * 4
        <= PROOF_MAX_BYTES
);

/// The request header that carries a proof.
pub const PROOF_HEADER: &str = "rendez-proof";
/// Bytes of [`Proof::nonce`].
pub const NONCE_BYTES: usize = 16;

const VERSION: u8 = 1;

/// The call that is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    /// `POST .../register`
    Register,
    /// `POST .../validate`
    Validate,
}

impl Call {
    const ALL: [Call; 2] = [Call::Register, Call::Validate];

    fn code(self) -> u8 {
        match self {
            Call::Register => 1,
            Call::Validate => 2,
        }
    }

    fn domain(self) -> &'static [u8] {
        match self {
            Call::Register => b"rendez/proof/v1/register\0",
            Call::Validate => b"rendez/proof/v1/validate\0",
        }
    }
}

/// The statement of a key's holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The call.
    pub call: Call,
    /// The environment of the call.
    pub environment: EnvironmentId,
    /// The key that signed. The signature proves only that its holder made this
    /// statement.
    pub key: [u8; 32],
    /// The time of the holder's clock, in seconds since 1970.
    pub time: u64,
    /// Random; the registry accepts it once.
    pub nonce: [u8; NONCE_BYTES],
    /// SHA-256 of the request's body.
    pub body: [u8; 32],
}

/// The text is not a valid proof: it has another version, or is not signed by the
/// key that it names. Its sender is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proof of possession is malformed, or its signature is wrong")]
pub struct InvalidProof;

/// SHA-256 of a request's body.
pub fn body_hash(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

impl Proof {
    /// Signs this with `key`, which takes the place of [`Proof::key`].
    pub fn sign(mut self, key: &SigningKey) -> String {
        self.key = key.verifying_key().to_bytes();
        let mut bytes = self.encode();
        let signature = key.sign(&[self.call.domain(), &bytes].concat());
        bytes.extend_from_slice(&signature.to_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a proof and checks its signature. The caller checks whether the key is
    /// enrolled, the time is right and the nonce is new.
    ///
    /// # Errors
    /// [`InvalidProof`]
    pub fn verify(text: &str) -> Result<Self, InvalidProof> {
        if text.len() > PROOF_MAX_BYTES {
            return Err(InvalidProof);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidProof)?;
        let (body, signature) = bytes.split_last_chunk::<SIGNATURE_LENGTH>().ok_or(InvalidProof)?;
        let proof = decode(body).ok_or(InvalidProof)?;
        let key = VerifyingKey::from_bytes(&proof.key).map_err(|_| InvalidProof)?;
        let signed = [proof.call.domain(), body].concat();
        key.verify_strict(&signed, &Signature::from_bytes(signature)).map_err(|_| InvalidProof)?;
        Ok(proof)
    }

    fn encode(&self) -> Vec<u8> {
        let fields: [&[u8]; 5] = [
            self.environment.as_str().as_bytes(),
            &self.key,
            &self.time.to_be_bytes(),
            &self.nonce,
            &self.body,
        ];
        fields::encode(VERSION, self.call.code(), &fields)
    }
}

fn decode(body: &[u8]) -> Option<Proof> {
    let (call, mut fields) = Reader::new(body, VERSION)?;
    let proof = Proof {
        call: Call::ALL.into_iter().find(|known| known.code() == call)?,
        environment: fields.parse()?,
        key: fields.array()?,
        time: fields.number()?,
        nonce: fields.array()?,
        body: fields.array()?,
    };
    fields.end().map(|()| proof)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn proof(call: Call) -> Proof {
        Proof {
            call,
            environment: "env-abc".parse().unwrap(),
            key: key().verifying_key().to_bytes(),
            time: 1_800_000_000,
            nonce: [0xa1; NONCE_BYTES],
            body: body_hash(b"{}"),
        }
    }

    const GOLDEN: &str = "\
        AQEAB2Vudi1hYmMAIP0XJDhaoMdbZPt4zWAvodmR_ev3axPFjtcC6sg16fYYAAgAAAAAa0nSAAAQoaGhoa\
        GhoaGhoaGhoaGhoQAgRBNvo1WzZ4oRRq0W9-hknpT7T8If536DEMBg9hyq_4pivOvZdVAjWcb1mXmZ6p-Z\
        5XLjlgKzHXiJ0iwe0-elAnbBE7_1T1BmEn84J5ClL4btb4Ro_dUGRNk91yEGdGAI";

    #[test]
    fn bytes_are_stable() {
        let text = proof(Call::Register).sign(&key());
        assert_eq!(text, GOLDEN);
        assert_eq!(Proof::verify(&text), Ok(proof(Call::Register)));
    }

    #[test]
    fn signature_covers_the_call() {
        let text = proof(Call::Validate).sign(&key());
        assert_eq!(Proof::verify(&text).unwrap().call, Call::Validate);
        let mut bytes = URL_SAFE_NO_PAD.decode(text).unwrap();
        bytes[1] = Call::Register.code();
        assert_eq!(Proof::verify(&URL_SAFE_NO_PAD.encode(bytes)), Err(InvalidProof));
    }

    #[test]
    fn signer_cannot_name_another_key() {
        let other = SigningKey::from_bytes(&[8; 32]);
        let stolen = Proof { key: other.verifying_key().to_bytes(), ..proof(Call::Register) };
        assert_eq!(
            Proof::verify(&stolen.clone().sign(&key())).unwrap().key,
            key().verifying_key().to_bytes(),
            "signing puts the signer's key in"
        );
        let mut bytes = stolen.encode();
        let signature = key().sign(&[Call::Register.domain(), &bytes].concat());
        bytes.extend_from_slice(&signature.to_bytes());
        assert_eq!(Proof::verify(&URL_SAFE_NO_PAD.encode(bytes)), Err(InvalidProof));
    }

    #[test]
    fn longest_proof_fits() {
        let environment = "e".repeat(limits::ENVIRONMENT_ID_MAX_BYTES).parse().unwrap();
        let text = Proof { environment, ..proof(Call::Register) }.sign(&key());
        assert!(Proof::verify(&text).is_ok());
        let long = format!("{text}{}", "A".repeat(PROOF_MAX_BYTES));
        assert_eq!(Proof::verify(&long), Err(InvalidProof));
    }

    proptest! {
        #[test]
        fn changed_proof_is_refused(at in 0..GOLDEN.len(), to in "[A-Za-z0-9_-]") {
            let mut text = proof(Call::Register).sign(&key());
            prop_assume!(text[at..=at] != to);
            text.replace_range(at..=at, &to);
            prop_assert_eq!(Proof::verify(&text), Err(InvalidProof));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,300}", bytes: Vec<u8>) {
            prop_assert!(Proof::verify(&text).is_err());
            prop_assert!(Proof::verify(&URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }
    }
}
