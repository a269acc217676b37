//! X25519 over plain bytes: the Noise libraries use another version of the
//! curve crate than this one, so only bytes are exchanged with them.

use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// The public key of a secret.
pub(super) fn public(secret: &[u8; 32]) -> [u8; 32] {
    PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
}

/// The shared secret, or `None` if the peer's point has small order: such a
/// result would not depend on our secret.
pub(super) fn shared(secret: &[u8; 32], peer: &[u8; 32]) -> Option<Zeroizing<[u8; 32]>> {
    let shared = StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*peer));
    shared.was_contributory().then(|| Zeroizing::new(shared.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_agree_and_small_order_points_fail() {
        let (a, b) = ([1; 32], [2; 32]);
        assert_eq!(shared(&a, &public(&b)), shared(&b, &public(&a)));
        assert!(shared(&a, &public(&b)).is_some());
        assert!(shared(&a, &[0; 32]).is_none());
    }
}
