//! The mapping from the errors of operations to codes, and from codes to statuses.

use axum::Json;
use axum::http::header::{CACHE_CONTROL, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use rendez_proto::registry::error::{ErrorBody, ErrorCode, ErrorDetail};

use crate::jwt::JwtError;
use crate::model::Forbidden;
use crate::public_url::InvalidPublicUrl;
use crate::registry::environments::ListError;
use crate::registry::executor_keys::ProofError;
use crate::registry::registrations::{ConnectError, RegisterError, ValidateError};
use crate::registry::tickets::IssueError;
use crate::registry::tokens::{AuthError, CreateTokenError, RotateError};
use crate::store::StoreError;

/// The `Retry-After` of a 503 in seconds. Stock clients ignore it.
const RETRY_AFTER_SECS: HeaderValue = HeaderValue::from_static("2");

/// Returns the status of a code. Stock clients retry 408, 429, 5xx, and 409 with
/// `environment_offline`. A stock executor takes 401 as a verdict on its own token
/// (docs/codex-wire.md#connect, docs/codex-wire.md#validate).
pub fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidRequest
        | ErrorCode::UnsupportedProfile
        | ErrorCode::LegacyRegistration => StatusCode::BAD_REQUEST,
        ErrorCode::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorCode::Forbidden | ErrorCode::LimitReached => StatusCode::FORBIDDEN,
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorCode::EnvironmentOffline | ErrorCode::RegistrationSuperseded => StatusCode::CONFLICT,
        ErrorCode::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal | ErrorCode::Other => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// A response that reports an error.
#[derive(Debug)]
pub(super) struct Failure {
    body: ErrorBody,
}

impl Failure {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { body: ErrorBody { error: ErrorDetail::new(code, message), rendez: None } }
    }

    pub(super) fn code(&self) -> ErrorCode {
        self.body.error.code
    }

    /// An error of the registry: the log has the reason, the client has not.
    fn ours(code: ErrorCode, error: &dyn std::error::Error) -> Self {
        tracing::warn!(%code, %error, "a request failed");
        Self::new(
            code,
            match code {
                ErrorCode::Unavailable => "the registry is temporarily unavailable; try again",
                _ => "the registry failed; see its log",
            },
        )
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = status(self.code());
        let mut response = (status, Json(self.body)).into_response();
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, RETRY_AFTER_SECS);
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

impl From<ErrorDetail> for Failure {
    fn from(error: ErrorDetail) -> Self {
        Self { body: ErrorBody { error, rendez: None } }
    }
}

impl From<AuthError> for Failure {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Store(error) => error.into(),
            AuthError::Foreign(JwtError::KeysUnavailable) => {
                Self::new(ErrorCode::Unavailable, error.to_string())
            }
            AuthError::Foreign(JwtError::NoRule) => {
                Self::new(ErrorCode::Forbidden, error.to_string())
            }
            AuthError::Source(_) => Self::new(ErrorCode::Forbidden, error.to_string()),
            _ => Self::new(ErrorCode::Unauthorized, error.to_string()),
        }
    }
}

impl From<ProofError> for Failure {
    fn from(error: ProofError) -> Self {
        match error {
            ProofError::Join(error) => error.into(),
            ProofError::Forbidden(error) => error.into(),
            ProofError::Store(error) => error.into(),
            ProofError::Random(error) => Self::ours(ErrorCode::Internal, &error),
            _ => Self::new(ErrorCode::Unauthorized, error.to_string()),
        }
    }
}

impl From<Forbidden> for Failure {
    fn from(error: Forbidden) -> Self {
        Self::new(ErrorCode::Forbidden, error.to_string())
    }
}

impl From<InvalidPublicUrl> for Failure {
    fn from(error: InvalidPublicUrl) -> Self {
        Self::new(ErrorCode::InvalidRequest, error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::LimitReached { .. } => {
                Self::new(ErrorCode::LimitReached, error.to_string())
            }
            StoreError::Unavailable(_) => Self::ours(ErrorCode::Unavailable, &error),
            StoreError::Corrupt(_) => Self::ours(ErrorCode::Internal, &error),
        }
    }
}

impl From<IssueError> for Failure {
    fn from(error: IssueError) -> Self {
        Self::ours(ErrorCode::Internal, &error)
    }
}

impl From<RegisterError> for Failure {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Forbidden(error) => error.into(),
            RegisterError::TokenInactive => Self::new(ErrorCode::Unauthorized, error.to_string()),
            RegisterError::Store(error) => error.into(),
            RegisterError::Issue(error) => error.into(),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let message = error.to_string();
        match error {
            ConnectError::Forbidden(error) => error.into(),
            ConnectError::TokenInactive => Self::new(ErrorCode::Unauthorized, message),
            ConnectError::Offline(away) => Self {
                body: ErrorBody {
                    error: ErrorDetail::new(ErrorCode::EnvironmentOffline, message),
                    rendez: Some(away.absence),
                },
            },
            ConnectError::NoCommonProfile { .. } => {
                Self::new(ErrorCode::UnsupportedProfile, message)
            }
            ConnectError::Store(error) => error.into(),
            ConnectError::Issue(error) => error.into(),
        }
    }
}

impl From<ValidateError> for Failure {
    fn from(error: ValidateError) -> Self {
        match error {
            ValidateError::Forbidden(error) => error.into(),
            ValidateError::Superseded => {
                Self::new(ErrorCode::RegistrationSuperseded, error.to_string())
            }
            ValidateError::Store(error) => error.into(),
        }
    }
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Forbidden(error) => error.into(),
            ListError::Store(error) => error.into(),
        }
    }
}

impl From<CreateTokenError> for Failure {
    fn from(error: CreateTokenError) -> Self {
        match error {
            CreateTokenError::Pattern(_)
            | CreateTokenError::Label
            | CreateTokenError::ExpiresAtOnce
            | CreateTokenError::Source(_)
            | CreateTokenError::NoUses
            | CreateTokenError::UsesOfAdmin
            | CreateTokenError::EnvironmentsOfAdmin => {
                Self::new(ErrorCode::InvalidRequest, error.to_string())
            }
            CreateTokenError::Store(error) => error.into(),
            CreateTokenError::Random(error) => Self::ours(ErrorCode::Internal, &error),
        }
    }
}

impl From<RotateError> for Failure {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Unknown => Self::new(ErrorCode::NotFound, error.to_string()),
            RotateError::Inactive | RotateError::HasKey | RotateError::Overlap => {
                Self::new(ErrorCode::InvalidRequest, error.to_string())
            }
            RotateError::Store(error) => error.into(),
            RotateError::Random(error) => Self::ours(ErrorCode::Internal, &error),
        }
    }
}
