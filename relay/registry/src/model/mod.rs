//! The data of the registry, in its own types.

pub mod caller;
pub mod source;
pub mod subject;
pub mod token;

use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
pub use rendez_proto::registry::admin::Role;

pub use self::caller::{Caller, Forbidden, Grant};
pub use self::source::SourceCidrs;
pub use self::subject::{Subject, TicketSubject};
pub use self::token::{Credential, InvalidPattern, Token, TokenId, TokenPattern};

/// A registration to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRegistration {
    /// The environment, which is created if it does not exist.
    pub environment: EnvironmentId,
    /// The id of the registration.
    pub id: RegistrationId,
    /// The executor's static key.
    pub key: PublicKey,
    /// The profiles that the executor offers.
    pub profiles: Vec<Profile>,
    /// The subject that registers.
    pub subject: Subject,
}

/// An environment's current registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The environment.
    pub environment: EnvironmentId,
    /// The id of the registration.
    pub id: RegistrationId,
    /// The generation, which orders the registrations of the environment.
    pub generation: Generation,
    /// The executor's static key.
    pub key: PublicKey,
    /// The profiles that the executor offers.
    pub profiles: Vec<Profile>,
    /// The subject that registered.
    pub subject: Subject,
    /// The time of the registration, in seconds since 1970.
    pub registered_at: u64,
}

/// An environment. It exists from its first registration until it is purged to
/// make room for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The id of the environment.
    pub id: EnvironmentId,
    /// The time of the first registration, in seconds since 1970.
    pub created_at: u64,
    /// The generation of the last registration.
    pub generation: Generation,
    /// The current registration. `None` if it was ended, alone or with the
    /// environment.
    pub registration: Option<Registration>,
}

/// A revocation: its websockets must close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// All websockets of this subject.
    Subject(Subject),
    /// All websockets in this environment.
    Environment(EnvironmentId),
    /// All websockets under this registration.
    Registration(RegistrationId),
}

impl Revocation {
    /// Returns the kind and the id as a store keeps them.
    pub(crate) fn to_columns(&self) -> (&'static str, String) {
        match self {
            Self::Subject(subject) => ("subject", subject.to_string()),
            Self::Environment(id) => ("environment", id.to_string()),
            Self::Registration(id) => ("registration", id.to_string()),
        }
    }

    /// Parses the result of [`to_columns`](Self::to_columns).
    pub(crate) fn from_columns(kind: &str, what: &str) -> Option<Self> {
        match kind {
            "subject" => what.parse().ok().map(Self::Subject),
            "environment" => what.parse().ok().map(Self::Environment),
            "registration" => what.parse().ok().map(Self::Registration),
            _ => None,
        }
    }
}
