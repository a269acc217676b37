//! Commands that do not depend on the machine or the shell that runs the tests.

use std::env;
use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::process::Command;

/// The only variables that a command inherits.
const INHERITED: [&str; 1] = ["PATH"];

/// Directories of a command's own, by the variables that name them.
const DIRECTORIES: [(&str, &str); 4] =
    [("HOME", "home"), ("XDG_RUNTIME_DIR", "run"), ("XDG_STATE_HOME", "state"), ("TMPDIR", "tmp")];

/// Starts a program with a usual umask and with every signal at its default
/// action. A process inherits both, and only a handler, never `trap -`, undoes
/// an ignored signal such as the SIGHUP of `nohup`. `env` and `sh` replace
/// themselves, so the program keeps the process id.
const LAUNCHER: &str = "umask 022; exec env --default-signal \"$@\"";

/// A command that is isolated from its caller: `PATH` is the only inherited
/// variable, and it gets empty directories for home, runtime files, state and
/// temporary files, a fixed locale, umask 022 and default signal actions.
///
/// Arguments and further variables are added as to a [`Command`]. The
/// directories are removed when the command, or the [`Process`](super::Process)
/// that it became, is dropped.
pub struct IsolatedCommand {
    name: String,
    command: Command,
    directories: TempDir,
}

impl IsolatedCommand {
    /// A command that runs `program`, which is a path or is looked up in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Result<Self> {
        let program = program.as_ref();
        let directories = TempDir::new().context("cannot make a command's directories")?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", LAUNCHER, "sh"]).arg(program);
        command.env_clear().env("LC_ALL", "C.UTF-8");
        for variable in INHERITED {
            command.envs(env::var_os(variable).map(|value| (variable, value)));
        }
        for (variable, name) in DIRECTORIES {
            let directory = directories.path().join(name);
            std::fs::create_dir(&directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
            command.env(variable, directory);
        }
        let name = Path::new(program).file_name().unwrap_or(program);
        Ok(Self { name: name.to_string_lossy().into_owned(), command, directories })
    }

    pub(super) fn into_parts(self) -> (String, Command, TempDir) {
        (self.name, self.command, self.directories)
    }
}

impl Deref for IsolatedCommand {
    type Target = Command;

    fn deref(&self) -> &Command {
        &self.command
    }
}

impl DerefMut for IsolatedCommand {
    fn deref_mut(&mut self) -> &mut Command {
        &mut self.command
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::time::Duration;

    use rustix::process::Signal;

    use super::*;
    use crate::process::run;

    const SHORT_TIMEOUT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn only_path_is_inherited() {
        let command = IsolatedCommand::new("env").unwrap();
        let directories = command.directories.path().to_owned();
        let output = run(command, b"", SHORT_TIMEOUT).await.unwrap().stdout_text();
        let variables: Vec<&str> =
            output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        // PWD is set by the launcher's shell.
        let expected =
            ["HOME", "LC_ALL", "PATH", "PWD", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"];
        for variable in &variables {
            assert!(expected.contains(variable), "{output}");
        }
        assert_eq!(output.matches(directories.to_str().unwrap()).count(), 4, "{output}");
        assert!(!directories.exists(), "the directories are removed with the process");
    }

    #[tokio::test]
    async fn umask_and_ignored_signals_are_reset() {
        let foreign = format!("umask 077; trap '' HUP; set -- sh -c \"$0\"; {LAUNCHER}");
        let mut command = IsolatedCommand::new("sh").unwrap();
        command.args(["-c", &foreign, "umask; kill -HUP $$; echo ignored"]);
        let output = run(command, b"", SHORT_TIMEOUT).await.unwrap();
        assert_eq!(output.stdout_text(), "0022\n");
        assert_eq!(output.status.signal(), Some(Signal::HUP.as_raw()));
    }
}
