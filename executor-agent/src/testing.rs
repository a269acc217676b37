//! Settings, keys and helpers for tests.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_endpoint::{Identity, IdentitySeed};
use rendez_proto::limits::STREAM_GRACE;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::process::ProcessId;

use crate::config::{AgentConfig, Auth, DEFAULT_PROFILES};
use crate::environment;
use crate::session::SessionManager;

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

/// An identity that is the same at each call.
pub(crate) fn identity() -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([7; IdentitySeed::BYTES]))
}

/// An executor without sessions.
pub(crate) fn session_manager() -> Arc<SessionManager> {
    SessionManager::new(environment::describe(Path::new("/tmp")), STREAM_GRACE, &[])
}

pub(crate) fn process_id(id: &str) -> ProcessId {
    ProcessId(id.into())
}

/// Whether a process with this id of the operating system runs; a zombie does not.
pub(crate) fn is_alive(id: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Waits until that process has ended; fails after 20 s.
pub(crate) async fn wait_until_gone(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_alive(id) {
        assert!(Instant::now() < deadline, "process {id} is still there");
        tokio::task::yield_now().await;
    }
}
