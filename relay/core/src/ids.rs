//! Names of ports and of the keys that own streams.

/// Names one websocket of a hub. A key of a port that has left matches nothing,
/// also when its index is in use again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortKey {
    pub(crate) index: usize,
    pub(crate) epoch: u64,
}

/// The owner of a stream id: the fingerprint of the orchestrator's static key,
/// which its ticket carries. The same orchestrator may return on another
/// websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyFingerprint(pub [u8; 32]);
