//! Errors of handshakes.

/// The reason why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's message is not for this identity and prologue, is out of
    /// order, or was damaged in transit.
    #[error("the handshake message is not for this identity and stream")]
    NotForUs,
    /// A message above 65,535 bytes, the peer's or ours.
    #[error("the handshake message is longer than Noise allows")]
    TooLong,
    /// The peer's ML-KEM key is not a valid encapsulation key.
    #[error("the peer's public key is not valid")]
    InvalidPeerKey,
    /// The caller's key lacks a part that the suite needs.
    #[error("the peer's public key does not fit the suite")]
    WrongSuite,
    /// The authorization belongs to another key.
    #[error("the authorization is for another peer")]
    WrongPeer,
    /// A primitive failed, which does not happen with inputs of the right
    /// length.
    #[error("a cryptographic primitive failed")]
    Crypto,
}
