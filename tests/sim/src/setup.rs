//! The construction of nodes.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use rendez_endpoint::{Config, Identity, IdentitySeed, Mux};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::profile::Profile;

use crate::node::{Agent, Backoff, Node, Role};
use crate::plan::Path;
use crate::rng::Rng;

/// The one environment of a world.
const ENVIRONMENT: &str = "env";

pub(crate) fn node(role: Role, identity: Identity, path: Path, mux: Mux, rng: &mut Rng) -> Node {
    Node {
        alive: matches!(role, Role::Orchestrator(_)),
        role,
        identity,
        path,
        mux,
        past: [0; 4],
        life: 0,
        ahead: 0,
        paused_until: 0,
        slow_until: 0,
        socket: None,
        timers_run: false,
        alarm: None,
        backoff: Backoff::default(),
        connected_at: 0,
        rng: Rng::new(u64::from_le_bytes(rng.bytes()), 3),
    }
}

pub(crate) fn executor(rng: &mut Rng, path: Path, number: u8) -> Node {
    let identity = identity(100 + number);
    let mux = Mux::new(executor_config(&identity), rng.bytes());
    node(Role::Executor(Agent::default()), identity, path, mux, rng)
}

/// Generating keys takes most of the time of a short world, so they are cached.
pub(crate) fn identity(number: u8) -> Identity {
    static MADE: OnceLock<Mutex<HashMap<u8, Identity>>> = OnceLock::new();
    let mut made = MADE.get_or_init(Default::default).lock().expect("not poisoned");
    let make = || Identity::from_seed(&IdentitySeed::from_bytes([number; 96]));
    made.entry(number).or_insert_with(make).clone()
}

fn environment() -> EnvironmentId {
    ENVIRONMENT.parse().expect("a valid id")
}

pub(crate) fn executor_config(identity: &Identity) -> Config {
    Config::executor(identity.clone(), environment(), Profile::ALL.to_vec())
}

pub(crate) fn orchestrator_config(identity: &Identity, profile: Profile) -> Config {
    Config { profiles: vec![profile], ..Config::orchestrator(identity.clone(), environment()) }
}
