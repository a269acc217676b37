//! `rendez probe`: real round trips, through a temporary pair and to a connected
//! executor.

use anyhow::{Context as _, Result};
use rendez_tests::process::{Output, Process, run};
use rendez_tests::rendez::{Dev, OurAgent, OurRelay, TIMEOUT, exec, rendez};
use serde_json::Value;

fn report(output: &Output) -> Result<Value> {
    let text = output.stdout_text();
    serde_json::from_str(&text).with_context(|| format!("{text:?}, {}", output.stderr_text()))
}

/// Percentiles that are in order and not zero.
fn percentiles(report: &Value, kind: &str, count: u64) {
    let samples = &report[kind];
    assert_eq!(samples["count"], count, "{kind}: {report}");
    let of = |name: &str| samples[name].as_f64().unwrap_or_default();
    let [p50, p90, p99, max] = ["p50", "p90", "p99", "max"].map(of);
    assert!(0.0 < p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{kind}: {samples}");
}

#[tokio::test]
async fn probe_revokes_its_temporary_tokens() -> Result<()> {
    let dev = Dev::start().await?;
    let args = ["probe", "--json", "--connects", "3", "--count", "7"];
    let output = dev.run(args, b"").await?;
    assert!(output.status.success(), "{}", output.stderr_text());
    let report = report(&output)?;
    assert_eq!(report["throw_away"], true);
    assert_eq!(report["profile"], "rendez_hybrid_ik_v1");
    for (kind, count) in [("ask_ms", 3), ("dial_ms", 3), ("handshake_ms", 3), ("connect_ms", 3)] {
        percentiles(&report, kind, count);
    }
    percentiles(&report, "round_trip_ms", 21);
    assert!(report["register_ms"].as_f64().is_some_and(|millis| millis > 0.0));

    let tokens = dev.run(["token", "ls"], b"").await?.stdout_text();
    let probes: Vec<_> = tokens.lines().filter(|line| line.contains("rendez probe")).collect();
    assert_eq!(probes.len(), 2, "{tokens}");
    assert!(probes.iter().all(|line| line.contains("revoked")), "{tokens}");
    Ok(())
}

#[tokio::test]
async fn environment_probe_needs_only_orchestrator_token() -> Result<()> {
    let dev = Dev::start().await?;
    let output = dev.run(["probe", "dev", "--connects", "2", "--count", "2"], b"").await?;
    assert!(output.status.success(), "{}", output.stderr_text());
    let text = output.stdout_text();
    assert!(text.contains(" to dev, ") && text.contains("round trip        4"), "{text}");
    let nowhere = dev.run(["probe", "nowhere"], b"").await?;
    assert_eq!(nowhere.status.code(), Some(68), "{}", nowhere.stderr_text());
    Ok(())
}

#[tokio::test]
async fn probe_creates_tokens_from_state_directory() -> Result<()> {
    let relay = OurRelay::start().await?;
    let mut probe = rendez()?;
    probe.args(["probe", relay.url(), "--json", "--connects", "1", "--state"]).arg(relay.state());
    let output = run(probe, b"", TIMEOUT).await?;
    percentiles(&report(&output)?, "round_trip_ms", 20);
    Ok(())
}

#[tokio::test]
async fn probe_executor_refuses_other_orchestrators() -> Result<()> {
    let relay = OurRelay::start().await?;
    let token = relay.token("orchestrator").await?;
    let mut probe = rendez()?;
    let args = ["--connects", "1", "--count", "1000000", "--timeout", "10m", "--state"];
    let scratch = tempfile::tempdir()?;
    probe.args(["probe", relay.url()]).args(args).env("TMPDIR", scratch.path());
    let probe = Process::spawn({
        probe.arg(relay.state());
        probe
    })?;
    let refused = async {
        loop {
            let output = exec(relay.url(), &token, "rendez-probe", &["true"]).await?;
            match output.status.code() {
                // not registered, or not connected yet
                Some(68 | 69) => {}
                code => return anyhow::Ok((code, output.stderr_text())),
            }
        }
    };
    let (code, stderr) = tokio::time::timeout(TIMEOUT, refused).await??;
    assert_eq!(code, Some(75), "{stderr}");
    assert!(stderr.contains("encrypted stream"), "{stderr}");
    drop(probe);
    Ok(())
}

#[tokio::test]
async fn probe_failures_have_documented_exit_codes() -> Result<()> {
    let relay = OurRelay::start().await?;
    let orchestrator = relay.token("orchestrator").await?;
    let probe = async |url: &str, token: &str| -> Result<Option<i32>> {
        let mut probe = rendez()?;
        probe.args(["probe", url]).env("RENDEZ_TOKEN", token);
        Ok(run(probe, b"", TIMEOUT).await?.status.code())
    };
    // only an admin token can create tokens
    assert_eq!(probe(relay.url(), &orchestrator).await?, Some(77));
    assert_eq!(probe("http://127.0.0.1:1", &orchestrator).await?, Some(75));
    // the executor of this environment has stopped
    let executor = relay.token("executor").await?;
    let agent = OurAgent::start(relay.url(), "box", &executor).await?;
    let output = exec(relay.url(), &orchestrator, "box", &["true"]).await?;
    assert_eq!(output.status.code(), Some(0), "{}", output.stderr_text());
    agent.stop().await?;
    let mut offline = rendez()?;
    offline.args(["probe", "box"]);
    offline.env("RENDEZ_RELAY", relay.url()).env("RENDEZ_TOKEN", &orchestrator);
    let output = run(offline, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(69), "{}", output.stderr_text());
    Ok(())
}

/// As in deploy/relay.toml: no listener serves everything that a probe needs.
#[tokio::test]
async fn probe_reports_missing_endpoints_at_once() -> Result<()> {
    let relay =
        OurRelay::start_with(["--admin-listen", "127.0.0.1:0", "--admin-on-public", "false"])
            .await?;
    let admin = relay.token("admin").await?;
    let operators = format!("http://{}", relay.operators().await?);
    let ask = async |args: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = rendez()?;
        command.args(args).env("RENDEZ_TOKEN", &admin).env("RENDEZ_RELAY", relay.url());
        let output = run(command, b"", TIMEOUT).await?;
        Ok((output.status.code(), output.stderr_text()))
    };
    for args in [["probe", relay.url()], ["token", "ls"]] {
        let (code, stderr) = ask(&args).await?;
        assert_eq!(code, Some(64), "{args:?}: {stderr}");
        assert!(
            stderr.contains("admin listener") && stderr.contains("--state"),
            "{args:?}: {stderr}"
        );
    }
    for args in [&["admin", "status"][..], &["admin", "connections"], &["admin", "audit", "export"]]
    {
        let (code, stderr) = ask(args).await?;
        assert_eq!(code, Some(64), "{args:?}: {stderr}");
        assert!(stderr.contains("admin listener"), "{args:?}: {stderr}");
    }
    // a timeout that exceeds the test's
    let (code, stderr) = ask(&["probe", "--timeout", "1h", &operators]).await?;
    assert_eq!(code, Some(75), "{stderr}");
    assert!(stderr.contains("clients are served on the relay's public listener"), "{stderr}");

    let mut probe = rendez()?;
    probe.args(["probe", relay.url(), "--json", "--connects", "1", "--state"]).arg(relay.state());
    let output = run(probe, b"", TIMEOUT).await?;
    percentiles(&report(&output)?, "round_trip_ms", 20);
    Ok(())
}

#[tokio::test]
async fn probe_does_not_replace_an_executor() -> Result<()> {
    let relay = OurRelay::start().await?;
    let (executor, orchestrator) = (relay.token("executor").await?, relay.token("orchestrator"));
    let orchestrator = orchestrator.await?;
    let _agent = OurAgent::start(relay.url(), "box", &executor).await?;
    let mut probe = rendez()?;
    probe.args(["probe", relay.url(), "--probe-environment", "box", "--state"]).arg(relay.state());
    let output = run(probe, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(64), "{}", output.stderr_text());
    assert!(output.stderr_text().contains("is connected as box"), "{}", output.stderr_text());
    let output = exec(relay.url(), &orchestrator, "box", &["true"]).await?;
    assert_eq!(output.status.code(), Some(0), "{}", output.stderr_text());
    Ok(())
}
