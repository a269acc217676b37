//! The keys that a Noise handshake produces.

use zeroize::Zeroizing;

/// The transport keys by direction.
pub(super) struct TransportKeys {
    pub(super) initiator_to_responder: Zeroizing<[u8; 32]>,
    pub(super) responder_to_initiator: Zeroizing<[u8; 32]>,
}
