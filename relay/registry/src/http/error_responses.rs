//! The answers that all operations under `/v1` have in common.

use rendez_proto::registry::error::ErrorBody;
use utoipa::IntoResponses;

/// What every operation may answer instead.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "a description")]
pub(super) enum ErrorResponses {
    /// A parameter or the body is not what it should be.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// No token, or one that is unknown, expired or revoked.
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The token has another role or does not cover the environment.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// The relay failed; its log says why.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// The relay cannot answer now.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// What every operation with a body may answer besides.
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
