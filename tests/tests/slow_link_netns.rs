//! Commands over a slow link that another stream fills: what they take on a stream
//! beside it, and on a websocket of their own over the same link.
//!
//! ```sh
//! cargo build -p rendez
//! cargo test -p rendez-tests --test slow_link_netns --no-run
//! tests/netns.sh cargo test --offline -p rendez-tests --test slow_link_netns -- --nocapture
//! ```
//!
//! The link limits what the agents send. The aims, of medians on an idle machine: at
//! 10 Mbit/s, a command on an open stream takes at most 150 ms more than on a websocket
//! of its own; at 1 Mbit/s, a command on a new stream takes at most 1.5 times as long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rendez_orchestrator::{Client, Command, Environment, Process, ProcessEvent};
use rendez_tests::poll::poll;
use rendez_tests::process::workspace_binary;
use rendez_tests::rendez::{OurAgent, OurRelay, TIMEOUT};
use rendez_tests::survive::links::Link;
use tempfile::TempDir;

/// Commands of each kind.
const ROUNDS: usize = 7;
/// Seconds of output before the first command: the queues are full, and the rate known.
const FILLED_SECS: u64 = 3;
/// The most that a command may take longer beside another stream, on a busy machine and
/// in any build. The documentation of the test states the aims.
const DELAY_MAX: Duration = Duration::from_millis(1500);

struct Case {
    rate: &'static str,
    bytes_per_second: u64,
    queue: Duration,
}

/// What a command takes: medians.
#[derive(Debug)]
struct Times {
    /// Beside the stream that fills the link, on the same websocket of an agent.
    beside: Duration,
    /// On a websocket of its own.
    own: Duration,
}

struct Figures {
    on_open_stream: Times,
    on_new_stream: Times,
    /// Output of the stream that fills the link, in bytes per second. It crosses the link
    /// as base64, with a third more bytes.
    bulk_rate: f64,
}

#[tokio::test]
async fn commands_do_not_wait_behind_other_streams() -> Result<()> {
    let cases = [
        Case { rate: "10mbit", bytes_per_second: 1_250_000, queue: Duration::from_millis(50) },
        Case { rate: "1mbit", bytes_per_second: 125_000, queue: Duration::from_millis(300) },
    ];
    for (number, case) in cases.iter().enumerate() {
        let figures = measure(number as u8, case).await?;
        println!("{} with {:?} of queue:", case.rate, case.queue);
        for (stream, times) in
            [("an open", &figures.on_open_stream), ("a new", &figures.on_new_stream)]
        {
            println!("  a command on {stream} stream: {times:.0?}");
            let more = times.beside.saturating_sub(times.own);
            ensure!(more <= DELAY_MAX, "{}, {stream} stream: {times:?}", case.rate);
        }
        println!("  the other stream: {:.0} kB/s", figures.bulk_rate / 1000.0);
    }
    Ok(())
}

async fn measure(number: u8, case: &Case) -> Result<Figures> {
    let link = Link::start(number).await?;
    link.limit(case.rate, case.queue).await?;
    let relay = OurRelay::start_at(&format!("{}:0", link.address()), &[] as &[&str]).await?;
    let token = relay.token("executor").await?;
    let state = TempDir::new()?;
    let mut agents = Vec::new();
    for name in ["slow", "own"] {
        let mut agent = link.enter(workspace_binary("rendez")?)?;
        agent
            .args(["agent", "--environment", name, "--relay", relay.url(), "--log", "info"])
            .arg("--state")
            .arg(state.path().join(name))
            .env("RENDEZ_TOKEN", &token);
        agents.push(OurAgent::start_by(agent).await?);
    }
    let client = Client::new(relay.url(), relay.token("orchestrator").await?.into())?;
    let (slow, own) = ("slow".parse()?, "own".parse()?);
    let open = [client.connect(&slow).await?, client.connect(&own).await?];
    for environment in &open {
        run_command(environment).await?;
    }

    let bulk = client.connect(&slow).await?;
    let process = bulk.spawn(Command::new("cat").arg("/dev/zero")).await?;
    let received = Arc::new(AtomicU64::new(0));
    let reader = tokio::spawn(drain(process, received.clone()));
    let filled = FILLED_SECS * case.bytes_per_second / 2;
    poll(TIMEOUT, async || {
        let received = received.load(Ordering::Relaxed);
        Ok((received >= filled).then_some(()).ok_or(format!("{received} of {filled} bytes")))
    })
    .await?;

    let (began, before) = (Instant::now(), received.load(Ordering::Relaxed));
    let mut times: [[Vec<Duration>; 2]; 2] = Default::default();
    for _ in 0..ROUNDS {
        for (n, environment) in [&slow, &own].into_iter().enumerate() {
            let began = Instant::now();
            run_command(&open[n]).await?;
            times[0][n].push(began.elapsed());
            let began = Instant::now();
            let new = client.connect(environment).await?;
            run_command(&new).await?;
            times[1][n].push(began.elapsed());
            new.close().await;
        }
    }
    ensure!(!reader.is_finished(), "the other stream ended");
    let bulk = received.load(Ordering::Relaxed) - before;
    let bulk_rate = bulk as f64 / began.elapsed().as_secs_f64();
    reader.abort();
    let [on_open_stream, on_new_stream] = times.map(|times| {
        let [beside, own] = times.map(median);
        Times { beside, own }
    });
    Ok(Figures { on_open_stream, on_new_stream, bulk_rate })
}

/// Reads all that a process writes.
async fn drain(mut process: Process, received: Arc<AtomicU64>) -> Result<()> {
    while let Some(event) = process.next().await? {
        if let ProcessEvent::Stdout(chunk) = event {
            received.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn run_command(environment: &Environment) -> Result<()> {
    let output = environment.spawn(Command::new("echo").arg("x")).await?.output().await?;
    ensure!(output.stdout == b"x\n", "{output:?}");
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
