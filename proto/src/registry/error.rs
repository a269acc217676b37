//! The body of every failure, in the shape that stock clients parse:
//!
//! ```json
//! {"error": {"code": "environment_offline", "message": "..."},
//!  "rendez": {"state": "offline", "since_unix_secs": 1800000000, "away_because": "ping_timeout"}}
//! ```
//!
//! Codes are a closed set and part of the protocol; messages are for people.
//! Stock orchestrators retry 408, 429, 5xx, and 409 with exactly
//! `environment_offline` (docs/codex-wire.md#connect).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::environments::EndReason;

/// The body of an answer that is not a success.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
    /// Our addition to `environment_offline`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rendez: Option<Absence>,
}

/// A code for programs and a message for people.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct ErrorDetail {
    /// The code.
    pub code: ErrorCode,
    /// The cause and the next step, for people.
    pub message: String,
}

impl ErrorDetail {
    /// An error with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Why an environment has no executor.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absence {
    /// Whether one ever was.
    pub state: AbsenceState,
    /// Since when it is away, in seconds since 1970. Absent if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_secs: Option<u64>,
    /// Why it is away. Absent if it has not connected since it registered, which
    /// was at the time above, or if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away_because: Option<EndReason>,
}

impl Absence {
    /// Of an environment that no executor ever registered for.
    pub const UNKNOWN: Absence =
        Absence { state: AbsenceState::Unknown, since_unix_secs: None, away_because: None };
}

/// Whether an executor ever registered for an environment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbsenceState {
    /// No executor ever registered under this id: perhaps it is misspelt.
    Unknown,
    /// An executor registered, and is not connected. It may have no registration
    /// any more.
    Offline,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// The kind of error, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// All codes.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The code's text on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => $text,)*
                }
            }
        }
    };
}

error_codes! {
    /// The request does not follow the API: the sender's fault.
    InvalidRequest = "invalid_request",
    /// The request's body is too large: the sender's fault.
    BodyTooLarge = "body_too_large",
    /// The request's body did not arrive in time.
    RequestTimeout = "request_timeout",
    /// No profile that both sides know and allow.
    UnsupportedProfile = "unsupported_profile",
    /// A registration without profile and key, from an executor that is too old.
    LegacyRegistration = "legacy_registration",
    /// No bearer token, or one that is unknown, expired or revoked.
    Unauthorized = "unauthorized",
    /// The token has another role or does not cover the environment.
    Forbidden = "forbidden",
    /// A limit is reached.
    LimitReached = "limit_reached",
    /// No executor is connected for the environment: try again later.
    EnvironmentOffline = "environment_offline",
    /// Another executor has claimed the environment since.
    RegistrationSuperseded = "registration_superseded",
    /// No such path, or no such thing.
    NotFound = "not_found",
    /// The path exists, the method does not.
    MethodNotAllowed = "method_not_allowed",
    /// The registry cannot answer now: try again later.
    Unavailable = "unavailable",
    /// The registry's fault.
    Internal = "internal",
    /// A code of a newer or foreign registry; never sent by ours.
    Other = "other",
}

impl From<String> for ErrorCode {
    fn from(text: String) -> Self {
        let known = Self::ALL.iter().find(|code| code.as_str() == text);
        known.copied().unwrap_or(ErrorCode::Other)
    }
}

impl From<ErrorCode> for String {
    fn from(code: ErrorCode) -> Self {
        code.as_str().to_owned()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
