//! An executor joins with a token that it needs once, and ends when it is revoked:
//! real processes, a real relay.

use anyhow::{Context as _, Result, ensure};
use rendez_tests::process::{Process, run};
use rendez_tests::relay::token_id;
use rendez_tests::rendez::{OurAgent, OurRelay, TIMEOUT, exec};
use serde_json::Value;

/// Runs a command through the relay, which must succeed.
async fn works(relay: &OurRelay, token: &str) -> Result<()> {
    let output = exec(relay.url(), token, "box", &["echo", "here"]).await?;
    ensure!(output.stdout_text() == "here\n", "{}", output.stderr_text());
    Ok(())
}

/// The listed tokens that were created by enrolment.
async fn enrolled(relay: &OurRelay) -> Result<Vec<Value>> {
    let lines = relay.administer(&["token", "ls", "--json"]).await?;
    let entries: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(entries.into_iter().filter(|entry| !entry["enrolled_by"].is_null()).collect())
}

/// Starts an agent that must end with this code and this message.
async fn ends(
    state: &std::path::Path,
    relay: &OurRelay,
    environment: &str,
    token: Option<&str>,
    code: i32,
    message: &str,
) -> Result<()> {
    let output =
        run(OurAgent::command(state, relay.url(), environment, token)?, b"", TIMEOUT).await?;
    let stderr = output.stderr_text();
    ensure!(output.status.code() == Some(code), "{:?}: {stderr}", output.status);
    ensure!(stderr.contains(message), "{stderr}");
    Ok(())
}

#[tokio::test]
async fn join_token_enrols_one_machine() -> Result<()> {
    let relay = OurRelay::start().await?;
    let orchestrator = relay.token("orchestrator").await?;
    let join = relay.token("join").await?;
    let state = tempfile::tempdir()?;
    ends(state.path(), &relay, "box", None, 77, "not joined yet").await?;

    let agent = OurAgent::start_in(state.path(), relay.url(), "box", Some(&join)).await?;
    works(&relay, &orchestrator).await?;
    drop(agent);
    // the token was for one machine
    let other = tempfile::tempdir()?;
    ends(other.path(), &relay, "box", Some(&join), 77, "used up").await?;

    let mut agent = OurAgent::start_in(state.path(), relay.url(), "box", None).await?;
    works(&relay, &orchestrator).await?;
    let joined = enrolled(&relay).await?;
    ensure!(joined.len() == 1, "{joined:?}");
    assert_eq!(joined[0]["environments"], "box");
    assert_eq!(joined[0]["enrolled_by"], token_id(&join)?);

    let id = joined[0]["id"].as_str().context("an entry has an id")?;
    relay.administer(&["token", "revoke", id]).await?;
    let process: &mut Process = agent.process();
    // the last messages may arrive after the exit
    for message in ["token was revoked", "join with a new"] {
        process.stderr_line(TIMEOUT, |line| line.contains(message).then_some(())).await?;
    }
    assert_eq!(process.wait(TIMEOUT).await?.code(), Some(77));
    ensure!(!process.stderr().text().contains(&join), "the token was shown");

    // another token does not help, because the key is revoked
    let second = relay.token("join").await?;
    ends(state.path(), &relay, "box", Some(&second), 77, "this executor was revoked").await?;
    std::fs::remove_file(state.path().join("credential"))?;
    let _agent = OurAgent::start_in(state.path(), relay.url(), "box", Some(&second)).await?;
    works(&relay, &orchestrator).await
}

#[tokio::test]
async fn revoked_environment_needs_a_new_enrolment() -> Result<()> {
    let relay = OurRelay::start().await?;
    let orchestrator = relay.token("orchestrator").await?;
    let state = tempfile::tempdir()?;
    let fleet = ["token", "create", "--role", "join", "--max-uses", "10"];
    let old = relay.administer(&fleet).await?;
    let mut agent = OurAgent::start_in(state.path(), relay.url(), "box", Some(&old)).await?;
    works(&relay, &orchestrator).await?;

    // ends one registration: the agent registers again by itself
    relay.administer(&["env", "revoke", "box", "--registration-only"]).await?;
    let ended = "was ended by an operator";
    agent.process().stderr_line(TIMEOUT, |line| line.contains(ended).then_some(())).await?;
    agent.connected(2).await?;
    works(&relay, &orchestrator).await?;

    relay.administer(&["env", "revoke", "box"]).await?;
    assert_eq!(agent.process().wait(TIMEOUT).await?.code(), Some(77));
    let gone = exec(relay.url(), &orchestrator, "box", &["true"]).await?;
    assert_eq!(gone.status.code(), Some(69), "{}", gone.stderr_text());
    assert!(gone.stderr_text().contains("its access was revoked"), "{}", gone.stderr_text());
    let other = tempfile::tempdir()?;
    ends(other.path(), &relay, "box", Some(&old), 77, "environment was revoked").await?;
    let new = relay.token("join").await?;
    let _agent = OurAgent::start_in(other.path(), relay.url(), "box", Some(&new)).await?;
    works(&relay, &orchestrator).await
}
