//! Errors and reasons for the end of a stream.

use rendez_proto::frame::ResetReason;

use crate::noise::HandshakeError;

/// The reason why a stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Closed {
    /// One side closed the stream and everything was delivered.
    #[error("closed normally")]
    Finished,
    /// The websocket was lost and the stream could not outlive it. A stream of
    /// the Codex profile never does; one of our profiles does for
    /// [`STREAM_GRACE`].
    ///
    /// [`STREAM_GRACE`]: rendez_proto::limits::STREAM_GRACE
    #[error("the connection was lost")]
    Lost,
    /// The peer ended the stream; in the Codex profile, and before a stream is
    /// open, also the relay.
    #[error("the stream was reset: {0}")]
    Reset(ResetReason),
    /// The authenticated peer broke the protocol.
    #[error("the peer violated the protocol: {0}")]
    PeerMisbehaved(Misbehaviour),
    /// The handshake was not answered, or not authorized, in time.
    #[error("the handshake timed out")]
    HandshakeTimeout,
    /// The registry did not accept the executor's credentials.
    #[error("the registry did not accept the executor's credentials")]
    AuthenticationRejected,
    /// The executor did not accept the handshake, or too many of its answers
    /// were damaged.
    #[error("the executor rejected the handshake")]
    HandshakeRejected,
    /// Records are missing that will not be retransmitted (Codex profile), or
    /// the sequence numbers are exhausted.
    #[error("records out of sequence")]
    OutOfSequence,
    /// This executor's application did not read for [`CODEX_UNREAD_TIMEOUT`]
    /// while socket reads were paused because of it (Codex profile).
    ///
    /// [`CODEX_UNREAD_TIMEOUT`]: crate::CODEX_UNREAD_TIMEOUT
    #[error("too much received data was left unread for too long")]
    ReaderStalled,
    /// The peer's incomplete message would exceed [`PARTIAL_MEMORY_BYTES`], which all
    /// streams of this endpoint share.
    ///
    /// [`PARTIAL_MEMORY_BYTES`]: crate::framing::PARTIAL_MEMORY_BYTES
    #[error("the memory for incomplete messages is exhausted")]
    MemoryExhausted,
}

/// A protocol violation by an authenticated peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Misbehaviour {
    /// An acknowledgement of records that were never sent.
    #[error("acknowledgement of a record that was never sent")]
    AckOfUnsent,
    /// A message of length 0 or above 64 MiB.
    #[error("invalid message length")]
    MessageLength,
    /// A record above 60 KiB of plaintext.
    #[error("oversized record")]
    RecordLength,
    /// A message that this application reported as invalid.
    #[error("invalid application message")]
    InvalidMessage,
    /// Data or a second handshake before the first one was authorized.
    #[error("data before the handshake was authorized")]
    EarlyData,
}

/// The reason why [`Mux::connect`](crate::Mux::connect) failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// This end is an executor; only an orchestrator connects.
    #[error("an executor cannot open streams")]
    NotOrchestrator,
    /// The profile is not among [`Config::profiles`](crate::Config::profiles).
    #[error("the profile is not enabled at this endpoint")]
    ProfileNotAllowed,
    /// A stream with this id exists.
    #[error("the stream id is in use")]
    StreamInUse,
    /// The limit of streams is reached.
    #[error("too many streams")]
    TooManyStreams,
    /// The authorization is longer than an executor accepts.
    #[error("the authorization is longer than 4096 bytes")]
    AuthorizationTooLong,
    /// The peer's key does not fit the profile, or is invalid.
    #[error("the peer's key cannot be used: {0}")]
    Peer(#[from] HandshakeError),
}

/// The reason why [`Mux::send`](crate::Mux::send) did not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The send queue is full, or the stream is not open yet. Try again after
    /// [`Event::Writable`](crate::Event::Writable) or
    /// [`Event::Opened`](crate::Event::Opened).
    #[error("the stream has no room for the message")]
    Blocked,
    /// The stream has ended, or was closed on this side.
    #[error("the stream is closed: {0}")]
    Closed(Closed),
    /// The message is empty or above 64 MiB.
    #[error("invalid message length: must be 1 byte to 64 MiB")]
    TooLarge,
}

/// The reason why an executor refuses a peer that proved its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The registry denied access, or gave no usable answer.
    Denied,
    /// The registry did not accept the executor's own credentials (401). The
    /// peer learns this inside Noise (docs/codex-wire.md#validate).
    AuthenticationRejected,
}
