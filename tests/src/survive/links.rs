//! Network namespaces, each with one link that can be set down.
//!
//! ```text
//!   outside: relay and paths            inside: agent, or orchestrators
//!   rendez<n>, 10.123.<n>.1/24 ──veth── eth0, 10.123.<n>.2/24
//! ```
//!
//! They are made only where there is no other network, so that a machine's own
//! network is never touched: run it under `tests/netns.sh`.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::{IsolatedCommand, Process, run};

/// Longest wait for `ip`, `tc` or `unshare`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A hardware address that no end has.
const UNUSED_MAC: &str = "02:00:00:00:00:01";

/// The kind of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkDown {
    /// The link is down inside: the system there detects it.
    Inside,
    /// The link is down outside.
    Outside,
    /// Packets are lost silently.
    Silent,
}

/// A namespace and its link. Dropping it removes the namespace, once no process runs
/// there.
pub struct Link {
    number: u8,
    /// Keeps the namespace.
    holder: Process,
}

impl Link {
    /// Creates the namespace and the link with this number.
    pub async fn start(number: u8) -> Result<Self> {
        let routes = std::fs::read_to_string("/proc/net/route")?;
        ensure!(
            routes.lines().count() <= 1 + usize::from(number),
            "this machine has a network of its own: run this under tests/netns.sh"
        );
        let mut unshare = IsolatedCommand::new("unshare")?;
        unshare.args(["--net", "sh", "-c", "echo up; exec cat"]);
        let holder = Process::spawn(unshare)?;
        holder
            .stdout_line(TIMEOUT, |line| (line == "up").then_some(()))
            .await
            .context("no network namespace: this needs root there")?;
        let link = Self { number, holder };
        let pid = link.holder.id().context("it was not waited for")?.to_string();
        let (outer, inner) = (format!("10.123.{number}.1/24"), format!("10.123.{number}.2/24"));
        let name = link.name();
        let peer = ["type", "veth", "peer", "name", "eth0", "netns"];
        let add = ["link", "add", &name];
        succeed(IsolatedCommand::new("ip")?, &[&add, &peer[..], &[&pid]].concat()).await?;
        succeed(IsolatedCommand::new("ip")?, &["addr", "add", &outer, "dev", &name]).await?;
        succeed(IsolatedCommand::new("ip")?, &["link", "set", &name, "up"]).await?;
        succeed(link.enter("ip")?, &["link", "set", "lo", "up"]).await?;
        succeed(link.enter("ip")?, &["addr", "add", &inner, "dev", "eth0"]).await?;
        succeed(link.enter("ip")?, &["link", "set", "eth0", "up"]).await?;
        Ok(link)
    }

    /// The address outside, reachable from inside.
    pub fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 123, self.number, 1).into()
    }

    /// A command that runs `program` inside.
    pub fn enter(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<IsolatedCommand> {
        let mut command = IsolatedCommand::new("nsenter")?;
        let pid = self.holder.id().unwrap_or_default();
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(program);
        Ok(command)
    }

    /// Limits what leaves the inside to `rate`, such as `1mbit`, with a queue that is sent
    /// in `queue`.
    pub async fn limit(&self, rate: &str, queue: Duration) -> Result<()> {
        let latency = format!("{}ms", queue.as_millis());
        let qdisc = ["qdisc", "replace", "dev", "eth0", "root", "tbf"];
        let shape = ["rate", rate, "burst", "8kb", "latency", &latency];
        succeed(self.enter("tc")?, &[&qdisc[..], &shape].concat()).await
    }

    /// Starts an outage, or ends it.
    pub async fn set(&self, away: Option<LinkDown>) -> Result<()> {
        let name = self.name();
        let state = |down| if away == Some(down) { "down" } else { "up" };
        succeed(self.enter("ip")?, &["link", "set", "eth0", state(LinkDown::Inside)]).await?;
        succeed(IsolatedCommand::new("ip")?, &["link", "set", &name, state(LinkDown::Outside)])
            .await?;
        let (inner, outer) = (format!("10.123.{}.2", self.number), self.address().to_string());
        for (command, device, far) in [
            (IsolatedCommand::new("ip")?, name.as_str(), inner),
            (self.enter("ip")?, "eth0", outer),
        ] {
            let unused = ["lladdr", UNUSED_MAC, "nud", "permanent"];
            if away == Some(LinkDown::Silent) {
                let replace = ["neigh", "replace", &far, "dev", device];
                succeed(command, &[&replace[..], &unused].concat()).await?;
            } else {
                // Removes the address. There is none after a link was down.
                let flush = ["neigh", "flush", "to", &far, "dev", device, "nud", "all"];
                succeed(command, &flush).await?;
            }
        }
        Ok(())
    }

    fn name(&self) -> String {
        format!("rendez{}", self.number)
    }
}

/// Runs `ip` or `tc`.
async fn succeed(mut command: IsolatedCommand, args: &[&str]) -> Result<()> {
    command.args(args);
    let output = run(command, b"", TIMEOUT).await?;
    if !output.status.success() {
        bail!("{}: {}", args.join(" "), output.stderr_text().trim_end());
    }
    Ok(())
}
