//! An endpoint's static keys: one X25519 and one ML-KEM-768 pair, both derived
//! from 96 secret bytes. The IK suite uses the X25519 half.

use std::fmt;
use std::sync::Arc;

use libcrux_ml_kem::mlkem768;
use rendez_proto::keys::{MLKEM768_BYTES, PublicKey};
use rendez_proto::profile::Suite;
use zeroize::Zeroizing;

use super::dh;

/// Bytes of an ML-KEM-768 decapsulation key (FIPS 203).
pub(super) const MLKEM768_SECRET_BYTES: usize = 2400;

/// The secret from which an [`Identity`] is derived: 32 bytes for X25519, then
/// 64 for ML-KEM-768 (`d || z` of FIPS 203). Zeroed when dropped; `Debug` shows
/// nothing.
#[derive(Clone)]
pub struct IdentitySeed(Zeroizing<[u8; Self::BYTES]>);

impl IdentitySeed {
    /// Length of a seed in bytes.
    pub const BYTES: usize = 96;

    /// Creates a seed from secret, uniformly random bytes.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes, to be stored readable only by their owner.
    pub fn expose(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for IdentitySeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdentitySeed(redacted)")
    }
}

/// An endpoint's key pairs. Cloning shares them.
#[derive(Clone)]
pub struct Identity(Arc<KeyPairs>);

struct KeyPairs {
    x25519: Zeroizing<[u8; 32]>,
    mlkem768: Zeroizing<Vec<u8>>,
    mlkem768_public: Box<[u8; MLKEM768_BYTES]>,
    hybrid: PublicKey,
    ik: PublicKey,
}

impl Identity {
    /// Derives the key pairs.
    pub fn from_seed(seed: &IdentitySeed) -> Self {
        let (x25519, kem) = split(seed.expose());
        let pair = mlkem768::generate_key_pair(*kem);
        let mlkem768 = Zeroizing::new(pair.sk().to_vec());
        let public = dh::public(&x25519);
        Self(Arc::new(KeyPairs {
            mlkem768,
            mlkem768_public: Box::new(*pair.pk()),
            hybrid: PublicKey::hybrid(public, Box::new(*pair.pk())),
            ik: PublicKey::x25519_only(public),
            x25519,
        }))
    }

    /// The public key with both halves.
    pub fn public(&self) -> &PublicKey {
        &self.0.hybrid
    }

    /// The public key in the form that `suite` uses.
    pub fn public_for(&self, suite: Suite) -> &PublicKey {
        match suite {
            Suite::HybridIk => &self.0.hybrid,
            Suite::Ik => &self.0.ik,
        }
    }

    pub(super) fn x25519(&self) -> &[u8; 32] {
        &self.0.x25519
    }

    pub(super) fn mlkem768(&self) -> &[u8] {
        &self.0.mlkem768
    }

    pub(super) fn mlkem768_public(&self) -> &[u8; MLKEM768_BYTES] {
        &self.0.mlkem768_public
    }
}

fn split(seed: &[u8; IdentitySeed::BYTES]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 64]>) {
    let (mut x25519, mut kem) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 64]));
    x25519.copy_from_slice(&seed[..32]);
    kem.copy_from_slice(&seed[32..]);
    (x25519, kem)
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_hidden_keys() {
        let seed = IdentitySeed::from_bytes([7; 96]);
        let (a, b) = (Identity::from_seed(&seed), Identity::from_seed(&seed.clone()));
        assert_eq!(a.public(), b.public());
        assert_eq!(a.public_for(Suite::Ik).x25519(), a.public().x25519());
        assert_eq!(format!("{seed:?}"), "IdentitySeed(redacted)");
        let other = Identity::from_seed(&IdentitySeed::from_bytes([8; 96]));
        assert_ne!(a.public(), other.public());
    }

    /// A stored seed must give the same identity after an upgrade.
    #[test]
    fn public_key_matches_frozen_bytes() {
        let bytes = std::array::from_fn(|i| i as u8);
        let identity = Identity::from_seed(&IdentitySeed::from_bytes(bytes));
        let hex: String =
            identity.public().fingerprint().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "2ab50b99fa3f993f4b994f7b8d26f45bbe1078ae8ed1575976e161ce598a9996");
    }
}
