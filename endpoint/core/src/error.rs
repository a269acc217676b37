//! What can go wrong, by whose fault.

use rendez_proto::frame::ResetReason;

use crate::noise::HandshakeError;

/// Why a stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Closed {
    /// One side closed it and everything was delivered.
    #[error("finished")]
    Finished,
    /// The websocket is gone and the stream could not outlive it: the Codex
    /// profile never does, ours for [`STREAM_GRACE`].
    ///
    /// [`STREAM_GRACE`]: rendez_proto::limits::STREAM_GRACE
    #[error("the connection was lost")]
    Lost,
    /// The peer, or in the Codex profile and before a stream is open the
    /// relay, ended it.
    #[error("reset: {0}")]
    Reset(ResetReason),
    /// The authenticated peer broke the protocol.
    #[error("the peer misbehaved: {0}")]
    PeerMisbehaved(Misbehaviour),
    /// No answer to the handshake, or no verdict on it, in time.
    #[error("the handshake timed out")]
    HandshakeTimeout,
    /// The registry did not accept the executor's credentials.
    #[error("the registry did not accept the executor's credentials")]
    AuthenticationRejected,
    /// The executor answered the handshake with anything else but yes, or too
    /// many answers were damaged.
    #[error("the handshake was rejected")]
    HandshakeRejected,
    /// Records are missing that nobody will resend (Codex profile), or the
    /// sequence numbers have run out.
    #[error("records out of sequence")]
    OutOfSequence,
    /// This executor's application did not read for [`CODEX_UNREAD_TIMEOUT`]
    /// while the socket had to wait for it (Codex profile).
    ///
    /// [`CODEX_UNREAD_TIMEOUT`]: crate::CODEX_UNREAD_TIMEOUT
    #[error("too much was left unread for too long")]
    ReaderStalled,
}

/// What an authenticated peer did that no correct one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Misbehaviour {
    /// It acknowledged records that were never sent.
    #[error("it acknowledged what was never sent")]
    AckOfUnsent,
    /// A message of length 0 or above 64 MiB.
    #[error("a message of impossible length")]
    MessageLength,
    /// A record above 60 KiB of plaintext.
    #[error("an oversized record")]
    RecordLength,
    /// A message that the application can make nothing of, and says so.
    #[error("a message that is none")]
    InvalidMessage,
    /// Data or a second handshake while the first one waits for its verdict.
    #[error("it did not wait for its authorization")]
    EarlyData,
}

/// Why [`Mux::connect`](crate::Mux::connect) refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Only an orchestrator connects.
    #[error("an executor does not start streams")]
    NotOrchestrator,
    /// The profile is not among [`Config::profiles`](crate::Config::profiles).
    #[error("the profile is not allowed here")]
    ProfileNotAllowed,
    /// A stream of this id exists.
    #[error("the stream id is in use")]
    StreamInUse,
    /// All slots are taken.
    #[error("too many streams")]
    TooManyStreams,
    /// The authorization is longer than an executor accepts.
    #[error("the authorization is too long")]
    AuthorizationTooLong,
    /// The peer's key does not fit the profile, or is not valid.
    #[error("the peer's key cannot be used: {0}")]
    Peer(#[from] HandshakeError),
}

/// Why [`Mux::send`](crate::Mux::send) did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too much waits already, or the stream is not open yet: try again after
    /// [`Event::Writable`](crate::Event::Writable) or
    /// [`Event::Opened`](crate::Event::Opened).
    #[error("the stream is blocked")]
    Blocked,
    /// The stream is over, or was closed on this side.
    #[error("the stream is closed: {0}")]
    Closed(Closed),
    /// The message is empty or above 64 MiB.
    #[error("a message has 1 byte to 64 MiB")]
    TooLarge,
}

/// Why an executor refuses a peer that proved its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The registry said no, or nothing usable.
    Denied,
    /// The registry did not accept the executor's own credentials (401): the
    /// peer is told inside Noise (WIRE.md, section 1.3).
    AuthenticationRejected,
}
