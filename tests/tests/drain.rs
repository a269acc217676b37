//! A relay that leaves: what it says, how fast it goes, and that nobody loses
//! anything by it. Streams under load through restarts are in `survive.rs`,
//! stock ends in `conformance.rs`.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rendez_proto::limits::{CONNECT_WAIT_MAX, STREAM_GRACE};
use rendez_proto::registry::environments::{EnvironmentDetail, EnvironmentState};
use rendez_tests::poll::{poll, wait_until};
use rendez_tests::process::Process;
use rendez_tests::relay::{TestRelay, Websocket, answer, key};
use rendez_tests::rendez::{OurAgent, OurRelay, WITHIN, rendez};
use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::test]
async fn everybody_is_told_within_which_span_to_come_back() -> Result<()> {
    const ENVIRONMENTS: usize = 12;
    // two websockets each at 12 per second: two seconds
    let relay = TestRelay::start_as(|config| config.drain_reconnects_per_second = 12).await?;
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
    // in batches: the last ones went a good while after the first
    assert!(since.elapsed() >= Duration::from_millis(500), "{:?}", since.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_few_are_told_to_come_back_at_once() -> Result<()> {
    let relay = TestRelay::start().await?;
    let mut executor = relay.executor("box").await?;
    relay.stop();
    assert_eq!(executor.closed().await?, (1012, "relay_restarting".to_owned()));
    Ok(())
}

#[tokio::test]
async fn an_environment_whose_relay_leaves_is_draining_and_an_absent_one_is_offline() -> Result<()>
{
    let relay = TestRelay::start_as(|config| config.drain_announce = 10 * WITHIN).await?;
    let executor = relay.executor("box").await?;
    relay.register("away").await?;
    let state = async |environment: &str| {
        let request = relay.request(Method::GET, &format!("/v1/environments/{environment}"));
        let detail = answer(request.bearer_auth(relay.orchestrator_token())).await;
        detail.map(|detail: EnvironmentDetail| detail.state)
    };
    assert_eq!(state("box").await?, EnvironmentState::Connected);
    relay.stop();
    poll(WITHIN, async || {
        let state = state("box").await?;
        let draining = state == EnvironmentState::Draining;
        Ok(if draining { Ok(()) } else { Err(format!("the environment is {state:?}")) })
    })
    .await?;
    assert_eq!(state("away").await?, EnvironmentState::Offline);
    relay.stop_at_once();
    tokio::time::timeout(WITHIN, relay.stopped()).await.context("a second signal")?;
    drop(executor);
    Ok(())
}

#[tokio::test]
async fn readiness_goes_first_and_the_second_signal_is_urgent() -> Result<()> {
    let relay = TestRelay::start_as(|config| {
        config.connect_wait = CONNECT_WAIT_MAX;
        config.drain_announce = 10 * WITHIN;
        config.drain_deadline = 10 * WITHIN;
    });
    let relay = relay.await?;
    let _executor = relay.executor("box").await?;
    relay.stop();
    let unready = poll(WITHIN, async || {
        let ready = relay.request(Method::GET, "/readyz").send().await?;
        let status = ready.status();
        let unready = status == StatusCode::SERVICE_UNAVAILABLE;
        Ok(if unready { Ok(ready.text().await?) } else { Err(format!("/readyz: {status}")) })
    });
    assert_eq!(unready.await?, "shutting down\n");
    // until balancers have noticed, everything else goes on
    let alive = relay.request(Method::GET, "/livez").send().await?;
    assert_eq!(alive.status(), StatusCode::OK);
    let orchestrator = relay.orchestrator("box", key(1)).await?;
    drop(orchestrator);
    let away = relay.register("away").await?;
    let comes = async {
        wait_until(WITHIN, "a call waits for the executor", || relay.waiting() > 0).await?;
        Websocket::open(away.url.expose()).await
    };
    let (connected, _executor) = tokio::try_join!(relay.connect("away", key(1)), comes)?;
    assert_eq!(connected.executor_registration_id, away.executor_registration_id);
    relay.stop_at_once();
    tokio::time::timeout(WITHIN, relay.stopped()).await.context("a second signal")?;
    Ok(())
}

#[tokio::test]
async fn who_does_not_leave_is_left_at_the_deadline() -> Result<()> {
    let relay = TestRelay::start_as(|config| config.drain_deadline = Duration::from_millis(300));
    let relay = relay.await?;
    // a request whose body never comes: its connection is busy
    let mut stuck = TcpStream::connect(relay.address()).await?;
    let head = format!(
        "POST /cloud/environment/box/register HTTP/1.1\r\nhost: relay\r\n\
         authorization: Bearer {}\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n",
        relay.executor_token()
    );
    stuck.write_all(head.as_bytes()).await?;
    // the relay asks for the body: it waits for it from here on
    let mut asked = *b"HTTP/1.1 100 Continue\r\n\r\n";
    tokio::time::timeout(WITHIN, stuck.read_exact(&mut asked)).await??;
    assert_eq!(&asked, b"HTTP/1.1 100 Continue\r\n\r\n");
    relay.stop();
    tokio::time::timeout(WITHIN, relay.stopped()).await.context("the deadline")?;
    // it did not wait for the request, which nobody has answered yet
    let answered = stuck.into_std()?.read(&mut [0]);
    assert!(!matches!(answered, Ok(1)), "it had time for an answer");
    assert!(TcpStream::connect(relay.address()).await.is_err(), "nobody listens any more");
    Ok(())
}

/// Commands that print all the time while the relay is restarted twice; every
/// line arrives, once and in order.
#[tokio::test]
async fn our_own_ends_lose_nothing() -> Result<()> {
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
    // something new from each of them: streams are up
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
        let status = relay.process().wait(WITHIN).await?;
        ensure!(status.success(), "the relay left with {status}");
        relay.start_again().await?;
        progress(&mut seen).await?;
    }
    std::fs::write(&finish, "")?;
    for mut command in commands {
        let status = command.wait(WITHIN).await?;
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
async fn a_relay_without_websockets_drops_none() -> Result<()> {
    let drain = ["--drain-announce", "50m", "--drain-deadline", "1h"];
    let mut relay = OurRelay::start_with(drain).await?;
    relay.process().signal(Signal::TERM)?;
    let says = |line: &str| line.contains("asked to stop").then_some(());
    relay.process().stderr_line(WITHIN, says).await.context("the first signal")?;
    assert!(relay.stop(Signal::TERM).await?.success());
    relay.log().closed().await;
    let log = relay.log().text();
    assert!(log.contains("closing all websockets") && !log.contains("are dropped"), "{log}");
    Ok(())
}
