//! Our own programs, started as users start them.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::poll::poll;
use crate::process::{Capture, IsolatedCommand, Output, Process, run, workspace_binary};

/// Longest wait for one of our programs. It is generous, because the machine may be
/// busy.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The `rendez` binary.
pub fn rendez() -> Result<IsolatedCommand> {
    IsolatedCommand::new(workspace_binary("rendez")?)
}

/// `rendez dev` on a free port. Dropping it kills it.
pub struct Dev {
    process: Process,
    /// The runtime directory with the context file for other commands.
    runtime: TempDir,
    url: String,
}

impl Dev {
    /// Starts it and waits until it prints its greeting.
    pub async fn start() -> Result<Self> {
        Self::start_by(rendez()?).await
    }

    /// The same, started by a shell that ignores these signals.
    pub async fn start_ignoring(signals: &str) -> Result<Self> {
        let mut command = IsolatedCommand::new("sh")?;
        command
            .args(["-c", &format!("trap '' {signals}; exec \"$0\" \"$@\"")])
            .arg(workspace_binary("rendez")?);
        Self::start_by(command).await
    }

    async fn start_by(mut command: IsolatedCommand) -> Result<Self> {
        let runtime = TempDir::new()?;
        command.args(["dev", "--listen", "127.0.0.1:0"]).env("XDG_RUNTIME_DIR", runtime.path());
        let process = Process::spawn(command)?;
        let url = process
            .stdout_line(TIMEOUT, |line| {
                let (_, rest) = line.split_once("the relay at ")?;
                Some(rest.split_once(',')?.0.to_owned())
            })
            .await
            .context("rendez dev did not print the URL of its relay")?;
        Ok(Self { process, runtime, url })
    }

    /// The relay's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// A `rendez` command that finds this `rendez dev` by its context file.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
    ) -> Result<IsolatedCommand> {
        let mut command = rendez()?;
        command.args(args).env("XDG_RUNTIME_DIR", self.runtime.path());
        Ok(command)
    }

    /// A shell script in which `"$RENDEZ"` is such a command.
    pub fn shell(&self, script: &str) -> Result<IsolatedCommand> {
        let mut command = IsolatedCommand::new("sh")?;
        command
            .args(["-c", script])
            .env("RENDEZ", workspace_binary("rendez")?)
            .env("XDG_RUNTIME_DIR", self.runtime.path());
        Ok(command)
    }

    /// Runs such a command to its end.
    pub async fn run<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Result<Output> {
        run(self.command(args)?, input, TIMEOUT).await
    }
}

/// `rendez relay` on a free port. Dropping it kills it.
pub struct OurRelay {
    process: Process,
    state: PathBuf,
    _directory: Option<TempDir>,
    address: SocketAddr,
    url: String,
}

impl OurRelay {
    /// Starts it and waits until it listens.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[] as &[&str]).await
    }

    /// The same with more flags.
    pub async fn start_with<S: AsRef<OsStr>>(flags: impl IntoIterator<Item = S>) -> Result<Self> {
        Self::start_at("127.0.0.1:0", flags).await
    }

    /// The same at another address.
    pub async fn start_at<S: AsRef<OsStr>>(
        address: &str,
        flags: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let directory = TempDir::new()?;
        let relay = relay(address, directory.path(), flags)?;
        let relay = Self::start_by(relay, directory.path()).await?;
        Ok(Self { _directory: Some(directory), ..relay })
    }

    /// The same on a free port with this state directory.
    pub async fn start_in<S: AsRef<OsStr>>(
        state: &Path,
        flags: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        Self::start_by(relay("127.0.0.1:0", state, flags)?, state).await
    }

    /// The same by a command that [`OurRelay::command`] made for this state.
    pub async fn start_by(command: IsolatedCommand, state: &Path) -> Result<Self> {
        let process = Process::spawn(command)?;
        let address = listening(&process, "listening address=").await?;
        let (state, url) = (state.to_owned(), format!("http://{address}"));
        Ok(Self { process, state, _directory: None, address, url })
    }

    /// The command that starts a relay on a free port.
    pub fn command<S: AsRef<OsStr>>(
        state: &Path,
        flags: impl IntoIterator<Item = S>,
    ) -> Result<IsolatedCommand> {
        relay("127.0.0.1:0", state, flags)
    }

    /// Starts it again, where it was, after its process has ended.
    pub async fn start_again(&mut self) -> Result<()> {
        let state = self.state.clone();
        self.start_again_on(&state, &[] as &[&str]).await
    }

    /// The same on another state, and with these flags.
    pub async fn start_again_on<S: AsRef<OsStr>>(
        &mut self,
        state: &Path,
        flags: impl IntoIterator<Item = S>,
    ) -> Result<()> {
        self.process = Process::spawn(relay(&self.address.to_string(), state, flags)?)?;
        listening(&self.process, "listening address=").await.map(drop)
    }

    /// Sends this signal and waits until the process has ended.
    pub async fn stop(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.process.signal(signal)?;
        self.process.wait(TIMEOUT).await
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its URL, if it does not speak TLS.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address of its admin listener.
    pub async fn operators(&self) -> Result<SocketAddr> {
        listening(&self.process, "listening for operators address=").await
    }

    /// The body of `/metrics` on the admin listener.
    pub async fn metrics(&self) -> Result<String> {
        let mut tcp = TcpStream::connect(self.operators().await?).await?;
        tcp.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
        let mut response = String::new();
        tcp.read_to_string(&mut response).await?;
        Ok(response)
    }

    /// Waits until `/metrics` contains this line.
    pub async fn metric(&self, line: &str) -> Result<()> {
        poll(TIMEOUT, async || {
            let metrics = self.metrics().await?;
            let found = metrics.lines().any(|found| found == line);
            let log = self.process.stderr();
            Ok(if found {
                Ok(())
            } else {
                Err(format!("no {line:?} in\n{metrics}\n{}", log.text()))
            })
        })
        .await
    }

    /// Waits until it logs a line that contains `text`.
    pub async fn logs(&self, text: &str) -> Result<()> {
        let line = self.process.stderr_line(TIMEOUT, |line| line.contains(text).then_some(()));
        line.await.with_context(|| format!("{text:?} was not logged"))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log since the last start.
    pub fn log(&self) -> &Capture {
        self.process.stderr()
    }

    /// A new token of this role, for every environment.
    pub async fn token(&self, role: &str) -> Result<String> {
        self.administer(&["token", "create", "--role", role]).await
    }

    /// The output of a `rendez` command on its state directory.
    pub async fn administer(&self, args: &[&str]) -> Result<String> {
        let mut command = rendez()?;
        command.args(args).arg("--state").arg(&self.state);
        let output = run(command, b"", TIMEOUT).await?;
        anyhow::ensure!(output.status.success(), "{}", output.stderr_text());
        Ok(output.stdout_text().trim().to_owned())
    }
}

fn relay<S: AsRef<OsStr>>(
    listen: &str,
    state: &Path,
    flags: impl IntoIterator<Item = S>,
) -> Result<IsolatedCommand> {
    let mut command = rendez()?;
    command.args(["relay", "--listen", listen, "--log", "info", "--state"]).arg(state).args(flags);
    Ok(command)
}

async fn listening(relay: &Process, before: &str) -> Result<SocketAddr> {
    relay
        .stderr_line(TIMEOUT, |line| line.split_once(before)?.1.trim().parse().ok())
        .await
        .context("the relay does not listen")
}

/// `rendez agent`. Dropping it kills it.
pub struct OurAgent {
    process: Process,
    _state: Option<TempDir>,
}

impl OurAgent {
    /// Starts it and waits until orchestrators can reach it.
    pub async fn start(relay: &str, environment: &str, token: &str) -> Result<Self> {
        let state = TempDir::new()?;
        let agent = Self::start_in(state.path(), relay, environment, Some(token)).await?;
        Ok(Self { _state: Some(state), ..agent })
    }

    /// The same, with this state directory, and perhaps without a token.
    pub async fn start_in(
        state: &Path,
        relay: &str,
        environment: &str,
        token: Option<&str>,
    ) -> Result<Self> {
        Self::start_by(Self::command(state, relay, environment, token)?).await
    }

    /// The same with a prepared command.
    pub async fn start_by(command: IsolatedCommand) -> Result<Self> {
        let agent = Self { process: Process::spawn(command)?, _state: None };
        agent.connected(1).await?;
        Ok(agent)
    }

    /// Waits until it has connected for the `nth` time.
    pub async fn connected(&self, nth: usize) -> Result<()> {
        let mut times = 0;
        let nth_time = |line: &str| {
            // "not connected" is logged, too
            times += usize::from(line.contains("connected registration="));
            (times == nth).then_some(())
        };
        self.process.stderr_line(TIMEOUT, nth_time).await.context("the agent did not connect")
    }

    /// The command that starts it.
    pub fn command(
        state: &Path,
        relay: &str,
        environment: &str,
        token: Option<&str>,
    ) -> Result<IsolatedCommand> {
        let mut command = rendez()?;
        command
            .args(["agent", "--relay", relay, "--environment", environment, "--log", "info"])
            .arg("--state")
            .arg(state);
        if let Some(token) = token {
            command.env("RENDEZ_TOKEN", token);
        }
        Ok(command)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its log.
    pub fn log(&self) -> &Capture {
        self.process.stderr()
    }

    /// Ends it by SIGTERM.
    pub async fn stop(self) -> Result<()> {
        self.process.stop(TIMEOUT).await.map(drop)
    }
}

/// Runs `rendez exec` with an empty standard input.
pub async fn exec(relay: &str, token: &str, environment: &str, command: &[&str]) -> Result<Output> {
    let mut rendez = rendez()?;
    rendez
        .args(["exec", environment, "--"])
        .args(command)
        .env("RENDEZ_RELAY", relay)
        .env("RENDEZ_TOKEN", token);
    run(rendez, b"", TIMEOUT).await
}
