//! A relay process, an agent process, and a path from each end to the relay.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use tempfile::TempDir;

use super::links::Link;
use super::proxy::Proxy;
use crate::process::{Capture, IsolatedCommand, workspace_binary};
use crate::rendez::{OurAgent, OurRelay, rendez};

/// The environment's id.
pub const ENVIRONMENT: &str = "box";

/// The network between an endpoint and the relay.
pub struct NetworkPath {
    /// The proxy that injects faults.
    pub proxy: Proxy,
    /// The link that can be set down, in a run with real links.
    pub link: Option<Link>,
}

impl NetworkPath {
    async fn start(relay: SocketAddr, link: Option<Link>) -> Result<Self> {
        let address = link.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), Link::address);
        Ok(Self { proxy: Proxy::start(address, relay).await?, link })
    }

    /// A `rendez` command in this network.
    pub fn rendez(&self) -> Result<IsolatedCommand> {
        match &self.link {
            Some(link) => link.enter(workspace_binary("rendez")?),
            None => rendez(),
        }
    }
}

/// All processes and paths. Dropping it kills every process.
pub struct Testbed {
    relay: OurRelay,
    /// The executor's process.
    pub agent: OurAgent,
    /// The executor's path to the relay.
    pub executor: NetworkPath,
    /// The orchestrators' path to the relay.
    pub orchestrator: NetworkPath,
    token: String,
    directory: TempDir,
}

impl Testbed {
    /// Starts all processes. `links` are the links of the executor and of the
    /// orchestrators, if they are real. The agent is connected when this returns.
    pub async fn start(links: Option<[Link; 2]>) -> Result<Self> {
        let relay = OurRelay::start().await?;
        let [executor, orchestrator] = links.map_or([None, None], |links| links.map(Some));
        let executor = NetworkPath::start(relay.address(), executor).await?;
        let orchestrator = NetworkPath::start(relay.address(), orchestrator).await?;
        let directory = tempfile::tempdir()?;
        let mut agent = executor.rendez()?;
        agent
            .args(["agent", "--environment", ENVIRONMENT, "--log", "info"])
            .args(["--relay", &executor.proxy.url()])
            .arg("--state")
            .arg(directory.path().join("agent"))
            .env("RENDEZ_TOKEN", relay.token("executor").await?);
        let agent = OurAgent::start_by(agent).await?;
        let token = relay.token("orchestrator").await?;
        Ok(Self { relay, agent, executor, orchestrator, token, directory })
    }

    /// A directory that commands on the executor may use.
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// `rendez exec` of this command, on the orchestrators' path.
    pub fn exec<S: AsRef<OsStr>>(
        &self,
        command: impl IntoIterator<Item = S>,
    ) -> Result<IsolatedCommand> {
        let mut exec = self.orchestrator.rendez()?;
        exec.args(["exec", "-C"])
            .arg(self.directory())
            .args([ENVIRONMENT, "--"])
            .args(command)
            .env("RENDEZ_RELAY", self.orchestrator.proxy.url())
            .env("RENDEZ_TOKEN", &self.token);
        Ok(exec)
    }

    /// Ends the relay with SIGKILL or SIGTERM, and waits for its exit.
    pub async fn stop_relay(&mut self, signal: Signal) -> Result<()> {
        let status = self.relay.stop(signal).await?;
        ensure!(signal == Signal::KILL || status.success(), "the relay ended with {status}");
        Ok(())
    }

    /// Starts it again, on the same port and state.
    pub async fn start_relay(&mut self) -> Result<()> {
        self.relay.start_again().await
    }

    /// The last log lines of relay and agent, to explain a failure.
    pub fn log_tails(&self) -> String {
        format!("relay:\n{}\nagent:\n{}", tail(self.relay.log()), tail(self.agent.log()))
    }
}

/// The last lines of a log.
fn tail(log: &Capture) -> String {
    const LINES: usize = 40;
    let log = log.text();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
