//! What the registry knows, in its own types: neither rows nor JSON.

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

/// A claim that is about to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRegistration {
    /// The environment; created if it does not exist.
    pub environment: EnvironmentId,
    /// The claim's name.
    pub id: RegistrationId,
    /// The executor's static key.
    pub key: PublicKey,
    /// What the executor offers.
    pub profiles: Vec<Profile>,
    /// Who claims.
    pub subject: Subject,
}

/// An environment's current claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// The environment.
    pub environment: EnvironmentId,
    /// The claim's name.
    pub id: RegistrationId,
    /// Its place in the environment's order.
    pub generation: Generation,
    /// The executor's static key.
    pub key: PublicKey,
    /// What the executor offers.
    pub profiles: Vec<Profile>,
    /// Who claimed.
    pub subject: Subject,
    /// When, in seconds since 1970.
    pub registered_at: u64,
}

/// An environment; there is one as soon as an executor has registered, until it
/// has to make room for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Its name.
    pub id: EnvironmentId,
    /// When it was first registered, in seconds since 1970.
    pub created_at: u64,
    /// The last claim's place in its order.
    pub generation: Generation,
    /// The current claim. `None`: it was ended, alone or with the environment.
    pub registration: Option<Registration>,
}

/// Something whose live websockets must close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Revocation {
    /// Everything that came from this subject.
    Subject(Subject),
    /// Everything in this environment.
    Environment(EnvironmentId),
    /// Everything under this registration.
    Registration(RegistrationId),
}

impl Revocation {
    /// Its kind and the id of what it is about, as a store keeps them.
    pub(crate) fn to_columns(&self) -> (&'static str, String) {
        match self {
            Self::Subject(subject) => ("subject", subject.to_string()),
            Self::Environment(id) => ("environment", id.to_string()),
            Self::Registration(id) => ("registration", id.to_string()),
        }
    }

    /// Reads what [`to_columns`](Self::to_columns) wrote.
    pub(crate) fn from_columns(kind: &str, what: &str) -> Option<Self> {
        match kind {
            "subject" => what.parse().ok().map(Self::Subject),
            "environment" => what.parse().ok().map(Self::Environment),
            "registration" => what.parse().ok().map(Self::Registration),
            _ => None,
        }
    }
}
