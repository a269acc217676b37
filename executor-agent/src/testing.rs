//! Settings and keys for tests.

use std::path::Path;

use rendez_endpoint::{Identity, IdentitySeed};
use rendez_proto::profile::Profile;

use crate::config::{AgentConfig, Auth, DEFAULT_PROFILES};

/// Settings for the environment `dev` with the token `t0k`.
pub(crate) fn config(relay: &str, state: &Path) -> AgentConfig {
    AgentConfig {
        relay: relay.parse().unwrap(),
        environment: "dev".parse().unwrap(),
        auth: Auth::Bearer("t0k".to_owned().into()),
        state: state.to_owned(),
        profiles: [DEFAULT_PROFILES.as_slice(), &[Profile::RendezIkV1]].concat(),
        cwd: "/tmp".into(),
        grace: rendez_endpoint::Grace::default(),
    }
}

/// Always the same keys.
pub(crate) fn identity() -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([7; IdentitySeed::BYTES]))
}
