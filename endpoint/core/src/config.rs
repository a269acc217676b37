//! The configuration of a [`Mux`](crate::Mux), its inputs and its events.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use rendez_proto::ids::{EnvironmentId, RegistrationId, StreamId};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits;
use rendez_proto::profile::Profile;

use crate::error::Closed;
use crate::noise::{Identity, PendingHandshake};

/// The end of the streams that a [`Mux`](crate::Mux) is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The Noise responder, which asks the registry about each peer.
    Executor,
    /// The Noise initiator.
    Orchestrator,
}

/// The configuration of a [`Mux`](crate::Mux).
#[derive(Debug, Clone)]
pub struct Config {
    /// The end that this is.
    pub role: Role,
    /// This endpoint's keys.
    pub identity: Identity,
    /// The environment that the executor serves; bound into every handshake.
    pub environment: EnvironmentId,
    /// The profiles that an executor accepts, or that an orchestrator may
    /// connect with.
    pub profiles: Vec<Profile>,
    /// Bounds on streams.
    pub limits: Limits,
}

impl Config {
    /// An executor that accepts `profiles`, with default limits.
    pub fn executor(
        identity: Identity,
        environment: EnvironmentId,
        profiles: Vec<Profile>,
    ) -> Self {
        let limits = Limits::default();
        Self { role: Role::Executor, identity, environment, profiles, limits }
    }

    /// An orchestrator that may connect with the hybrid profiles, with default
    /// limits. [`Profile::RendezIkV1`] must be added explicitly.
    pub fn orchestrator(identity: Identity, environment: EnvironmentId) -> Self {
        let profiles = vec![Profile::RendezHybridIkV1, Profile::NoiseHybridIkV1];
        let limits = Limits::default();
        Self { role: Role::Orchestrator, identity, environment, profiles, limits }
    }
}

/// Bounds on a [`Mux`](crate::Mux).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Streams at once, including those that wait for a verdict or have unread
    /// messages after their end. Each may buffer
    /// [`WINDOW_MIN_BYTES`](crate::window::WINDOW_MIN_BYTES) in each direction, one
    /// message to send, and
    /// [`PARTIAL_MIN_BYTES`](crate::framing::PARTIAL_MIN_BYTES) of an incomplete one;
    /// all together may buffer
    /// [`SEND_MEMORY_BYTES`](crate::window::SEND_MEMORY_BYTES),
    /// [`RECEIVE_MEMORY_BYTES`](crate::window::RECEIVE_MEMORY_BYTES) and
    /// [`PARTIAL_MEMORY_BYTES`](crate::framing::PARTIAL_MEMORY_BYTES) more.
    pub streams: usize,
    /// Handshakes that wait for the registry's verdict.
    pub pending_handshakes: usize,
    /// How long a stream of a reliable profile outlives its socket before it is
    /// [`Closed::Lost`]. The shorter grace of both ends applies.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: limits::STREAMS_PER_EXECUTOR,
            pending_handshakes: limits::PENDING_HANDSHAKES,
            grace: limits::STREAM_GRACE,
        }
    }
}

/// How long a stream outlives its socket, in the notation of configuration
/// files: `90s`, `5m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(Duration);

const _: () = assert!(limits::STREAM_GRACE.as_secs() <= Grace::MAX.as_secs());

/// The text is not a valid grace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid grace: must be a duration from 1s to 1h, such as 90s or 5m")]
pub struct InvalidGrace;

impl Grace {
    /// The longest grace: a stream that waits keeps its slot and its memory.
    pub const MAX: Duration = Duration::from_secs(3600);

    /// The duration, 1 s to [`Grace::MAX`].
    pub fn get(self) -> Duration {
        self.0
    }
}

impl Default for Grace {
    fn default() -> Self {
        Self(limits::STREAM_GRACE)
    }
}

impl FromStr for Grace {
    type Err = InvalidGrace;

    fn from_str(text: &str) -> Result<Self, InvalidGrace> {
        let grace = humantime::parse_duration(text).map_err(|_| InvalidGrace)?;
        let range = Duration::from_secs(1)..=Self::MAX;
        if range.contains(&grace) { Ok(Self(grace)) } else { Err(InvalidGrace) }
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// The parameters of a stream to start.
#[derive(Debug, Clone)]
pub struct Connect {
    /// The stream id; random.
    pub stream: StreamId,
    /// The profile; one that the executor offers.
    pub profile: Profile,
    /// The executor's current registration, from the registry.
    pub registration: RegistrationId,
    /// The executor's key, from the registry.
    pub peer: PublicKey,
    /// The authorization from the registry, for the executor to check; at most
    /// [`AUTHORIZATION_MAX_BYTES`](limits::AUTHORIZATION_MAX_BYTES) of UTF-8.
    pub authorization: Bytes,
}

/// Identifies a stream of one [`Mux`](crate::Mux). The key of a removed stream
/// never refers to another one; calls with it have no effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
}

/// An event for the application.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer proved that it holds `peer` and requests a stream. Ask the
    /// registry, then call [`Mux::authorize`](crate::Mux::authorize) with the
    /// value that [`PendingHandshake::authorize`] returns, or
    /// [`Mux::refuse`](crate::Mux::refuse).
    AuthorizationNeeded {
        /// The stream.
        key: Key,
        /// The stream id on the relay.
        stream: StreamId,
        /// The registration that the peer addressed.
        registration: RegistrationId,
        /// The peer's static key, proven by the handshake.
        peer: PublicKey,
        /// The registry's authorization that the peer presented; UTF-8.
        authorization: Bytes,
        /// The handshake; consumed to record the registry's consent.
        pending: PendingHandshake,
    },
    /// The stream is open in both directions.
    Opened {
        /// The stream.
        key: Key,
    },
    /// Messages can be received. The event is repeated only after
    /// [`Mux::recv`](crate::Mux::recv) has returned `None`.
    Readable {
        /// The stream.
        key: Key,
    },
    /// A message that was refused as [`Blocked`](crate::SendError::Blocked) may
    /// be sent again.
    Writable {
        /// The stream.
        key: Key,
    },
    /// The stream has ended, but received messages are unread.
    /// [`Event::Closed`] follows when they have been read.
    Ended {
        /// The stream.
        key: Key,
    },
    /// The stream has ended and every received message was read. The last event
    /// of its key.
    Closed {
        /// The stream.
        key: Key,
        /// The reason.
        why: Closed,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_must_be_between_1s_and_1h() {
        for (text, seconds) in [("90s", 90), ("1s", 1), ("5m", 300), ("1h", 3600), ("1m 30s", 90)] {
            let grace: Grace = text.parse().unwrap();
            assert_eq!(grace.get(), Duration::from_secs(seconds));
            assert_eq!(grace.to_string().parse(), Ok(grace));
        }
        for bad in ["", "90", "0s", "999ms", "61m", "-1s", "forever"] {
            assert_eq!(bad.parse::<Grace>(), Err(InvalidGrace), "{bad}");
        }
        assert_eq!(Grace::default().to_string(), "1m 30s");
    }
}
