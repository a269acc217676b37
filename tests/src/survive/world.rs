//! A relay process, an agent process, and a path from each end to the relay.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::process::Command;

use super::links::Link;
use super::path::Path;
use crate::process::{Process, run, workspace_binary};
use crate::rendez::{WITHIN, rendez};

/// The environment's id.
pub const ENVIRONMENT: &str = "box";

/// What an endpoint's network is made of.
pub struct Way {
    /// Where it can be cut, at any time.
    pub path: Path,
    /// Where it can be set down, in a run with real links.
    pub link: Option<Link>,
}

impl Way {
    async fn start(relay: SocketAddr, link: Option<Link>) -> Result<Self> {
        let address = link.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Link::address);
        Ok(Self { path: Path::start(address, relay).await?, link })
    }

    /// A `rendez` command in this network, with nothing of the tester's in its
    /// environment.
    pub fn rendez(&self) -> Result<Command> {
        let mut command = match &self.link {
            Some(link) => link.enter(workspace_binary("rendez")?),
            None => return rendez(),
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        Ok(command)
    }
}

/// All of it. Dropping it kills every process.
pub struct World {
    /// The relay, while it runs.
    relay: Option<Process>,
    relay_address: SocketAddr,
    /// The executor's process.
    pub agent: Process,
    /// The executor's way to the relay.
    pub executor: Way,
    /// The orchestrators' way to the relay.
    pub orchestrator: Way,
    token: String,
    state: TempDir,
}

impl World {
    /// Starts it; `links` are the executor's and the orchestrators', if they
    /// are real. The agent is connected when this returns.
    pub async fn start(links: Option<[Link; 2]>) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let (relay, relay_address) = start_relay(&state, ([127, 0, 0, 1], 0).into()).await?;
        let [executor, orchestrator] = links.map_or([None, None], |links| links.map(Some));
        let executor = Way::start(relay_address, executor).await?;
        let orchestrator = Way::start(relay_address, orchestrator).await?;
        let mut agent = executor.rendez()?;
        agent
            .args(["agent", "--environment", ENVIRONMENT, "--log", "info"])
            .args(["--relay", &executor.path.url()])
            .arg("--state")
            .arg(state.path().join("agent"))
            .env("RENDEZ_TOKEN", create_token(&state, "executor").await?);
        let agent = Process::spawn(agent)?;
        agent
            .stderr_line(WITHIN, |line| line.contains("connected").then_some(()))
            .await
            .context("the agent did not connect")?;
        let token = create_token(&state, "orchestrator").await?;
        let relay = Some(relay);
        Ok(Self { relay, relay_address, agent, executor, orchestrator, token, state })
    }

    /// A directory that commands on the executor may use.
    pub fn directory(&self) -> &std::path::Path {
        self.state.path()
    }

    /// `rendez exec` of this command, by the orchestrators' way.
    pub fn exec<S: AsRef<OsStr>>(&self, command: impl IntoIterator<Item = S>) -> Result<Command> {
        let mut exec = self.orchestrator.rendez()?;
        exec.args(["exec", "-C"])
            .arg(self.directory())
            .args([ENVIRONMENT, "--"])
            .args(command)
            .env("RENDEZ_RELAY", self.orchestrator.path.url())
            .env("RENDEZ_TOKEN", &self.token);
        Ok(exec)
    }

    /// Ends the relay, with SIGKILL or SIGTERM, and waits until it is gone.
    pub async fn stop_relay(&mut self, signal: Signal) -> Result<()> {
        let mut relay = self.relay.take().context("the relay runs")?;
        relay.signal(signal)?;
        let status = relay.wait(WITHIN).await?;
        ensure!(signal == Signal::KILL || status.success(), "the relay ended with {status}");
        Ok(())
    }

    /// Starts it again, on the same port and state.
    pub async fn start_relay(&mut self) -> Result<()> {
        self.relay = Some(start_relay(&self.state, self.relay_address).await?.0);
        Ok(())
    }

    /// The end of what relay and agent logged, to explain a failure.
    pub fn last_words(&self) -> String {
        let relay = self.relay.as_ref().map(|relay| relay.stderr().text()).unwrap_or_default();
        format!("relay:\n{}\nagent:\n{}", tail(&relay), tail(&self.agent.stderr().text()))
    }
}

/// The last lines of a log.
fn tail(log: &str) -> String {
    const LINES: usize = 40;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

async fn start_relay(state: &TempDir, listen: SocketAddr) -> Result<(Process, SocketAddr)> {
    let mut command = rendez()?;
    command
        .args(["relay", "--log", "info", "--listen", &listen.to_string()])
        .arg("--state")
        .arg(state.path().join("relay"));
    let relay = Process::spawn(command)?;
    let address = relay
        .stderr_line(WITHIN, |line| {
            let (_, address) = line.split_once("listening address=")?;
            address.trim().parse().ok()
        })
        .await
        .context("the relay does not listen")?;
    Ok((relay, address))
}

async fn create_token(state: &TempDir, role: &str) -> Result<String> {
    let mut command = rendez()?;
    command.args(["token", "create", "--role", role, "--state"]).arg(state.path().join("relay"));
    let output = run(command, b"", WITHIN).await?;
    ensure!(output.status.success(), "no token: {}", output.stderr_text());
    Ok(output.stdout_text().trim().to_owned())
}
