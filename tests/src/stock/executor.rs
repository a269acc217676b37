//! Stock `codex exec-server`: the executor (docs/codex-wire.md#register,
//! docs/codex-wire.md#credentials-and-hosts).

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::CodexHome;
use crate::process::Process;

/// Its log line for each open websocket to the relay.
const CONNECTED: &str = "Noise executor connected to rendezvous";
/// Its log line for each harness that completed a handshake.
const ACCEPTED: &str = "Noise executor handshake completed";

/// A running stock executor with a home and a key of its own.
///
/// It ends if the registry answers its registration with anything but a 2xx.
pub struct StockExecutor {
    process: Process,
    _home: CodexHome,
}

impl StockExecutor {
    /// Starts it. Wait for its registration with [`Self::connected`].
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

    /// Waits until its websocket has been opened `times` times. Fails at once if it
    /// ends instead.
    pub async fn connected(&self, times: usize, within: Duration) -> Result<()> {
        let logged = self.logged(CONNECTED, times, within).await;
        logged.context("the stock executor did not connect")
    }

    /// Waits until `times` handshakes of harnesses were completed.
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
