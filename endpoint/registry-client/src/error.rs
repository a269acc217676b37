//! Errors by who is at fault.

use rendez_proto::registry::error::{AbsenceState, ErrorBody, ErrorCode};
use reqwest::StatusCode;

/// The error of a call to the registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// The relay's URL is invalid.
    #[error("invalid relay URL: {0}")]
    Url(String),
    /// The system's certificates cannot be read.
    #[error("cannot read the system's trust store: {0}")]
    TrustStore(String),
    /// This machine cannot make the request.
    #[error("cannot prepare the request: {0}")]
    Local(String),
    /// No response arrived.
    #[error("cannot reach the relay at {at}: {why}")]
    Unreachable {
        /// Host and port.
        at: String,
        /// The cause.
        why: String,
    },
    /// The text given as a token is not one. The error does not show it.
    #[error(
        "invalid token: it is empty, or contains spaces, line breaks or other characters that tokens do not have"
    )]
    InvalidToken,
    /// The token or key is unknown, expired or revoked.
    #[error("the relay refused the token: {0}")]
    TokenRefused(String),
    /// The token is valid but does not permit the call.
    #[error("the token does not permit this: {0}")]
    Forbidden(String),
    /// The relay does not accept this executor's registration.
    #[error("the relay refused the registration: {0}")]
    RegistrationRefused(String),
    /// No executor has ever registered under this id.
    #[error("unknown environment: {0}")]
    UnknownEnvironment(String),
    /// The environment is known, but its executor is not connected.
    #[error("the executor is offline: {0}")]
    Offline(String),
    /// The relay cannot serve the request at the moment.
    #[error("the relay cannot serve the request now: {0}")]
    Unavailable(String),
    /// The relay rejects the content of the request.
    #[error("the relay rejected the request as invalid: {0}")]
    Invalid(String),
    /// The object, or the call, does not exist.
    #[error("not found on the relay: {0}")]
    NotFound(String),
    /// A limit of the relay does not allow another object of this kind.
    #[error("the relay has reached a limit: {0}")]
    LimitReached(String),
    /// The relay refuses the request for another reason.
    #[error("the relay refused the request: {0}")]
    Refused(String),
    /// The response violates the API.
    #[error("unexpected response from the relay: {0}")]
    Malformed(String),
}

impl RegistryError {
    /// Whether a retry would fail in the same way: an operator has to act first.
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

    /// Converts an error response, by the error code in its body.
    pub(crate) fn from_response(status: StatusCode, body: &[u8]) -> Self {
        let Ok(ErrorBody { error, rendez }) = serde_json::from_slice::<ErrorBody>(body) else {
            let why = format!("HTTP {status} without an error body; is this a Rendez relay?");
            return Self::Malformed(why);
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
