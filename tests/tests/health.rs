//! Health endpoints for load balancers, and hints for new operators.

use anyhow::Result;
use rendez_tests::process::{IsolatedCommand, run, workspace_binary};
use rendez_tests::relay::{TestRelay, http_client};
use rendez_tests::rendez::{OurRelay, TIMEOUT, exec, rendez};
use reqwest::{Method, StatusCode};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn running_relay_is_live_and_ready() -> Result<()> {
    let relay = TestRelay::start().await?;
    for path in ["/livez", "/readyz"] {
        let answer = relay.request(Method::GET, path).send().await?;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        assert_eq!(answer.text().await?, "ok\n", "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn relay_without_tokens_logs_a_hint() -> Result<()> {
    let mut relay = OurRelay::start().await?;
    let hint = |line: &str| line.contains("rendez token create").then_some(());
    relay.process().stderr_line(TIMEOUT, hint).await?;
    // a token created while the relay runs works at once
    let token = relay.token("orchestrator").await?;
    let output = exec(relay.url(), &token, "nowhere", &["true"]).await?;
    assert_eq!(output.status.code(), Some(68), "{}", output.stderr_text());
    Ok(())
}

#[tokio::test]
async fn error_names_the_address_in_use() -> Result<()> {
    let relay = OurRelay::start().await?;
    let state = tempfile::tempdir()?;
    let address = relay.url().trim_start_matches("http://");
    let mut second = rendez()?;
    second.args(["relay", "--listen", address, "--state"]).arg(state.path());
    let output = run(second, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(78));
    assert!(output.stderr_text().contains(address), "{}", output.stderr_text());
    Ok(())
}

/// With all descriptors in silent connections, the relay says once that it is short of them,
/// closes the oldest, and answers.
#[tokio::test]
async fn shortage_of_descriptors_is_logged_once_and_locks_nobody_out() -> Result<()> {
    let state = tempfile::tempdir()?;
    let mut command = IsolatedCommand::new("sh")?;
    command
        .args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""])
        .arg(workspace_binary("rendez")?)
        .args(["relay", "--listen", "127.0.0.1:0", "--state"])
        .arg(state.path());
    let relay = OurRelay::start_by(command, state.path()).await?;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(relay.address()).await?);
    }
    relay.logs("cannot accept connections").await?;
    let http = http_client(relay.url())?;
    let answer = timeout(TIMEOUT, http.get(format!("{}/livez", relay.url())).send()).await??;
    assert_eq!(answer.status(), StatusCode::OK);
    let log = relay.log().text();
    assert_eq!(log.matches("cannot accept connections").count(), 1, "{log}");
    Ok(())
}
