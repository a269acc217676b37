//! The state of a relay, its open websockets and registrations, for operators.
//!
//! ```text
//! GET /v1/status                               admin -> RelayStatus
//! GET /v1/connections?environment=ID&after=C   admin -> ConnectionList
//! GET /v1/registrations?after=ID               admin -> RegistrationList
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::profile_names;
use crate::audit::Head;
use crate::ids::{EnvironmentId, Generation, RegistrationId};
use crate::profile::Profile;

/// A relay, as a whole.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// The program's version.
    pub version: String,
    /// When it started, in seconds since 1970.
    pub started_at_unix_secs: u64,
    /// Whether it is about to stop.
    pub draining: bool,
    /// Executors' websockets that are open.
    pub executors: u64,
    /// Orchestrators' websockets that are open.
    pub orchestrators: u64,
    /// Streams that it knows, those whose ends may come back included.
    pub streams: u64,
    /// The audit log.
    pub audit: AuditStatus,
    /// Records of connections that wait for the database.
    pub history_unwritten: u64,
    /// Records of connections that were lost since the start.
    pub history_lost: u64,
}

/// The audit log, as a whole.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditStatus {
    /// Its end.
    pub head: Head,
    /// Events that wait for the database.
    pub unwritten: u64,
    /// Events that were lost since the start; the log has gaps for them.
    pub lost: u64,
}

/// One page of open websockets, ordered by environment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionList {
    /// The entries.
    pub connections: Vec<ConnectionEntry>,
    /// Ask again with `after` set to this for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Which end of a stream a websocket is for.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionRole {
    /// An executor.
    Executor,
    /// An orchestrator.
    Orchestrator,
}

/// One open websocket.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// Its name while it is open, for `after`.
    pub id: String,
    /// Its environment.
    pub environment_id: EnvironmentId,
    /// Its end.
    pub role: ConnectionRole,
    /// Its registration.
    pub executor_registration_id: RegistrationId,
    /// Its place in the environment's order.
    pub generation: Generation,
    /// The subject that asked for its ticket: the id of a token, or another subject.
    pub subject: String,
    /// The profile that its ticket is for.
    pub profile: String,
    /// When it began, in seconds since 1970.
    pub connected_at_unix_secs: u64,
    /// How long ago a ping was answered last, in milliseconds. Absent: none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_ms_ago: Option<u64>,
    /// Bytes of messages that came from it.
    pub received_bytes: u64,
    /// Bytes of messages that went to it.
    pub sent_bytes: u64,
}

/// Names an open websocket of a node, and its place in lists. As text, which is
/// the `id` of its entry: `<environment>.<number>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionCursor {
    /// Its environment.
    pub environment: EnvironmentId,
    /// Its number, which grows from one websocket to the next.
    pub number: u64,
}

/// The text does not name a websocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a connection")]
pub struct NotACursor;

impl FromStr for ConnectionCursor {
    type Err = NotACursor;
    fn from_str(text: &str) -> Result<Self, NotACursor> {
        // no environment has a dot in its id
        let (environment, number) = text.split_once('.').ok_or(NotACursor)?;
        let environment = environment.parse().map_err(|_| NotACursor)?;
        Ok(Self { environment, number: number.parse().map_err(|_| NotACursor)? })
    }
}

impl fmt::Display for ConnectionCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.environment, self.number)
    }
}

/// One page of registrations, ordered by environment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationList {
    /// The entries.
    pub registrations: Vec<RegistrationEntry>,
    /// Ask again with `after` set to this for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<EnvironmentId>,
}

/// An environment's current registration.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationEntry {
    /// The environment.
    pub environment_id: EnvironmentId,
    /// Its name.
    pub executor_registration_id: RegistrationId,
    /// Its place in the environment's order.
    pub generation: Generation,
    /// The profiles that the executor offers.
    #[serde(with = "profile_names")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub profiles: Vec<Profile>,
    /// SHA-256 of the executor's public key, in hexadecimal digits.
    pub key_fingerprint: String,
    /// The subject that registered: the id of a token, or another subject.
    pub subject: String,
    /// The time of the registration, in seconds since 1970.
    pub registered_at_unix_secs: u64,
}
