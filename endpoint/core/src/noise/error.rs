//! Why a handshake fails.

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The peer's message is not for this identity, prologue and moment, or
    /// was damaged on the way.
    #[error("the handshake message is not for this identity and stream")]
    NotForUs,
    /// A message above 65,535 bytes, the peer's or ours.
    #[error("the handshake message is longer than Noise allows")]
    TooLong,
    /// The peer's ML-KEM key is not a valid encapsulation key.
    #[error("the peer's public key is not valid")]
    InvalidPeerKey,
    /// The caller gave a key that lacks what the suite needs.
    #[error("the peer's public key does not fit the suite")]
    WrongSuite,
    /// The authorization was given for another key.
    #[error("the authorization is for another peer")]
    WrongPeer,
    /// A primitive failed; none of ours does on inputs of the right length.
    #[error("a cryptographic primitive failed")]
    Crypto,
}
