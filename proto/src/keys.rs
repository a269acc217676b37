//! Static public keys as registry requests carry them
//! (docs/codex-wire.md#registry-api).
//!
//! ```json
//! {"suite": "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256",
//!  "x25519_public_key": "<32 bytes>", "mlkem768_public_key": "<1184 bytes>"}
//! {"suite": "Noise_IK_25519_AESGCM_SHA256", "x25519_public_key": "<32 bytes>"}
//! ```
//! Standard base64 with padding; unknown fields are refused.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::profile::Suite;
use crate::rpc::base64_bytes;

/// Bytes of an X25519 public key.
pub const X25519_BYTES: usize = 32;
/// Bytes of an ML-KEM-768 encapsulation key.
pub const MLKEM768_BYTES: usize = 1184;

/// A static public key: X25519, and ML-KEM-768 in the hybrid suite.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct PublicKey {
    x25519: [u8; X25519_BYTES],
    mlkem768: Option<Box<[u8; MLKEM768_BYTES]>>,
}

/// Why a public key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// An unknown suite.
    #[error("unknown key suite {0:?}")]
    Suite(String),
    /// A key of the wrong length.
    #[error("{field} has {found} bytes, {suite} needs {expected}", suite = suite_name(*.suite))]
    Length {
        /// The JSON field.
        field: &'static str,
        /// Its length in bytes.
        found: usize,
        /// The right length in bytes.
        expected: usize,
        /// The suite that the key claims.
        suite: Suite,
    },
}

/// The suite's name in a key's `suite` field. It has `X25519` where the name that
/// Noise hashes has `25519` (docs/codex-wire.md#noise-channel).
pub fn suite_name(suite: Suite) -> &'static str {
    match suite {
        Suite::HybridIk => "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256",
        Suite::Ik => "Noise_IK_25519_AESGCM_SHA256",
    }
}

impl PublicKey {
    /// A key of the hybrid suite.
    pub fn hybrid(x25519: [u8; X25519_BYTES], mlkem768: Box<[u8; MLKEM768_BYTES]>) -> Self {
        Self { x25519, mlkem768: Some(mlkem768) }
    }

    /// A key of the IK suite.
    pub fn x25519_only(x25519: [u8; X25519_BYTES]) -> Self {
        Self { x25519, mlkem768: None }
    }

    /// The suite that the key belongs to.
    pub fn suite(&self) -> Suite {
        if self.mlkem768.is_some() { Suite::HybridIk } else { Suite::Ik }
    }

    /// The X25519 part.
    pub fn x25519(&self) -> &[u8; X25519_BYTES] {
        &self.x25519
    }

    /// The ML-KEM-768 part, in the hybrid suite.
    pub fn mlkem768(&self) -> Option<&[u8; MLKEM768_BYTES]> {
        self.mlkem768.as_deref()
    }

    /// The same identity's key for `suite`, if it has the parts.
    pub fn for_suite(&self, suite: Suite) -> Option<PublicKey> {
        match suite {
            Suite::HybridIk => self.mlkem768.is_some().then(|| self.clone()),
            Suite::Ik => Some(Self::x25519_only(self.x25519)),
        }
    }

    /// SHA-256 over the suite's name and the key's parts: for comparing,
    /// binding and showing keys.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(suite_name(self.suite()));
        hash.update(self.x25519);
        if let Some(mlkem768) = &self.mlkem768 {
            hash.update(mlkem768.as_slice());
        }
        hash.finalize().into()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?}, ", self.suite())?;
        self.fingerprint()[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    suite: String,
    #[serde(with = "base64_bytes")]
    x25519_public_key: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mlkem768_public_key: Option<Base64>,
}

#[derive(Serialize, Deserialize)]
struct Base64(#[serde(with = "base64_bytes")] Vec<u8>);

impl TryFrom<Wire> for PublicKey {
    type Error = InvalidKey;

    fn try_from(wire: Wire) -> Result<Self, InvalidKey> {
        let suite = [Suite::HybridIk, Suite::Ik]
            .into_iter()
            .find(|suite| suite_name(*suite) == wire.suite)
            .ok_or_else(|| InvalidKey::Suite(wire.suite.chars().take(64).collect()))?;
        let length = |field, found, expected| InvalidKey::Length { field, found, expected, suite };
        let x25519 = <[u8; X25519_BYTES]>::try_from(wire.x25519_public_key)
            .map_err(|key| length("x25519_public_key", key.len(), X25519_BYTES))?;
        let mlkem768 = wire.mlkem768_public_key.map(|key| key.0).unwrap_or_default();
        match suite {
            Suite::Ik if mlkem768.is_empty() => Ok(Self::x25519_only(x25519)),
            Suite::Ik => Err(length("mlkem768_public_key", mlkem768.len(), 0)),
            Suite::HybridIk => <Box<[u8; MLKEM768_BYTES]>>::try_from(mlkem768.into_boxed_slice())
                .map(|mlkem768| Self::hybrid(x25519, mlkem768))
                .map_err(|key| length("mlkem768_public_key", key.len(), MLKEM768_BYTES)),
        }
    }
}

impl From<PublicKey> for Wire {
    fn from(key: PublicKey) -> Self {
        Self {
            suite: suite_name(key.suite()).to_owned(),
            x25519_public_key: key.x25519.to_vec(),
            mlkem768_public_key: key.mlkem768.map(|key| Base64(key.to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(value: Value) -> Result<PublicKey, serde_json::Error> {
        serde_json::from_value(value)
    }

    #[test]
    fn both_suites_round_trip_in_the_stock_shape() {
        let hybrid = PublicKey::hybrid([1; 32], Box::new([2; 1184]));
        let value = serde_json::to_value(&hybrid).unwrap();
        assert_eq!(value["suite"], "Noise_hybridIK_X25519+MLKEM768_AESGCM_SHA256");
        assert_eq!(value["x25519_public_key"], "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
        assert_eq!(parse(value).unwrap(), hybrid);

        let ik = hybrid.for_suite(Suite::Ik).unwrap();
        let value = serde_json::to_value(&ik).unwrap();
        assert!(value.get("mlkem768_public_key").is_none());
        assert_eq!(parse(value).unwrap(), ik);
        assert_ne!(ik.fingerprint(), hybrid.fingerprint());
    }

    #[test]
    fn invalid_keys_are_named() {
        let good = serde_json::to_value(PublicKey::hybrid([1; 32], Box::new([2; 1184]))).unwrap();
        let with = |field: &str, value: Value| {
            let mut key = good.clone();
            key[field] = value;
            parse(key).unwrap_err().to_string()
        };
        assert!(with("suite", json!("Noise_XX")).contains("unknown key suite \"Noise_XX\""));
        assert!(with("x25519_public_key", json!("AQ==")).contains("x25519_public_key has 1 bytes"));
        assert!(with("mlkem768_public_key", json!("AQ==")).contains("has 1 bytes"));
        assert!(with("x25519_public_key", json!("!")).contains("Invalid symbol"));
        assert!(with("extra", json!(1)).contains("unknown field"));
    }
}
