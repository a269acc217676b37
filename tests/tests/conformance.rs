//! Stock Codex against our relay and agent, at either end and at both.
//!
//! Runs in a network namespace with loopback only, because the stock binary contacts
//! internet hosts (`tests/netns.sh`, called by `check.sh`).

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use rendez_orchestrator::error::ProcessError;
use rendez_orchestrator::{Command, ConnectionState, ProcessEvent};
use rendez_proto::profile::Profile;
use rendez_tests::poll::wait_until;
use rendez_tests::relay::TestRelay;
use rendez_tests::rendez::{OurAgent, OurRelay, exec};
use rendez_tests::stock::Harness;
use rendez_tests::stock::app_server::AppServer;
use rendez_tests::stock::codex_exec;
use rendez_tests::stock::executor::StockExecutor;
use rendez_tests::stock::model::{FakeModel, ToolCall};
use rendez_tests::survive::proxy::Proxy;
use tokio::time::timeout;

/// Longest wait for anything here. A stock turn takes under a second.
const TIMEOUT: Duration = Duration::from_secs(60);

fn harness(relay: &TestRelay, environment: &str) -> Harness {
    Harness {
        registry_url: relay.base().to_owned(),
        environment: environment.to_owned(),
        bearer: relay.orchestrator_token().to_owned(),
    }
}

#[tokio::test]
async fn our_exec_runs_commands_on_stock_executor() -> Result<()> {
    let relay = TestRelay::start().await?;
    let executor = StockExecutor::start(relay.base(), "box", relay.executor_token()).await?;
    executor.connected(1, TIMEOUT).await?;
    let run = async |command: &[&str]| {
        exec(relay.base(), relay.orchestrator_token(), "box", command).await
    };
    let output = run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).await?;
    assert_eq!(output.stdout_text(), "out\n");
    assert!(output.stderr_text().contains("err\n"), "{}", output.stderr_text());
    assert_eq!(output.status.code(), Some(7));

    // more than any window, so that order and completeness show
    let output = run(&["seq", "1", "200000"]).await?;
    let lines: Vec<String> = (1..=200_000).map(|n| n.to_string()).collect();
    assert!(output.stdout_text().lines().eq(lines.iter()), "{} bytes", output.stdout.len());
    let missing = run(&["/no/such/program"]).await?;
    assert_eq!(missing.status.code(), Some(127), "{}", missing.stderr_text());
    Ok(())
}

#[tokio::test]
async fn our_library_uses_stock_executor_files() -> Result<()> {
    let relay = TestRelay::start().await?;
    let executor = StockExecutor::start(relay.base(), "box", relay.executor_token()).await?;
    executor.connected(1, TIMEOUT).await?;
    let token = relay.orchestrator_token().to_owned();
    let client = rendez_orchestrator::Client::new(relay.base(), token.into())?;
    let connected = client.connect(&"box".parse()?).await?;
    assert_eq!(connected.profile(), Profile::NoiseHybridIkV1);
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("deep/file").display().to_string();
    let files = connected.files();
    files.create_dir_all(&directory.path().join("deep").display().to_string()).await?;
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    files.write(&path, &data).await?;
    assert!(files.read(&path).await? == data);
    assert_eq!(files.metadata(&path).await?.size, data.len() as u64);
    files.remove(&path).await?;
    assert!(matches!(files.read(&path).await, Err(rendez_orchestrator::FileError::NotFound(_))));
    connected.close().await;
    Ok(())
}

/// Stock streams end with their websockets. The session and its processes continue,
/// and nothing is lost, doubled or started again.
#[tokio::test]
async fn our_orchestrator_resumes_stock_executor_session() -> Result<()> {
    const LINES: usize = 150;
    let relay = TestRelay::start().await?;
    let here = [127, 0, 0, 1].into();
    let to_relay = relay.address().parse()?;
    let (ours, theirs) = (Proxy::start(here, to_relay).await?, Proxy::start(here, to_relay).await?);
    let executor = StockExecutor::start(&theirs.url(), "box", relay.executor_token()).await?;
    executor.connected(1, TIMEOUT).await?;
    let token = relay.orchestrator_token().to_owned();
    let client = rendez_orchestrator::Client::new(&ours.url(), token.into())?;
    let connected = client.connect(&"box".parse()?).await?;

    let directory = tempfile::tempdir()?;
    let script = format!(
        "echo started >> {}/started; for n in $(seq {LINES}); do echo $n; sleep 0.03; done; exit 7",
        directory.path().display()
    );
    let command = Command::new("sh").args(["-c", &script]);
    let mut talker = connected.spawn(command).await?;
    let mut echo = connected.spawn(Command::new("cat").stdin(true)).await?;
    let mut stdin = echo.stdin.take().expect("it was asked for");

    let (mut stdout, mut code, mut cuts) = (String::new(), None, 0);
    while let Some(event) = timeout(TIMEOUT, talker.next()).await?? {
        match event {
            ProcessEvent::Stdout(chunk) => stdout.push_str(std::str::from_utf8(&chunk)?),
            ProcessEvent::Stderr(chunk) => bail!("{}", String::from_utf8_lossy(&chunk)),
            ProcessEvent::Exited(status) => code = Some(status),
        }
        let lines = stdout.lines().count();
        if lines >= LINES * (cuts + 1) / 4 && cuts < 3 {
            // one path, the other, and both; written data is lost with them
            stdin.write_all(format!("before {cuts}\n").as_bytes()).await?;
            if cuts != 1 {
                ours.reset_all();
            }
            if cuts != 0 {
                theirs.reset_all();
            }
            stdin.write_all(format!("after {cuts}\n").as_bytes()).await?;
            cuts += 1;
        }
    }
    assert!(stdout.lines().eq((1..=LINES).map(|n| n.to_string())), "{stdout}");
    assert_eq!((code, cuts), (Some(7), 3));
    assert_eq!(std::fs::read_to_string(directory.path().join("started"))?, "started\n");
    timeout(TIMEOUT, stdin.flush()).await??;
    let wanted: String = (0..3).map(|n| format!("before {n}\nafter {n}\n")).collect();
    let mut echoed = String::new();
    while echoed.len() < wanted.len() {
        match timeout(TIMEOUT, echo.next()).await?? {
            Some(ProcessEvent::Stdout(chunk)) => echoed.push_str(std::str::from_utf8(&chunk)?),
            other => bail!("{other:?} after {echoed:?}"),
        }
    }
    assert_eq!(echoed, wanted);
    assert!(echo.control().terminate().await?);
    connected.close().await;
    Ok(())
}

#[tokio::test]
async fn output_lost_by_stock_executor_is_counted() -> Result<()> {
    const CHUNK: usize = 8192;
    const CHUNKS: usize = 400;
    let relay = TestRelay::start().await?;
    let ours = Proxy::start([127, 0, 0, 1].into(), relay.address().parse()?).await?;
    let executor = StockExecutor::start(relay.base(), "box", relay.executor_token()).await?;
    executor.connected(1, TIMEOUT).await?;
    let token = relay.orchestrator_token().to_owned();
    let client = rendez_orchestrator::Client::new(&ours.url(), token.into())?;
    let connected = client.connect(&"box".parse()?).await?;
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name);
    let script = format!(
        "echo ready; while [ ! -e {go} ]; do sleep 0.02; done; head -c {bytes} /dev/zero; \
         touch {done}; sleep 1; echo end",
        go = file("go").display(),
        bytes = CHUNK * CHUNKS,
        done = file("done").display(),
    );
    let mut process = connected.spawn(Command::new("sh").args(["-c", &script])).await?;
    let ready = timeout(TIMEOUT, process.next()).await??;
    assert_eq!(ready, Some(ProcessEvent::Stdout(b"ready\n".to_vec())));
    // the orchestrator is disconnected, and the executor knows it, while the output
    // is made
    ours.set_stalled(true);
    ours.reset_all();
    let link = connected.connection_state();
    timeout(TIMEOUT, link.clone().wait_for(|state| *state == ConnectionState::Reconnecting))
        .await??;
    std::fs::write(file("go"), "")?;
    exists(&file("done")).await?;
    ours.set_stalled(false);
    let (mut kept, mut missed) = (Vec::new(), 0);
    loop {
        match timeout(TIMEOUT, process.next()).await? {
            Ok(Some(ProcessEvent::Stdout(chunk))) => kept.extend(chunk),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(ProcessError::Missed(pieces)) => missed += pieces,
            Err(error) => return Err(error.into()),
        }
    }
    assert!(kept.ends_with(b"end\n"), "{} bytes", kept.len());
    let whole = CHUNK * CHUNKS + 4;
    assert!(missed > 0 && kept.len() < whole, "{missed} missed, {} bytes kept", kept.len());
    assert!(kept.len() + missed as usize * CHUNK >= whole, "{missed} and {}", kept.len());
    connected.close().await;
    Ok(())
}

#[tokio::test]
async fn stock_harness_gets_ready_on_our_agent() -> Result<()> {
    let relay = TestRelay::start().await?;
    let _agent = OurAgent::start(relay.base(), "box", relay.executor_token()).await?;
    let mut server = AppServer::start(&harness(&relay, "box")).await?;
    server.ready(TIMEOUT).await?;
    let info = server.environment_info().await?;
    assert!(info["shell"]["path"].is_string(), "{info}");
    Ok(())
}

/// A turn of the stock harness: the model requests commands, they run, and their
/// output returns to it.
async fn turn_runs_commands(relay: &TestRelay, environment: &str) -> Result<()> {
    let calls = vec![
        ToolCall::exec("echo marker-$((40 + 2)); exit 7"),
        ToolCall::exec("seq 1 5000 | tail -1"),
    ];
    let model = FakeModel::start(calls, "done").await?;
    let turn = codex_exec::run(&harness(relay, environment), &model, Path::new("/"), "go", TIMEOUT)
        .await?;
    let outputs = model.outputs();
    assert_eq!(outputs.len(), 2, "{outputs:?}");
    assert_eq!(outputs[0].exit_code(), Some(7), "{:?}", outputs[0]);
    assert!(outputs[0].text().contains("marker-42"), "{:?}", outputs[0]);
    assert_eq!(outputs[1].exit_code(), Some(0), "{:?}", outputs[1]);
    assert!(outputs[1].text().contains("5000"), "{:?}", outputs[1]);
    assert_eq!(turn.message(), Some("done"));
    Ok(())
}

#[tokio::test]
async fn stock_turn_runs_commands_on_our_agent() -> Result<()> {
    let relay = TestRelay::start().await?;
    let _agent = OurAgent::start(relay.base(), "box", relay.executor_token()).await?;
    turn_runs_commands(&relay, "box").await
}

#[tokio::test]
async fn stock_turn_runs_on_stock_executor() -> Result<()> {
    let relay = TestRelay::start().await?;
    let executor = StockExecutor::start(relay.base(), "box", relay.executor_token()).await?;
    executor.connected(1, TIMEOUT).await?;
    turn_runs_commands(&relay, "box").await
}

/// The relay is restarted by SIGTERM in the middle of a turn. Both endpoints are
/// stock, so the turn survives only because the relay closes their websockets
/// cleanly, the executor's ticket is still valid and its session waits for the
/// harness.
#[tokio::test]
async fn stock_turn_survives_relay_restart() -> Result<()> {
    let mut relay = OurRelay::start().await?;
    let token = relay.token("executor").await?;
    let executor = StockExecutor::start(relay.url(), "box", &token).await?;
    executor.connected(1, TIMEOUT).await?;
    let directory = tempfile::tempdir()?;
    let file = |name: &str| directory.path().join(name);
    // prints continuously, so that lost or doubled lines show
    let command = format!(
        "n=0; touch {started}; while [ ! -e {finish} ]; do n=$((n+1)); echo line-$n; sleep 0.05; \
         done; echo last-line-was-$n; exit 7",
        started = file("started").display(),
        finish = file("finish").display(),
    );
    let model = FakeModel::start(vec![ToolCall::exec_and_wait(&command)], "done").await?;
    let harness = Harness {
        registry_url: relay.url().to_owned(),
        environment: "box".to_owned(),
        bearer: relay.token("orchestrator").await?,
    };
    let restart = async {
        exists(&file("started")).await?;
        relay.process().signal(rustix::process::Signal::TERM)?;
        let status = relay.process().wait(TIMEOUT).await?;
        anyhow::ensure!(status.success(), "the relay left with {status}");
        relay.start_again().await?;
        executor.connected(2, TIMEOUT).await?;
        // the harness has resumed its session
        executor.accepted(2, TIMEOUT).await?;
        std::fs::write(file("finish"), "")?;
        anyhow::Ok(())
    };
    let turn = codex_exec::run(&harness, &model, Path::new("/"), "go", TIMEOUT);
    let (turn, restarted) = tokio::join!(turn, restart);
    restarted?;
    assert_eq!(turn?.message(), Some("done"));
    let outputs = model.outputs();
    assert_eq!(outputs.len(), 1, "{outputs:?}");
    assert_eq!(outputs[0].exit_code(), Some(7), "{:?}", outputs[0]);
    let printed = outputs[0].printed().unwrap_or_default();
    let lines: Vec<&str> = printed.lines().collect();
    let count = lines.len() - 1;
    let all = (1..=count).map(|n| format!("line-{n}")).chain([format!("last-line-was-{count}")]);
    assert!(lines.iter().copied().eq(all), "{printed}");
    Ok(())
}

async fn exists(path: &Path) -> Result<()> {
    wait_until(TIMEOUT, &path.display().to_string(), || path.exists()).await
}
