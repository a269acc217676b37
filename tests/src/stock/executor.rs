//! Stock `codex exec-server`: the executor end (WIRE.md sections 1.1 and 8).

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::CodexHome;
use crate::process::Process;

/// What it logs each time its websocket to the relay is up.
const CONNECTED: &str = "Noise executor connected to rendezvous";
/// What it logs for each harness that it let in.
const ACCEPTED: &str = "Noise executor handshake completed";

/// A running stock executor with a home and a key of its own.
///
/// Any answer of the registry but a 2xx to its registration ends it.
pub struct StockExecutor {
    process: Process,
    _home: CodexHome,
}

impl StockExecutor {
    /// Starts it; it has not registered yet, see [`Self::connected`].
    pub async fn start(registry_url: &str, environment: &str, bearer: &str) -> Result<Self> {
        let home = CodexHome::new()?;
        let mut command = home.command()?;
        command
            .args(["exec-server", "--remote", registry_url, "--environment-id", environment])
            .arg("--registration-bearer-stdin");
        let mut process = Process::spawn(command)?;
        process.write(format!("{bearer}\n").as_bytes()).await?;
        process.close_stdin();
        Ok(Self { process, _home: home })
    }

    /// Waits until it has registered and its websocket was up for the
    /// `times`-th time; fails at once if it ends instead.
    pub async fn connected(&self, times: usize, within: Duration) -> Result<()> {
        let logged = self.logged(CONNECTED, times, within).await;
        logged.context("the stock executor did not connect")
    }

    /// Waits until the `times`-th handshake of a harness was completed.
    pub async fn accepted(&self, times: usize, within: Duration) -> Result<()> {
        let logged = self.logged(ACCEPTED, times, within).await;
        logged.context("the stock executor accepted no harness")
    }

    /// The process: to stop it, to wait for its end, to read its stderr.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn logged(&self, event: &str, times: usize, within: Duration) -> Result<()> {
        let mut seen = 0;
        let nth = |line: &str| {
            seen += usize::from(line.contains(event));
            (seen >= times).then_some(())
        };
        self.process.stderr_line(within, nth).await
    }
}
