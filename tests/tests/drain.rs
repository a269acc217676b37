//! The shutdown of a relay: its announcements, its pace, and no loss for its
//! clients. Streams under load through restarts are in `survive.rs`, stock endpoints
//! in `conformance.rs`.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rendez_proto::limits::{CONNECT_WAIT_MAX, STREAM_GRACE};
use rendez_proto::registry::environments::{EnvironmentDetail, EnvironmentState};
use rendez_tests::poll::{poll, wait_until};
use rendez_tests::process::Process;
use rendez_tests::relay::{TestRelay, Websocket, answer, key};
use rendez_tests::rendez::{OurAgent, OurRelay, TIMEOUT, rendez};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn drain_announces_the_reconnect_window() -> Result<()> {
    const ENVIRONMENTS: usize = 12;
    // two websockets each at 12 per second: two seconds
    let relay = TestRelay::start_with(|config| config.drain_reconnects_per_second = 12).await?;
    let mut sockets = Vec::new();
    for n in 0..ENVIRONMENTS {
        let environment = format!("env-{n}");
        sockets.push(relay.executor(&environment).await?);
        sockets.push(relay.orchestrator(&environment, key(1)).await?);
    }
    let since = Instant::now();
    relay.stop();
    let closing = sockets.iter_mut().map(Websocket::closed);
    for closed in futures_util::future::join_all(closing).await {
        assert_eq!(closed?, (1012, "relay_restarting within 2s".to_owned()));
    }
    // in batches: the last ones closed long after the first
    assert!(since.elapsed() >= Duration::from_millis(500), "{:?}", since.elapsed());
    Ok(())
}

#[tokio::test]
async fn few_connections_get_no_reconnect_window() -> Result<()> {
    let relay = TestRelay::start().await?;
    let mut executor = relay.executor("box").await?;
    relay.stop();
    assert_eq!(executor.closed().await?, (1012, "relay_restarting".to_owned()));
    Ok(())
}

#[tokio::test]
async fn draining_relay_reports_draining_or_offline() -> Result<()> {
    let relay = TestRelay::start_with(|config| config.drain_announce = 10 * TIMEOUT).await?;
    let mut executor = relay.executor("box").await?;
    relay.register("away").await?;
    let state = async |environment: &str| {
        let request = relay.request(Method::GET, &format!("/v1/environments/{environment}"));
        let detail = answer(request.bearer_auth(relay.orchestrator_token())).await;
        detail.map(|detail: EnvironmentDetail| detail.state)
    };
    assert_eq!(state("box").await?, EnvironmentState::Connected);
    relay.stop();
    poll(TIMEOUT, async || {
        let state = state("box").await?;
        let draining = state == EnvironmentState::Draining;
        Ok(if draining { Ok(()) } else { Err(format!("the environment is {state:?}")) })
    })
    .await?;
    assert_eq!(state("away").await?, EnvironmentState::Offline);
    relay.stop_now();
    tokio::time::timeout(TIMEOUT, relay.stopped()).await.context("a second signal")?;
    assert_eq!(executor.closed().await?.0, 1012, "it is told, all the same");
    Ok(())
}

#[tokio::test]
async fn drain_fails_readiness_first() -> Result<()> {
    let relay = TestRelay::start_with(|config| {
        config.connect_wait = CONNECT_WAIT_MAX;
        config.drain_announce = 10 * TIMEOUT;
        config.drain_deadline = 10 * TIMEOUT;
    });
    let relay = relay.await?;
    let _executor = relay.executor("box").await?;
    relay.stop();
    let unready = poll(TIMEOUT, async || {
        let ready = relay.request(Method::GET, "/readyz").send().await?;
        let status = ready.status();
        let unready = status == StatusCode::SERVICE_UNAVAILABLE;
        Ok(if unready { Ok(ready.text().await?) } else { Err(format!("/readyz: {status}")) })
    });
    assert_eq!(unready.await?, "shutting down\n");
    // until load balancers have noticed, everything else goes on
    let alive = relay.request(Method::GET, "/livez").send().await?;
    assert_eq!(alive.status(), StatusCode::OK);
    let orchestrator = relay.orchestrator("box", key(1)).await?;
    drop(orchestrator);
    let away = relay.register("away").await?;
    let comes = async {
        wait_until(TIMEOUT, "a call waits for the executor", || relay.waiting() > 0).await?;
        Websocket::open(away.url.expose()).await
    };
    let (connected, _executor) = tokio::try_join!(relay.connect("away", key(1)), comes)?;
    assert_eq!(connected.executor_registration_id, away.executor_registration_id);
    relay.stop_now();
    tokio::time::timeout(TIMEOUT, relay.stopped()).await.context("a second signal")?;
    Ok(())
}

#[tokio::test]
async fn drain_ends_at_its_deadline() -> Result<()> {
    let relay = TestRelay::start_with(|config| config.drain_deadline = Duration::from_millis(300));
    let relay = relay.await?;
    // a request whose body never arrives keeps its connection busy
    let mut stuck = TcpStream::connect(relay.address()).await?;
    let head = format!(
        "POST /cloud/environment/box/register HTTP/1.1\r\nhost: relay\r\n\
         authorization: Bearer {}\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n",
        relay.executor_token()
    );
    stuck.write_all(head.as_bytes()).await?;
    // the relay has asked for the body and waits for it
    let mut asked = *b"HTTP/1.1 100 Continue\r\n\r\n";
    tokio::time::timeout(TIMEOUT, stuck.read_exact(&mut asked)).await??;
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    relay.stop();
    tokio::time::timeout(TIMEOUT, relay.stopped()).await.context("the deadline")?;
    // it did not wait for the request, which is unanswered
    let answered = stuck.into_std()?.read(&mut [0]);
    assert!(!matches!(answered, Ok(1)), "the request was answered");
    assert!(TcpStream::connect(relay.address()).await.is_err(), "the listener is still open");
    Ok(())
}

/// Commands print continuously while the relay is restarted twice. Every line
/// arrives, once and in order.
#[tokio::test]
async fn output_survives_relay_restarts() -> Result<()> {
    const COMMANDS: usize = 5;
    let mut relay = OurRelay::start().await?;
    let executor = relay.token("executor").await?;
    let orchestrator = relay.token("orchestrator").await?;
    let _agent = OurAgent::start(relay.url(), "box", &executor).await?;
    let directory = tempfile::tempdir()?;
    let finish = directory.path().join("finish");
    let script = format!(
        "n=0; while [ ! -e {} ]; do n=$((n+1)); echo $n; sleep 0.01; done; echo end; exit 7",
        finish.display()
    );
    let mut commands = Vec::new();
    for _ in 0..COMMANDS {
        let mut command = rendez()?;
        command.args(["exec", "-n", "box", "--", "sh", "-c", &script]);
        command.env("RENDEZ_RELAY", relay.url()).env("RENDEZ_TOKEN", &orchestrator);
        commands.push(Process::spawn(command)?);
    }
    let mut seen = vec![0; COMMANDS];
    // new output from each command: all streams work
    let progress = async |seen: &mut Vec<u64>| -> Result<()> {
        for (command, seen) in commands.iter().zip(seen) {
            let newer = |line: &str| line.parse().ok().filter(|n: &u64| *n > *seen + 20);
            *seen = command.stdout_line(STREAM_GRACE, newer).await?;
        }
        Ok(())
    };
    progress(&mut seen).await?;
    for _ in 0..2 {
        relay.process().signal(Signal::TERM)?;
        let status = relay.process().wait(TIMEOUT).await?;
        ensure!(status.success(), "the relay ended with {status}");
        relay.start_again().await?;
        progress(&mut seen).await?;
    }
    std::fs::write(&finish, "")?;
    for mut command in commands {
        let status = command.wait(TIMEOUT).await?;
        assert_eq!(status.code(), Some(7), "{}", command.stderr().text());
        command.stdout().closed().await;
        let text = command.stdout().text();
        let count = text.lines().count() - 1;
        let all = (1..=count).map(|n| n.to_string()).chain(["end".to_owned()]);
        assert!(text.lines().eq(all), "lines are missing or double among {count}");
    }
    Ok(())
}

#[tokio::test]
async fn second_signal_stops_idle_relay_cleanly() -> Result<()> {
    let drain = ["--drain-announce", "50m", "--drain-deadline", "1h"];
    let mut relay = OurRelay::start_with(drain).await?;
    relay.process().signal(Signal::TERM)?;
    let logged = |line: &str| line.contains("asked to stop").then_some(());
    relay.process().stderr_line(TIMEOUT, logged).await.context("the first signal")?;
    assert!(relay.stop(Signal::TERM).await?.success());
    relay.log().closed().await;
    let log = relay.log().text();
    assert!(log.contains("closing all websockets") && !log.contains("are dropped"), "{log}");
    Ok(())
}
