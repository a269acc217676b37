//! Schemas of types whose JSON is a text with a form of its own.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::audit::AuditHash;
use crate::ids::{EnvironmentId, RegistrationId};
use crate::registry::admin::TokenText;
use crate::registry::error::ErrorCode;

macro_rules! texts {
    ($($type:ty, $about:literal, $pattern:literal;)+) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                let text = ObjectBuilder::new().schema_type(Type::String);
                text.description(Some($about)).pattern(Some($pattern)).into()
            }
        }

        impl ToSchema for $type {}
    )+};
}

texts! {
    EnvironmentId, "The id of an environment.", "^[A-Za-z0-9_-]{1,128}$";
    RegistrationId, "The id of a registration.", "^[A-Za-z0-9_-]{1,128}$";
    AuditHash, "SHA-256, in hexadecimal digits.", "^[0-9a-f]{64}$";
    TokenText, "A bearer token: a secret.", "^rdz_[aejo]_";
}

impl PartialSchema for ErrorCode {
    fn schema() -> RefOr<Schema> {
        let codes = ErrorCode::ALL.iter().filter(|code| **code != ErrorCode::Other);
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("The kind of error, for programs."))
            .enum_values(Some(codes.map(|code| code.as_str())))
            .into()
    }
}

impl ToSchema for ErrorCode {}
