//! A hundred streams on one executor websocket, one of which is never read: the
//! throughput of the others, and the memory of the three processes.
//!
//! ```sh
//! cargo build --release --bins
//! cargo bench -p rendez-tests --bench fairness
//! ```
//!
//! Rounds with and without the unread stream alternate; compare the ratio of their
//! medians.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rendez_orchestrator::{Client, Command, Environment, Process};
use rendez_tests::process::usage::memory_kib;
use rendez_tests::rendez::{OurAgent, OurRelay};
use tokio::task::JoinSet;

const READERS: usize = 99;
const BYTES_EACH: usize = 16 << 20;
/// Time for an unread stream to fill up and stall.
const FILLED_WITHIN: Duration = Duration::from_millis(500);
const ROUNDS: usize = 5;

#[tokio::main]
async fn main() -> Result<()> {
    let mut relay = OurRelay::start().await?;
    let mut agent = OurAgent::start(relay.url(), "box", &relay.token("executor").await?).await?;
    let client = Client::new(relay.url(), relay.token("orchestrator").await?.into())?;
    let empty = memory(&mut relay, &mut agent)?;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(client.connect(&"box".parse()?).await?);
    }
    let idle = memory(&mut relay, &mut agent)?;

    let (mut quiet, mut stalled) = (Vec::new(), Vec::new());
    let mut held = None;
    round(&readers).await?;
    let used = memory(&mut relay, &mut agent)?;
    for _ in 0..ROUNDS {
        quiet.push(round(&readers).await?);
        let silent = client.connect(&"box".parse()?).await?;
        let unread = start_and_fill(&silent).await?;
        stalled.push(round(&readers).await?);
        held = Some(memory(&mut relay, &mut agent)?);
        drop(unread);
        silent.close().await;
    }
    let [quiet, stalled] = [quiet, stalled].map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    });
    println!("{READERS} readers, median of {ROUNDS} rounds, MiB/s together");
    println!("  no stream stalls          {quiet:8.1}");
    println!("  one more is not read   {stalled:8.1}   ratio {:.3}", stalled / quiet);
    println!("RSS in KiB              relay    agent  orchestrators");
    let line = |what: &str, [relay, agent, own]: [u64; 3]| {
        println!("  {what:18} {relay:8} {agent:8} {own:14}");
    };
    let each = |more: [u64; 3], less: [u64; 3]| {
        [0, 1, 2].map(|n| more[n].saturating_sub(less[n]) / READERS as u64)
    };
    line("no stream", empty);
    line("99 streams idle", idle);
    line("  each", each(idle, empty));
    line("99 were full", used);
    line("  each", each(used, empty));
    line("and one unread", held.context("a round ran")?);
    Ok(())
}

/// Every reader reads `BYTES_EACH`. Returns MiB per second of all together.
async fn round(readers: &[Environment]) -> Result<f64> {
    let mut processes = Vec::new();
    for executor in readers {
        let command = Command::new("head").args(["-c", &BYTES_EACH.to_string(), "/dev/zero"]);
        processes.push(executor.spawn(command).await?);
    }
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for process in processes {
        tasks.spawn(async move {
            let output = process.output().await?;
            anyhow::ensure!(output.stdout.len() == BYTES_EACH, "output is missing");
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    let bytes = (readers.len() * BYTES_EACH) as f64;
    Ok(bytes / f64::from(1 << 20) / start.elapsed().as_secs_f64())
}

/// A process that writes endlessly and whose output is not read.
async fn start_and_fill(executor: &Environment) -> Result<Process> {
    let mut process = executor.spawn(Command::new("cat").arg("/dev/zero")).await?;
    // the first event shows that it runs; it is not read from here on
    process.next().await?;
    tokio::time::sleep(FILLED_WITHIN).await;
    Ok(process)
}

fn memory(relay: &mut OurRelay, agent: &mut OurAgent) -> Result<[u64; 3]> {
    let of = |id: Option<u32>| memory_kib(id.context("the process has ended")?, "VmRSS");
    Ok([of(relay.process().id())?, of(agent.process().id())?, of(Some(std::process::id()))?])
}
