//! The file by which other commands find a running `rendez dev`.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sys;

/// The time limit for connecting to a relay on this machine.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// The relay and the tokens of a running `rendez dev`.
#[derive(Serialize, Deserialize)]
pub(crate) struct DevContext {
    /// The relay's URL.
    pub(crate) relay: String,
    /// The token for its executor's environment.
    pub(crate) orchestrator_token: String,
    /// The token for administering the relay.
    pub(crate) admin_token: String,
}

impl DevContext {
    fn path() -> PathBuf {
        sys::runtime_directory().join("dev.json")
    }

    /// Writes the file. Dropping the guard removes it.
    pub(crate) fn publish(&self) -> std::io::Result<PublishedContext> {
        let directory = sys::runtime_directory();
        sys::make_private_directory(&directory)?;
        let earlier = Self::load();
        self.write(&directory)?;
        Ok(PublishedContext { directory, relay: self.relay.clone(), earlier })
    }

    fn write(&self, directory: &Path) -> std::io::Result<()> {
        let draft = directory.join(format!("dev.json.{}", std::process::id()));
        let mut file = sys::create_private_file(&draft)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&draft, Self::path())
    }

    /// Whether its relay still accepts connections. It runs on this machine.
    fn is_alive(&self) -> bool {
        let address = self.relay.strip_prefix("http://").and_then(|at| at.parse().ok());
        address.is_some_and(|at| TcpStream::connect_timeout(&at, ALIVE_TIMEOUT).is_ok())
    }

    pub(crate) fn load() -> Option<Self> {
        // A file of another user could send this user's commands to another relay.
        if !sys::is_private_directory(&sys::runtime_directory()) {
            return None;
        }
        serde_json::from_slice(&fs::read(Self::path()).ok()?).ok()
    }
}

/// Removes the file when `rendez dev` ends, and restores that of an earlier
/// `rendez dev` that still runs.
pub(crate) struct PublishedContext {
    directory: PathBuf,
    relay: String,
    earlier: Option<DevContext>,
}

impl Drop for PublishedContext {
    fn drop(&mut self) {
        // A later `rendez dev` may have written its own file meanwhile: keep that.
        if DevContext::load().is_some_and(|context| context.relay == self.relay) {
            let earlier = self.earlier.take().filter(DevContext::is_alive);
            if earlier.is_none_or(|earlier| earlier.write(&self.directory).is_err()) {
                let _ = fs::remove_file(DevContext::path());
            }
        }
    }
}
