//! Identities and genuine handshakes, made once per process because deriving
//! them is expensive.

use std::sync::OnceLock;

use rendez_endpoint::noise::{Prologue, initiate, respond};
use rendez_endpoint::{Authorized, Identity, IdentitySeed};
use rendez_proto::ids::{EnvironmentId, RegistrationId, StreamId};
use rendez_proto::profile::Profile;

fn make(byte: u8) -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([byte; IdentitySeed::BYTES]))
}

/// The executor's keys.
pub(crate) fn executor() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| make(1))
}

/// The orchestrator's keys.
pub(crate) fn orchestrator() -> &'static Identity {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    IDENTITY.get_or_init(|| make(2))
}

/// The environment of every target.
pub(crate) fn environment() -> EnvironmentId {
    "env".parse().expect("a valid id")
}

/// One of the registrations.
pub(crate) fn registration(number: u8) -> RegistrationId {
    format!("reg-{number}").parse().expect("a valid id")
}

/// One of the streams.
pub(crate) fn stream(number: u8) -> StreamId {
    format!("s{number}").parse().expect("a valid id")
}

/// The prologue of a stream under the first registration.
pub(crate) fn prologue(profile: Profile, number: u8) -> Prologue {
    Prologue::new(profile, &environment(), &registration(0), &stream(number))
}

/// The registry's consent to a key that is not the orchestrator's.
pub(crate) fn authorized_other_key() -> Authorized {
    let (profile, me) = (Profile::RendezIkV1, executor());
    let (suite, prologue) = (profile.suite(), prologue(profile, 0));
    let peer = me.public_for(suite);
    let (_, message) =
        initiate(suite, me, peer, &prologue, b"", [1; 32].into()).expect("the keys fit");
    let responder =
        respond(suite, me, &prologue, &message, [2; 32].into()).expect("a genuine message 1");
    responder.pending().authorize()
}
