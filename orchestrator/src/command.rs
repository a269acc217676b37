//! The command that starts a process.

use std::collections::BTreeMap;

use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::process::{EnvPolicy, ProcessId, Start};

use crate::error::ProcessError;

/// A process to start on an executor, shaped like `tokio::process::Command`.
#[derive(Debug, Clone)]
pub struct Command {
    argv: Vec<String>,
    cwd: Option<String>,
    env: BTreeMap<String, String>,
    clear_env: bool,
    tty: bool,
    stdin: bool,
}

impl Command {
    /// Creates a command that runs `program` without a shell. The executor looks
    /// it up in its `PATH`.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            argv: vec![program.into()],
            cwd: None,
            env: BTreeMap::new(),
            clear_env: false,
            tty: false,
            stdin: false,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.argv.push(arg.into());
        self
    }

    /// Adds several arguments.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.argv.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets the working directory, an absolute path on the executor. The default
    /// is the executor's own.
    #[must_use]
    pub fn current_dir(mut self, path: impl Into<String>) -> Self {
        self.cwd = Some(path.into());
        self
    }

    /// Sets a variable on top of the executor's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Removes all inherited variables; those set by [`env`](Self::env) remain.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.clear_env = true;
        self
    }

    /// Runs the process in a terminal of 24 lines and 80 columns. All its output
    /// arrives as standard output.
    #[must_use]
    pub fn tty(mut self, tty: bool) -> Self {
        self.tty = tty;
        self
    }

    /// Connects standard input. Otherwise the process reads an empty one.
    #[must_use]
    pub fn stdin(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    pub(crate) fn cwd(&self) -> Result<Option<PathUri>, ProcessError> {
        let path = self.cwd.as_deref().map(PathUri::from_path).transpose();
        path.map_err(|error| ProcessError::Directory {
            path: self.cwd.clone().unwrap_or_default(),
            why: error.to_string(),
        })
    }

    pub(crate) fn into_start(self, id: ProcessId, cwd: PathUri) -> Start {
        Start {
            env: self.env,
            env_policy: (!self.clear_env).then(EnvPolicy::inherit_all),
            tty: self.tty,
            pipe_stdin: self.stdin,
            ..Start::new(id, self.argv, cwd)
        }
    }
}
