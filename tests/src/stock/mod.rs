//! The stock Codex binary (0.169.0) as either end of a relay.
//!
//! `tests/stock/install.sh` installs the binary and checks its hash;
//! `tests/netns.sh` runs a test where loopback is the only network. The binary
//! contacts internet hosts when it starts, so [`CodexHome::command`] refuses to run
//! anywhere else.
//!
//! Each instance is an [`IsolatedCommand`] with a fresh home directory: no
//! login, no key and no proxy setting of the caller's reaches it.

pub mod app_server;
pub mod codex_exec;
pub mod containment;
pub mod executor;
pub mod model;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use crate::process::{IsolatedCommand, scratch_directory};

/// The log filter of every instance: the events that the tests wait for.
const LOG_FILTER: &str = "codex_exec_server::remote=info,codex_exec_server::relay=info";

/// The path of the stock binary.
///
/// The link exists only after the install script has verified the pinned hash.
pub fn binary() -> Result<PathBuf> {
    let link = Path::new(env!("CARGO_MANIFEST_DIR")).join(".stock/codex");
    ensure!(link.exists(), "{} is not there: run tests/stock/install.sh first", link.display());
    // The binary looks for its helpers next to itself, not next to a link.
    link.canonicalize().with_context(|| format!("cannot resolve {}", link.display()))
}

/// A new CODEX_HOME, removed on drop.
pub struct CodexHome(TempDir);

impl CodexHome {
    /// Makes an empty home, except for the temporary directory of its commands.
    /// Stock Codex makes no helper links in a home below the temporary directory,
    /// and the whole checkout may be below the system's.
    pub fn new() -> Result<Self> {
        let home = tempfile::Builder::new().prefix("codex-home-").tempdir_in(scratch_directory()?);
        let home = Self(home.context("cannot make a home for stock Codex")?);
        std::fs::create_dir(home.temporary_directory()).context("cannot make its tmp")?;
        Ok(home)
    }

    fn temporary_directory(&self) -> PathBuf {
        self.path().join("tmp")
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes config.toml.
    pub fn configure(&self, toml: &str) -> Result<()> {
        std::fs::write(self.path().join("config.toml"), toml).context("cannot write config.toml")
    }

    /// A command for the stock binary that lives in this home.
    ///
    /// # Panics
    /// Outside a network namespace with loopback only; see `tests/netns.sh`.
    pub fn command(&self) -> Result<IsolatedCommand> {
        containment::require_loopback_only();
        let mut command = IsolatedCommand::new(binary()?)?;
        command
            .env("HOME", self.path())
            .env("CODEX_HOME", self.path())
            .env("TMPDIR", self.temporary_directory())
            .env("RUST_LOG", LOG_FILTER)
            .env("NO_COLOR", "1");
        Ok(command)
    }
}

/// The settings with which a stock harness finds its executor
/// (docs/codex-wire.md#harness).
#[derive(Clone)]
pub struct Harness {
    /// Base URL of the registry, http or https.
    pub registry_url: String,
    /// The environment it asks for.
    pub environment: String,
    /// Its bearer token. Visible to other processes of the same user.
    pub bearer: String,
}

impl Harness {
    /// The environment variables that make stock Codex use a remote executor.
    fn variables(&self) -> [(&'static str, &str); 3] {
        [
            ("CODEX_EXEC_SERVER_NOISE_REGISTRY_URL", &self.registry_url),
            ("CODEX_EXEC_SERVER_NOISE_ENVIRONMENT_ID", &self.environment),
            ("CODEX_EXEC_SERVER_NOISE_AUTH_TOKEN", &self.bearer),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_is_outside_tmpdir_and_removed() {
        let home = CodexHome::new().unwrap();
        let path = home.path().to_owned();
        assert!(home.temporary_directory().is_dir());
        assert!(!path.starts_with(home.temporary_directory()));
        home.configure("a = 1").unwrap();
        assert_eq!(std::fs::read_to_string(path.join("config.toml")).unwrap(), "a = 1");
        drop(home);
        assert!(!path.exists());
    }
}
