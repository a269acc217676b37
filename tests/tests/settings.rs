//! A relay's settings as operators use them: printed, read back, overridden,
//! reloaded at SIGHUP.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rendez_tests::process::{Output, Process, run};
use rendez_tests::rendez::{OurRelay, TIMEOUT, rendez};
use rustix::process::Signal;
use serde_json::Value;

async fn print_config(file: &Path, more: &[&str], variable: Option<&str>) -> Result<Output> {
    let mut command = rendez()?;
    command.args(["relay", "--print-config", "--config"]).arg(file).args(more);
    command.envs(variable.map(|value| ("RENDEZ_CONNECTIONS_MAX", value)));
    run(command, b"", TIMEOUT).await
}

#[tokio::test]
async fn printed_settings_name_origin_and_round_trip() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("relay.toml");
    fs::write(&file, "connections_max = 1\n[drain]\ndeadline = \"7s\"\n")?;
    let output = print_config(&file, &["--listen", "127.0.0.1:1"], Some("2")).await?;
    assert!(output.status.success(), "{}", output.stderr_text());
    let text = output.stdout_text();
    for expected in [
        "From: --listen.\nlisten = \"127.0.0.1:1\"\n",
        "From: RENDEZ_CONNECTIONS_MAX.\nconnections_max = 2\n",
        "relay.toml:3.\ndeadline = \"7s\"\n",
        "From: default.\nstate = \"rendez-state\"\n",
    ] {
        assert!(text.contains(expected), "{expected:?} is not in\n{text}");
    }
    fs::write(&file, &text)?;
    let again = print_config(&file, &[], None).await?.stdout_text();
    let values = |text: &str| {
        let set = |line: &&str| !line.starts_with('#') && !line.is_empty();
        text.lines().filter(set).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&text));

    fs::write(&file, "[drain]\ndeadlin = \"7s\"\n")?;
    let wrong = print_config(&file, &[], None).await?;
    assert_eq!(wrong.status.code(), Some(78));
    let stderr = wrong.stderr_text();
    assert!(stderr.contains("relay.toml:2") && stderr.contains("`drain.deadline`?"), "{stderr}");
    Ok(())
}

/// Such a relay would drop all connections at SIGTERM.
#[tokio::test]
async fn announce_beyond_drain_deadline_is_refused() -> Result<()> {
    let state = tempfile::tempdir()?;
    let mut relay = rendez()?;
    relay.args(["relay", "--listen", "127.0.0.1:0", "--drain-announce", "30s", "--state"]);
    relay.arg(state.path()).env("RENDEZ_DRAIN_DEADLINE", "25s");
    let output = run(relay, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(78));
    let stderr = output.stderr_text();
    assert!(stderr.contains("--drain-announce: `drain.announce`: 30s is not less"), "{stderr}");
    assert!(stderr.contains("`drain.deadline`, which is 25s"), "{stderr}");
    Ok(())
}

#[tokio::test]
async fn invalid_issuers_error_names_the_file() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (file, state) = (directory.path().join("issuers.toml"), directory.path().join("state"));
    fs::write(
        &file,
        "[[issuer]]\nissuer = 'https://a'\naudience = 'a'\nkeys = { file = 'keys' }\n\
         [[issuer.rules]]\nclaims = {}\nrole = 'executor'\nenvironments = 'a'\n",
    )?;
    let mut relay = rendez()?;
    relay.args(["relay", "--listen", "127.0.0.1:0", "--auth-issuers"]).arg(&file);
    relay.arg("--state").arg(&state);
    let output = run(relay, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(78));
    let stderr = output.stderr_text();
    let expected = format!(
        "cannot use the issuers: {}: issuer \"https://a\": a rule needs at least one claim",
        file.display()
    );
    assert!(stderr.contains(&expected), "{stderr}");
    assert!(stderr.contains("cannot read the keys of this issuer"), "{stderr}");
    assert!(!state.exists());
    Ok(())
}

/// A misspelt directory would start a new relay.
#[tokio::test]
async fn new_database_is_announced() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let state = directory.path().join("state");
    let create = async || -> Result<String> {
        let mut create = rendez()?;
        create.args(["token", "create", "--role", "admin", "--state"]).arg(&state);
        let output = run(create, b"", TIMEOUT).await?;
        assert!(output.status.success(), "{}", output.stderr_text());
        Ok(output.stderr_text())
    };
    let announced = format!("created a new database in {}", state.display());
    assert!(create().await?.contains(&announced));
    assert!(!create().await?.contains(&announced));
    Ok(())
}

#[tokio::test]
async fn sighup_logs_changed_and_deferred_settings() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("relay.toml");
    let state = directory.path().join("state");
    let write = |level: &str, connections: u32, streams: u32| {
        let text = format!(
            "listen = \"127.0.0.1:0\"\nstate = {state:?}\nconnections_max = {connections}\n\
             [quota]\ntoken = \"streams={streams}\"\n\
             [log]\nformat = \"json\"\nlevel = {level:?}\n"
        );
        fs::write(&file, text)
    };
    write("info", 100, 5)?;
    let mut command = rendez()?;
    command.args(["relay", "--config"]).arg(&file);
    let relay = Process::spawn(command)?;
    // every line is an object with the event's fields
    let line = async |message: &str, setting: Option<&str>| -> Result<Value> {
        let wanted = |line: &str| {
            let object: Value = serde_json::from_str(line).unwrap_or_default();
            let right = object["message"].as_str().is_some_and(|text| text.contains(message))
                && setting.is_none_or(|setting| object["setting"] == setting);
            right.then_some(object)
        };
        relay.stderr_line(TIMEOUT, wanted).await.with_context(|| format!("{message}, {setting:?}"))
    };
    let listening = line("listening", None).await?;
    assert!(listening["address"].is_string() && listening["level"] == "INFO", "{listening}");

    write("debug", 200, 6)?;
    relay.signal(Signal::HUP)?;
    let changed = line("setting changed", Some("log.level")).await?;
    assert_eq!((&changed["old"], &changed["new"]), (&"info".into(), &"debug".into()));
    let changed = line("setting changed", Some("quota.token")).await?;
    assert_eq!(changed["new"], "streams=6");
    line("changes at the next start", Some("connections_max")).await?;

    fs::write(&file, "nonsense = 1")?;
    relay.signal(Signal::HUP)?;
    let kept = line("keeping the old ones", None).await?;
    assert!(kept["error"].as_str().is_some_and(|why| why.contains("nonsense")), "{kept}");
    assert_eq!(relay.stop(TIMEOUT).await?.code(), Some(0));
    Ok(())
}

#[tokio::test]
async fn audit_retention_is_reloaded() -> Result<()> {
    const MADE: usize = 12;
    const KEPT: usize = 5;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("relay.toml");
    fs::write(&file, "")?;
    let flag = file.to_str().context("a path in UTF-8")?;
    let mut relay = OurRelay::start_with(&["--config", flag]).await?;
    for _ in 0..MADE {
        relay.token("orchestrator").await?;
    }
    let rows = relay.administer(&["admin", "audit", "export"]).await?;
    assert_eq!(rows.lines().count(), MADE, "{rows}");
    let noted = relay.administer(&["admin", "audit", "verify"]).await?;

    fs::write(&file, format!("[audit]\nrows = {KEPT}\n"))?;
    relay.process().signal(Signal::HUP)?;
    let removed = |line: &str| line.contains("pruned the audit log").then_some(());
    relay.process().stderr_line(TIMEOUT, removed).await?;
    let rows = relay.administer(&["admin", "audit", "export"]).await?;
    assert_eq!(rows.lines().count(), KEPT + 1, "those and the checkpoint: {rows}");
    assert!(rows.lines().last().is_some_and(|row| row.contains("\"checkpoint\"")), "{rows}");
    let head = relay.administer(&["admin", "audit", "verify", "--head", &noted]).await?;
    assert!(head.starts_with(&format!("{}:", MADE + 1)), "{head}");

    fs::write(&file, "[audit]\nkeep = \"10m\"\n")?;
    relay.process().signal(Signal::HUP)?;
    let refused = |line: &str| (line.contains("`audit.keep`: at least 1h")).then_some(());
    relay.process().stderr_line(TIMEOUT, refused).await?;
    Ok(())
}

#[tokio::test]
async fn token_sent_without_tls_is_warned_about() -> Result<()> {
    let exec = async |relay: &str| -> Result<Output> {
        let mut command = rendez()?;
        command.args(["exec", "box", "--", "true"]);
        command.env("RENDEZ_RELAY", relay).env("RENDEZ_TOKEN", "rdz_o_x_y");
        run(command, b"", TIMEOUT).await
    };
    // this machine, by an address that is not loopback
    let exposed = exec("http://0.0.0.0:1").await?.stderr_text();
    assert_eq!(exposed.matches("over plain HTTP").count(), 1, "{exposed}");
    let near = exec("http://127.0.0.1:1").await?.stderr_text();
    assert!(!near.contains("over plain HTTP"), "{near}");
    Ok(())
}
