//! Our agent and the stock Codex executor behind the same relay, in turns.
//!
//! ```sh
//! cargo build --release --bins && tests/stock/install.sh
//! cargo bench -p rendez-tests --bench against_stock --no-run
//! tests/netns.sh cargo bench -p rendez-tests --bench against_stock --offline
//! ```
//!
//! Prints medians and the ratio of the two. Absolute figures depend on the machine;
//! compare the ratios.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rendez_orchestrator::{Client, Command, Environment, EnvironmentId};
use rendez_tests::process::usage::memory_kib;
use rendez_tests::relay::TestRelay;
use rendez_tests::rendez::{OurAgent, TIMEOUT, exec};
use rendez_tests::stock::executor::StockExecutor;

const STARTS: usize = 15;
const CONNECTS: usize = 60;
const RUNS: usize = 200;
const COLD_RUNS: usize = 30;
const OURS: &str = "ours";
const STOCK: &str = "stock";

#[tokio::main]
async fn main() -> Result<()> {
    let relay = TestRelay::start().await?;
    println!("{:44} {:>10} {:>10} {:>8}", "median", "ours", "stock", "ratio");
    starts(&relay).await?;

    let mut ours = OurAgent::start(relay.base(), OURS, relay.executor_token()).await?;
    let mut stock = StockExecutor::start(relay.base(), STOCK, relay.executor_token()).await?;
    stock.connected(1, TIMEOUT).await?;
    let memory = |id: Option<u32>, field| memory_kib(id.context("the process has ended")?, field);
    let processes = [ours.process().id(), stock.process().id()];
    let idle = processes.map(|id| memory(id, "VmRSS"));
    let anonymous = processes.map(|id| memory(id, "RssAnon"));

    let client = Client::new(relay.base(), relay.orchestrator_token().to_owned().into())?;
    let ids: [EnvironmentId; 2] = [OURS.parse()?, STOCK.parse()?];
    connects(&client, &ids).await?;
    let executors = [client.connect(&ids[0]).await?, client.connect(&ids[1]).await?];
    pings(&executors).await?;
    warm_runs(&executors).await?;
    cold_runs(&relay).await?;
    file(&executors).await?;

    let [ours_idle, stock_idle] = idle;
    size("idle RSS, KiB", ours_idle?, stock_idle?);
    let [ours_anonymous, stock_anonymous] = anonymous;
    size("idle anonymous memory, KiB", ours_anonymous?, stock_anonymous?);
    Ok(())
}

/// From the start of the process until orchestrators can reach it.
async fn starts(relay: &TestRelay) -> Result<()> {
    let (mut ours, mut stock) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let start = Instant::now();
        let agent = OurAgent::start(relay.base(), OURS, relay.executor_token()).await?;
        ours.push(start.elapsed());
        drop(agent);
        let start = Instant::now();
        let executor = StockExecutor::start(relay.base(), STOCK, relay.executor_token()).await?;
        executor.connected(1, TIMEOUT).await?;
        stock.push(start.elapsed());
    }
    report("process start to connected", ours, stock);
    Ok(())
}

/// Registry, websocket, handshake with its validation, session.
async fn connects(client: &Client, ids: &[EnvironmentId; 2]) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..CONNECTS {
        for (id, times) in ids.iter().zip(&mut times) {
            let start = Instant::now();
            let executor = client.connect(id).await?;
            times.push(start.elapsed());
            executor.close().await;
        }
    }
    let [ours, stock] = times;
    report("connect: ticket, websocket, Noise, session", ours, stock);
    Ok(())
}

async fn pings(executors: &[Environment; 2]) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (executor, times) in executors.iter().zip(&mut times) {
            let start = Instant::now();
            executor.ping().await?;
            times.push(start.elapsed());
        }
    }
    let [ours, stock] = times;
    report("environment/status round trip", ours, stock);
    Ok(())
}

/// `true` on an open connection, from the call to the last event.
async fn warm_runs(executors: &[Environment; 2]) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..RUNS {
        for (executor, times) in executors.iter().zip(&mut times) {
            let start = Instant::now();
            executor.spawn(Command::new("/bin/true")).await?.wait().await?;
            times.push(start.elapsed());
        }
    }
    let [ours, stock] = times;
    report("warm `true`, start to closed", ours, stock);
    Ok(())
}

/// `rendez exec ENV -- true`, the whole process.
async fn cold_runs(relay: &TestRelay) -> Result<()> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..COLD_RUNS {
        for (id, times) in [OURS, STOCK].into_iter().zip(&mut times) {
            let start = Instant::now();
            let output = exec(relay.base(), relay.orchestrator_token(), id, &["/bin/true"]).await?;
            times.push(start.elapsed());
            anyhow::ensure!(output.status.success(), "{}", output.stderr_text());
        }
    }
    let [ours, stock] = times;
    report("cold `rendez exec ENV -- true`", ours, stock);
    Ok(())
}

/// One file of 32 MiB by `fs/readFile`.
async fn file(executors: &[Environment; 2]) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), vec![7; 32 << 20])?;
    let path = file.path().to_str().context("a temporary path is text")?;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        for (executor, times) in executors.iter().zip(&mut times) {
            let start = Instant::now();
            executor.files().read(path).await?;
            times.push(start.elapsed());
        }
    }
    let [ours, stock] = times;
    report("fs/readFile of 32 MiB", ours, stock);
    Ok(())
}

fn report(what: &str, ours: Vec<Duration>, stock: Vec<Duration>) {
    let [ours, stock] = [ours, stock].map(|mut times| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e3
    });
    println!("{what:44} {ours:>7.2} ms {stock:>7.2} ms {:>8.2}", ours / stock);
}

fn size(what: &str, ours: u64, stock: u64) {
    println!("{what:44} {ours:>10} {stock:>10} {:>8.2}", ours as f64 / stock as f64);
}
