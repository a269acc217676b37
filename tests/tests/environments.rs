//! The state of environments as a relay reports it, while executors and the relay
//! itself fail and restart: real processes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rendez_proto::registry::environments::{EndReason, EnvironmentDetail, EnvironmentState};
use rendez_tests::poll::poll;
use rendez_tests::process::{IsolatedCommand, Output, Process, run};
use rendez_tests::relay::token_id;
use rendez_tests::rendez::{OurAgent, OurRelay, TIMEOUT, rendez};
use rustix::process::Signal;
use tempfile::TempDir;

/// A relay and a token of each role.
struct Fixture {
    relay: OurRelay,
    dir: TempDir,
    tokens: [String; 3],
}

impl Fixture {
    async fn start(connect_wait: &str) -> Result<Self> {
        let relay = OurRelay::start_with(["--connect-wait", connect_wait]).await?;
        let mut tokens = Vec::new();
        for role in ["admin", "executor", "orchestrator"] {
            tokens.push(relay.token(role).await?);
        }
        let tokens = tokens.try_into().ok().context("three roles")?;
        Ok(Self { relay, dir: tempfile::tempdir()?, tokens })
    }

    /// A command with this token.
    fn command(&self, token: &str, args: &[&str]) -> Result<IsolatedCommand> {
        let mut command = rendez()?;
        command.args(args).env("RENDEZ_RELAY", self.relay.url()).env("RENDEZ_TOKEN", token);
        Ok(command)
    }

    fn orchestrator(&self, args: &[&str]) -> Result<IsolatedCommand> {
        self.command(&self.tokens[2], args)
    }

    fn admin(&self, args: &[&str]) -> Result<IsolatedCommand> {
        self.command(&self.tokens[0], args)
    }

    /// An agent with the same keys each time. Connected when this returns.
    async fn agent(&self) -> Result<OurAgent> {
        let (state, token) = (self.dir.path().join("agent"), Some(self.tokens[1].as_str()));
        OurAgent::start_in(&state, self.relay.url(), "box", token).await
    }

    async fn show(&self, args: &[&str]) -> Result<EnvironmentDetail> {
        let args = [&["env", "show", "box", "--json"], args].concat();
        let output = success(run(self.orchestrator(&args)?, b"", TIMEOUT).await?)?;
        Ok(serde_json::from_str(&output)?)
    }

    /// The audit log, once it has a row of each of these kinds. The close of a
    /// websocket is recorded with a delay.
    async fn exports(&self, kinds: &[&str]) -> Result<String> {
        poll(TIMEOUT, async || {
            let export = self.admin(&["admin", "audit", "export"])?;
            let exported = success(run(export, b"", TIMEOUT).await?)?;
            let has = |kind: &&str| exported.contains(&format!("\"kind\":\"{kind}\""));
            let all = kinds.iter().all(has);
            Ok(if all { Ok(exported) } else { Err(format!("rows are missing:\n{exported}")) })
        })
        .await
    }

    /// Polls until the environment is as wanted.
    async fn shows(
        &self,
        wanted: impl Fn(&EnvironmentDetail) -> bool,
    ) -> Result<EnvironmentDetail> {
        poll(TIMEOUT, async || {
            let shown = self.show(&[]).await?;
            Ok(if wanted(&shown) { Ok(shown) } else { Err(format!("{shown:?}")) })
        })
        .await
    }
}

fn success(output: Output) -> Result<String> {
    ensure!(output.status.success(), "{}: {}", output.status, output.stderr_text());
    Ok(output.stdout_text())
}

fn ends(shown: &EnvironmentDetail) -> Vec<Option<EndReason>> {
    shown.history.iter().map(|record| record.ended_because).collect()
}

#[tokio::test]
async fn environment_state_follows_agent_and_relay() -> Result<()> {
    let mut fixture = Fixture::start("10s").await?;
    let shown = fixture.show(&[]).await?;
    assert_eq!((shown.state, shown.history.len()), (EnvironmentState::NeverSeen, 0));
    // an unknown environment is refused without waiting
    let misspelt = fixture.orchestrator(&["exec", "box", "--", "true"])?;
    assert_eq!(run(misspelt, b"", TIMEOUT).await?.status.code(), Some(68));

    let mut agent = fixture.agent().await?;
    let shown = fixture.show(&["--probe"]).await?;
    assert_eq!((shown.state, ends(&shown)), (EnvironmentState::Connected, vec![None]));
    let executor = shown.executor.context("it is connected")?;
    assert!(executor.verified.is_some(), "a ping was answered");

    let hello = fixture.orchestrator(&["exec", "box", "--", "echo", "hello"])?;
    assert_eq!(success(run(hello, b"", TIMEOUT).await?)?, "hello\n");
    let status = success(run(fixture.admin(&["admin", "status"])?, b"", TIMEOUT).await?)?;
    assert!(status.contains("executors     1\n"), "{status}");
    let open = ["admin", "connections", "--environment", "box"];
    let open = success(run(fixture.admin(&open)?, b"", TIMEOUT).await?)?;
    let token = token_id(&fixture.tokens[1])?;
    assert!(open.contains("executor ") && open.contains(&token), "{open}");
    let executor = fixture.show(&[]).await?.executor.context("it is connected")?;
    assert!(executor.received_bytes > 0 && executor.sent_bytes > 0, "{executor:?}");

    agent.process().signal(Signal::KILL)?;
    agent.process().wait(TIMEOUT).await?;
    let shown = fixture.shows(|shown| shown.state == EnvironmentState::Offline).await?;
    assert_eq!(ends(&shown), [Some(EndReason::SocketError)]);
    assert!(shown.history[0].received_bytes >= executor.received_bytes);
    let entry = shown.entry.context("it was seen")?;
    assert_eq!(entry.away_because, Some(EndReason::SocketError));
    assert_eq!(entry.since_unix_secs, shown.history[0].ended_at_unix_secs);

    // the call waits until the agent reconnects
    let mut waiting = Process::spawn(fixture.orchestrator(&["exec", "-n", "box", "--", "true"])?)?;
    let mut agent = fixture.agent().await?;
    assert!(waiting.wait(TIMEOUT).await?.success());

    // the relay is killed, and records this as the reason
    fixture.relay.stop(Signal::KILL).await?;
    let state = fixture.relay.state().to_owned();
    fixture.relay.start_again_on(&state, ["--connect-wait", "1s"]).await?;
    let back = |shown: &EnvironmentDetail| {
        shown.state == EnvironmentState::Connected && shown.history.len() == 3
    };
    let shown = fixture.shows(back).await?;
    let expected = [None, Some(EndReason::RelayRestarted), Some(EndReason::SocketError)];
    assert_eq!(ends(&shown), expected);

    // no executor returns: the call fails at the end of its wait, with the reason
    agent.process().signal(Signal::KILL)?;
    agent.process().wait(TIMEOUT).await?;
    fixture.shows(|shown| shown.state == EnvironmentState::Offline).await?;
    let asked = Instant::now();
    let refused = run(fixture.orchestrator(&["exec", "box", "--", "true"])?, b"", TIMEOUT).await?;
    assert_eq!(refused.status.code(), Some(69));
    assert!(asked.elapsed() >= Duration::from_secs(1));
    assert!(
        refused.stderr_text().contains("its connection broke off"),
        "{}",
        refused.stderr_text()
    );
    let listed = success(run(fixture.orchestrator(&["env", "ls"])?, b"", TIMEOUT).await?)?;
    assert!(listed.contains("box") && listed.contains("offline"), "{listed}");
    Ok(())
}

#[tokio::test]
async fn disconnected_agent_warns_once() -> Result<()> {
    let mut fixture = Fixture::start("0s").await?;
    let agent = fixture.agent().await?;
    fixture.relay.stop(Signal::KILL).await?;
    let mut levels = Vec::new();
    let twice = |line: &str| {
        if line.contains("not connected") {
            levels.push(line.contains("WARN"));
        }
        (levels.len() == 2).then_some(())
    };
    agent.log().line(TIMEOUT, twice).await?;
    assert_eq!(levels, [true, false]);
    Ok(())
}

/// The stream's orchestrator was killed, and the agent still waits for it.
#[tokio::test]
async fn stopped_agent_closes_its_websocket_cleanly() -> Result<()> {
    let fixture = Fixture::start("0s").await?;
    let mut agent = fixture.agent().await?;
    let started = ["exec", "box", "--", "sh", "-c", "echo started; exec sleep 1000"];
    let mut exec = Process::spawn(fixture.orchestrator(&started)?)?;
    exec.stdout_line(TIMEOUT, |line| (line == "started").then_some(())).await?;
    exec.signal(Signal::KILL)?;
    exec.wait(TIMEOUT).await?;
    agent.process().signal(Signal::TERM)?;
    assert!(agent.process().wait(TIMEOUT).await?.success());
    let shown = fixture.shows(|shown| shown.state == EnvironmentState::Offline).await?;
    assert_eq!(ends(&shown), [Some(EndReason::ClientClosed)]);
    Ok(())
}

/// For example a manual start of a relay that runs as a service.
#[tokio::test]
async fn failed_start_leaves_the_history_unchanged() -> Result<()> {
    let fixture = Fixture::start("1s").await?;
    let _agent = fixture.agent().await?;
    fixture.shows(|shown| ends(shown) == [None]).await?;
    let mut second = rendez()?;
    second.args(["relay", "--listen", &fixture.relay.address().to_string(), "--state"]);
    second.arg(fixture.relay.state());
    let output = run(second, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(78), "{}", output.stderr_text());
    assert_eq!(ends(&fixture.show(&[]).await?), [None]);
    Ok(())
}

/// For example a new relay that starts while the old one drains.
#[tokio::test]
async fn second_relay_on_same_state_warns() -> Result<()> {
    let fixture = Fixture::start("1s").await?;
    let _agent = fixture.agent().await?;
    fixture.shows(|shown| ends(shown) == [None]).await?;
    let mut command = rendez()?;
    command.args(["relay", "--listen", "127.0.0.1:0", "--log", "info", "--state"]);
    command.arg(fixture.relay.state());
    let mut second = Process::spawn(command)?;
    let logs = async |word: &str| {
        let logged = second.stderr_line(TIMEOUT, |line| line.contains(word).then_some(())).await;
        logged.with_context(|| format!("{word} is not logged"))
    };
    logs("another relay runs on this state directory").await?;
    logs("listening address=").await?;
    assert_eq!(ends(&fixture.show(&[]).await?), [None]);
    second.signal(Signal::TERM)?;
    assert!(second.wait(TIMEOUT).await?.success());
    assert_eq!(ends(&fixture.show(&[]).await?), [None]);
    Ok(())
}

#[tokio::test]
async fn restored_backup_keeps_registrations_and_audit_log() -> Result<()> {
    let mut fixture = Fixture::start("4s").await?;
    let _agent = fixture.agent().await?;
    let hello = ["exec", "box", "--", "echo", "hello"];
    success(run(fixture.orchestrator(&hello)?, b"", TIMEOUT).await?)?;
    let generation = fixture.show(&[]).await?.entry.context("it was seen")?.generation;

    // the head of the log is the same over HTTP and from the files
    let verify = ["admin", "audit", "verify"];
    let head = success(run(fixture.admin(&verify)?, b"", TIMEOUT).await?)?;
    let kinds = ["register", "open", "connect", "validate", "close"];
    let exported = fixture.exports(&kinds).await?;
    for token in &fixture.tokens {
        // The secret may hold '_' itself.
        let secret = token.splitn(4, '_').nth(3).context("a token has parts")?;
        assert!(!exported.contains(secret), "a secret is in the log");
    }
    let refused = run(fixture.orchestrator(&verify)?, b"", TIMEOUT).await?;
    assert_eq!(refused.status.code(), Some(77));

    let backup = fixture.dir.path().join("backup.sqlite");
    let state = fixture.relay.state().to_owned();
    let mut make = rendez()?;
    make.args(["admin", "backup", "--state"]).arg(&state).arg(&backup);
    success(run(make, b"", TIMEOUT).await?)?;

    // another machine has the copy and the key
    fixture.relay.stop(Signal::TERM).await?;
    let restored = fixture.dir.path().join("restored");
    std::fs::create_dir(&restored)?;
    std::fs::copy(&backup, restored.join("registry.sqlite"))?;
    std::fs::copy(state.join("signing.key"), restored.join("signing.key"))?;
    std::fs::remove_dir_all(&state)?;
    fixture.relay.start_again_on(&restored, ["--connect-wait", "4s"]).await?;
    let shown = fixture.shows(|shown| shown.state == EnvironmentState::Connected).await?;
    let now = shown.entry.context("it was seen")?.generation;
    assert_eq!(now, generation, "the executor came back under its old registration");
    assert_eq!(success(run(fixture.orchestrator(&hello)?, b"", TIMEOUT).await?)?, "hello\n");

    // the noted head is still part of the log
    let mut offline = rendez()?;
    offline.args(["admin", "audit", "verify", "--head", head.trim(), "--state"]).arg(&restored);
    success(run(offline, b"", TIMEOUT).await?)?;
    // a forged head is not
    let (seq, hash) = head.trim().split_once(':').context("SEQ:HASH")?;
    let other = format!("{seq}:{}", hash.chars().rev().collect::<String>());
    let mut forged = rendez()?;
    forged.args(["admin", "audit", "verify", "--head", &other, "--state"]).arg(&restored);
    let broken = run(forged, b"", TIMEOUT).await?;
    assert_eq!(broken.status.code(), Some(65));
    assert!(broken.stderr_text().contains(&format!("row {seq}")), "{}", broken.stderr_text());
    Ok(())
}
