//! The error responses that operations under `/v1` share.

use rendez_proto::registry::error::ErrorBody;
use utoipa::IntoResponses;

/// Error responses of every operation.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "a description")]
pub(super) enum ErrorResponses {
    /// A parameter or the body is invalid.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// The token is missing, unknown, expired or revoked.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The token has another role or does not cover the environment.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// The relay failed. Its log has the reason.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// The relay is temporarily unavailable.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// Further error responses of operations with a body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "a description")]
pub(super) enum BodyErrorResponses {
    /// The body did not arrive in time.
    #[response(status = 408)]
    Late(ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
}
