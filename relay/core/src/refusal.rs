//! Refusals of frames because of a limit, for the audit log.

use rendez_proto::frame::ResetReason;

use crate::account::Level;
use crate::stats::Dropped;

/// The limit that a stream, a handshake or a frame ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// A quota of streams.
    Streams(Level),
    /// [`STREAMS_PER_ORCHESTRATOR`](crate::STREAMS_PER_ORCHESTRATOR)
    StreamsOfWebsocket,
    /// [`CLAIMS_PER_EXECUTOR`](crate::CLAIMS_PER_EXECUTOR)
    StreamsOfExecutor,
    /// A rate of handshakes.
    Handshakes(Level),
    /// A quota of memory: a handshake that would have to wait.
    Memory,
    /// A quota of memory: a frame that would have to wait.
    QueueMemory,
    /// Too many handshakes of the token have failed at this executor.
    FailedHandshakes,
    /// Too many have failed at the executor, of all tokens: it is in its cooldown.
    ExecutorCooldown,
}

impl Refusal {
    /// All of them.
    pub const ALL: [Refusal; 12] = [
        Refusal::Streams(Level::Node),
        Refusal::Streams(Level::Environment),
        Refusal::Streams(Level::Token),
        Refusal::StreamsOfWebsocket,
        Refusal::StreamsOfExecutor,
        Refusal::Handshakes(Level::Node),
        Refusal::Handshakes(Level::Environment),
        Refusal::Handshakes(Level::Token),
        Refusal::Memory,
        Refusal::QueueMemory,
        Refusal::FailedHandshakes,
        Refusal::ExecutorCooldown,
    ];

    /// The name of the limit, for the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Streams(Level::Node) => "streams of the node",
            Refusal::Streams(Level::Environment) => "streams of the environment",
            Refusal::Streams(Level::Token) => "streams of the token",
            Refusal::StreamsOfWebsocket => "streams of the websocket",
            Refusal::StreamsOfExecutor => "streams of the executor",
            Refusal::Handshakes(Level::Node) => "handshakes of the node",
            Refusal::Handshakes(Level::Environment) => "handshakes of the environment",
            Refusal::Handshakes(Level::Token) => "handshakes of the token",
            Refusal::Memory => "memory for handshakes that wait",
            Refusal::QueueMemory => "memory for frames that wait",
            Refusal::FailedHandshakes => "failed handshakes of the token",
            Refusal::ExecutorCooldown => "failed handshakes at the executor",
        }
    }
}

/// The reason of a refused frame: for counters, for the reset that its sender
/// gets, and the limit, if it was one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused(pub(crate) Dropped, pub(crate) ResetReason, pub(crate) Option<Refusal>);

impl Refused {
    pub(crate) fn streams(level: Level) -> Self {
        Self(Dropped::Quota, ResetReason::Overloaded, Some(Refusal::Streams(level)))
    }

    pub(crate) fn too_many(limit: Refusal) -> Self {
        Self(Dropped::TooManyStreams, ResetReason::Overloaded, Some(limit))
    }

    pub(crate) fn guarded(limit: Refusal) -> Self {
        Self(Dropped::HandshakeGuard, ResetReason::HandshakeRefused, Some(limit))
    }

    pub(crate) fn too_often(level: Level) -> Self {
        Self(Dropped::HandshakeRate, ResetReason::Overloaded, Some(Refusal::Handshakes(level)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_own_text() {
        let mut words = Refusal::ALL.map(Refusal::as_str).to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Refusal::ALL.len());
    }
}
