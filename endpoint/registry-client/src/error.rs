//! Errors by who is at fault.

use rendez_proto::registry::error::{AbsenceState, ErrorBody, ErrorCode};
use reqwest::StatusCode;

/// Why the registry gave no answer of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The relay's URL is not usable.
    #[error("the relay's URL is not usable: {0}")]
    Url(String),
    /// The system's certificates cannot be read.
    #[error("the system's trust store cannot be read: {0}")]
    TrustStore(String),
    /// This machine cannot make the request.
    #[error("cannot make the request: {0}")]
    Local(String),
    /// Nobody answered.
    #[error("cannot reach the relay at {at}: {why}")]
    Unreachable {
        /// Host and port.
        at: String,
        /// What happened.
        why: String,
    },
    /// What was given as the token cannot be one. It is not shown.
    #[error(
        "this is no token: it is empty, or has spaces, line breaks or other characters that no token has"
    )]
    InvalidToken,
    /// The token or key is unknown, expired or revoked.
    #[error("the relay refused the token: {0}")]
    TokenRefused(String),
    /// The token is good, but not for this.
    #[error("this token may not do that: {0}")]
    Forbidden(String),
    /// The relay does not take this executor's registration.
    #[error("the relay refuses this registration: {0}")]
    RegistrationRefused(String),
    /// No executor ever registered under this id.
    #[error("unknown environment: {0}")]
    UnknownEnvironment(String),
    /// The environment is known, its executor is away.
    #[error("the executor is offline: {0}")]
    Offline(String),
    /// The relay cannot serve now.
    #[error("the relay cannot serve the request now: {0}")]
    Unavailable(String),
    /// The request is not one that the relay can take.
    #[error("the relay does not take this: {0}")]
    Invalid(String),
    /// There is no such thing, or no such call.
    #[error("the relay does not find it: {0}")]
    NotFound(String),
    /// There may be no more of these.
    #[error("the relay is at a limit: {0}")]
    LimitReached(String),
    /// The relay refuses the request for another reason.
    #[error("the relay refuses: {0}")]
    Refused(String),
    /// The answer is not what the API says.
    #[error("the relay answered something else than the API says: {0}")]
    Malformed(String),
}

impl RegistryError {
    /// Whether only a person can help: a retry fails in the same way.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Url(_)
            | Self::TrustStore(_)
            | Self::InvalidToken
            | Self::TokenRefused(_)
            | Self::Forbidden(_)
            | Self::RegistrationRefused(_)
            | Self::UnknownEnvironment(_) => true,
            Self::Local(_)
            | Self::Unreachable { .. }
            | Self::Offline(_)
            | Self::Unavailable(_)
            | Self::Invalid(_)
            | Self::NotFound(_)
            | Self::LimitReached(_)
            | Self::Refused(_)
            | Self::Malformed(_) => false,
        }
    }

    /// The error that a response with this status and body stands for, by its
    /// error code.
    pub(crate) fn from_response(status: StatusCode, body: &[u8]) -> Self {
        let Ok(ErrorBody { error, rendez }) = serde_json::from_slice::<ErrorBody>(body) else {
            let what = format!("HTTP {status} without an error body; is this a Rendez relay?");
            return Self::Malformed(what);
        };
        let message = error.message;
        match error.code {
            ErrorCode::Unauthorized => Self::TokenRefused(message),
            ErrorCode::Forbidden => Self::Forbidden(message),
            ErrorCode::EnvironmentOffline => match rendez.map(|absence| absence.state) {
                Some(AbsenceState::Unknown) => Self::UnknownEnvironment(message),
                _ => Self::Offline(message),
            },
            ErrorCode::InvalidRequest | ErrorCode::BodyTooLarge => Self::Invalid(message),
            ErrorCode::NotFound => Self::NotFound(message),
            ErrorCode::LimitReached => Self::LimitReached(message),
            ErrorCode::RequestTimeout => Self::Unavailable(message),
            _ if status.is_server_error() => Self::Unavailable(message),
            _ => Self::Refused(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_map_to_errors() {
        let refused = |status, body: &str| {
            RegistryError::from_response(StatusCode::from_u16(status).unwrap(), body.as_bytes())
        };
        let error = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
        assert!(matches!(refused(401, &error("unauthorized")), RegistryError::TokenRefused(_)));
        assert!(matches!(refused(403, &error("forbidden")), RegistryError::Forbidden(_)));
        assert!(matches!(refused(409, &error("environment_offline")), RegistryError::Offline(_)));
        assert!(matches!(refused(503, &error("unavailable")), RegistryError::Unavailable(_)));
        assert!(matches!(refused(408, &error("request_timeout")), RegistryError::Unavailable(_)));
        assert!(matches!(refused(400, &error("invalid_request")), RegistryError::Invalid(_)));
        assert!(matches!(refused(413, &error("body_too_large")), RegistryError::Invalid(_)));
        assert!(matches!(refused(404, &error("not_found")), RegistryError::NotFound(_)));
        assert!(matches!(refused(403, &error("limit_reached")), RegistryError::LimitReached(_)));
        assert!(matches!(refused(405, &error("method_not_allowed")), RegistryError::Refused(_)));
        assert!(matches!(refused(404, "<html>"), RegistryError::Malformed(_)));
        let unknown = r#"{"error":{"code":"environment_offline","message":"m"},
            "rendez":{"state":"unknown"}}"#;
        assert!(matches!(refused(409, unknown), RegistryError::UnknownEnvironment(_)));
    }
}
