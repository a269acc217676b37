//! The state of environments, as far as a relay that cannot decrypt streams knows
//! it.
//!
//! ```text
//! GET /v1/environments?after=ID          admin, orchestrator -> EnvironmentList
//! GET /v1/environments/{id}?probe=true   admin, orchestrator -> EnvironmentDetail
//! ```

use serde::{Deserialize, Serialize};

use super::profile_names;
use crate::ids::{EnvironmentId, Generation, RegistrationId};
use crate::profile::Profile;

/// Whether an environment can be reached.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnvironmentState {
    /// No executor ever registered under this id: perhaps it is misspelt.
    NeverSeen,
    /// An executor registered, and its websocket is not open, or its
    /// registration was ended.
    Offline,
    /// The websocket of the current registration's executor is open.
    Connected,
    /// It is open, and the relay is about to send it elsewhere.
    Draining,
}

impl EnvironmentState {
    /// The name on the wire and for people.
    pub fn as_str(self) -> &'static str {
        match self {
            EnvironmentState::NeverSeen => "never_seen",
            EnvironmentState::Offline => "offline",
            EnvironmentState::Connected => "connected",
            EnvironmentState::Draining => "draining",
        }
    }
}

macro_rules! end_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $words:literal;)*) => {
        /// Why a websocket ended: a closed set.
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum EndReason {
            $($(#[$doc])* $name,)*
        }

        impl EndReason {
            /// All reasons.
            pub const ALL: &'static [EndReason] = &[$(EndReason::$name,)*];

            /// The name on the wire and in the database.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(EndReason::$name => $text,)*
                }
            }

            /// The same for people, to follow "the executor is away: ".
            pub fn words(self) -> &'static str {
                match self {
                    $(EndReason::$name => $words,)*
                }
            }

            /// Parses the name of [`as_str`](Self::as_str).
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
            }
        }
    };
}

end_reasons! {
    /// It sent a close frame.
    ClientClosed = "client_closed", "it closed its websocket";
    /// The path broke, or it left without a close frame, as a process that is
    /// killed does, and stock ends always do.
    SocketError = "socket_error", "its connection broke off";
    /// It was silent for too long.
    PingTimeout = "ping_timeout", "it stopped answering pings";
    /// It did not read what the relay sent it.
    NotReading = "not_reading", "it stopped reading";
    /// It broke the websocket protocol or sent an invalid frame.
    ProtocolViolation = "protocol_violation", "it broke the protocol and was cut off";
    /// Another websocket of the environment took its place.
    Superseded = "superseded", "another executor took its place";
    /// Its token, registration or environment was revoked.
    Revoked = "revoked", "its access was revoked";
    /// The relay was stopped.
    RelayShutdown = "relay_shutdown", "the relay was stopped";
    /// The relay crashed while it was open: it ended before the relay's next start,
    /// which is the recorded time.
    RelayRestarted = "relay_restarted", "the relay was restarted";
}

/// One page of environments, ordered by id.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentList {
    /// The entries that the caller may see.
    pub environments: Vec<EnvironmentEntry>,
    /// Ask again with `after` set to this for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<EnvironmentId>,
}

/// One environment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentEntry {
    /// The id for `connect`.
    pub environment_id: EnvironmentId,
    /// Whether its executor is connected.
    pub online: bool,
    /// The same, in more words.
    pub state: EnvironmentState,
    /// Since when it is in this state, in seconds since 1970. Absent if that is
    /// not known, as when a registration ends whose executor was away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_secs: Option<u64>,
    /// If it is offline: why. Absent if it has not connected since it
    /// registered, or not so long ago that it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_because: Option<EndReason>,
    /// The current claim. Absent: it was ended, alone or with the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor_registration_id: Option<RegistrationId>,
    /// The last claim's place in the environment's order.
    pub generation: Generation,
    /// The profiles that the executor of the current claim offers.
    #[serde(with = "profile_names")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub profiles: Vec<Profile>,
    /// First registration, in seconds since 1970.
    pub created_at_unix_secs: u64,
    /// Current registration, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_at_unix_secs: Option<u64>,
}

/// All that is known about one environment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentDetail {
    /// Its id.
    pub environment_id: EnvironmentId,
    /// Whether it can be reached.
    pub state: EnvironmentState,
    /// Its entry in the list. Absent if it was never seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<EnvironmentEntry>,
    /// The executor's websocket, while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executor: Option<LiveExecutor>,
    /// Websockets of orchestrators that are open.
    pub orchestrators: u64,
    /// Streams that the relay knows, those whose ends may come back included.
    pub streams: u64,
    /// The newest connections of its executors, the newest first.
    pub history: Vec<ConnectionRecord>,
}

/// An executor's websocket that is open.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveExecutor {
    /// Under which registration.
    pub executor_registration_id: RegistrationId,
    /// Since when, in seconds since 1970.
    pub connected_at_unix_secs: u64,
    /// The last round trip through the websocket. Absent: none was proved yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<RoundTrip>,
    /// Bytes of messages that came from the executor.
    pub received_bytes: u64,
    /// Bytes of messages that went to the executor.
    pub sent_bytes: u64,
}

/// A ping whose pong came back: the far end's websocket layer is alive, not
/// only its TCP, nor a proxy on the way.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrip {
    /// How long ago the pong came, in milliseconds.
    pub age_ms: u64,
    /// From ping to pong, in microseconds, waits in buffers included.
    pub round_trip_us: u64,
}

/// One connection of an executor, open or over.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRecord {
    /// Under which registration.
    pub executor_registration_id: RegistrationId,
    /// Its place in the environment's order.
    pub generation: Generation,
    /// When it began, in seconds since 1970.
    pub connected_at_unix_secs: u64,
    /// When it ended, in seconds since 1970. Absent: it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at_unix_secs: Option<u64>,
    /// Why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_because: Option<EndReason>,
    /// Bytes of messages that came from the executor. 0 while it is open, and if
    /// the relay crashed.
    pub received_bytes: u64,
    /// Bytes of messages that went to the executor. The same.
    pub sent_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_and_database_words_are_equal() {
        for reason in EndReason::ALL {
            let wire = serde_json::to_string(reason).unwrap();
            assert_eq!(wire, format!("\"{}\"", reason.as_str()));
            assert_eq!(EndReason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(EndReason::parse("bored"), None);
        for state in [
            EnvironmentState::NeverSeen,
            EnvironmentState::Offline,
            EnvironmentState::Connected,
            EnvironmentState::Draining,
        ] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{}\"", state.as_str()));
        }
    }
}
