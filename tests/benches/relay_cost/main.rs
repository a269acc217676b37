//! What a relay costs: CPU time per GB that it forwards between 256 pairs of
//! connections, CPU time per connection that it opens, and memory. Beside Rendez, in
//! the same run: a websocket relay of a few lines on axum, and haproxy in TCP mode.
//!
//! ```sh
//! cargo build --release -p rendez
//! cargo bench -p rendez-tests --bench relay_cost       # needs haproxy and taskset
//! cargo bench -p rendez-tests --bench relay_cost -- 64 # megabytes a run
//! ```
//!
//! Relays run on one core and the load on another. Compare the ratios of one run:
//! absolute figures depend on the machine. Frames go from orchestrators to executors,
//! where a full relay slows their senders down and resets no stream.

mod bare;
mod load;
mod peers;

use anyhow::{Context as _, Result};
use rendez_tests::process::Process;
use rendez_tests::process::usage::pin;

use crate::peers::{Peer, RELAYS};

const PAIRS: usize = 256;
/// Bytes of one frame.
const SIZES: [usize; 3] = [1024, 16 * 1024, 60 * 1024];
/// Megabytes that all pairs forward together in one run.
const MEGABYTES: usize = 512;
/// Each figure is the median of so many runs, which alternate between the relays.
const ROUNDS: usize = 5;
/// Connections that are opened one after another to measure their cost.
const OPENED: usize = 2_000;
/// The cores of the relays and of the load.
const RELAY_CORE: &str = "0";
const LOAD_CORE: &str = "1";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, address] = words.as_slice()
        && mode == bare::MODE
    {
        return bare::run(address);
    }
    // The runtime's threads inherit the core.
    pin(std::process::id(), LOAD_CORE)?;
    let megabytes = words.iter().find_map(|word| word.parse().ok()).unwrap_or(MEGABYTES);
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(megabytes))
}

async fn measure(megabytes: usize) -> Result<()> {
    println!("CPU seconds per GB, {PAIRS} pairs, median of {ROUNDS} runs of {megabytes} MB");
    print_line("bytes of a frame", &RELAYS.map(|relay| relay.name().to_owned()));
    let mut resident = RELAYS.map(|_| 0);
    for size in SIZES {
        let mut costs = RELAYS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (n, relay) in RELAYS.into_iter().enumerate() {
                let run = forward(relay, size, megabytes * 1_000_000).await?;
                costs[n].push(run.cpu_per_gb);
                resident[n] = resident[n].max(run.resident_kib);
            }
        }
        let costs = costs.map(median);
        print_line(&size.to_string(), &costs.map(|cost| format!("{cost:.3}")));
    }
    print_line("peak RSS, MB", &resident.map(|kib| format!("{:.0}", kib as f64 / 1e3)));
    println!("\nCPU microseconds per connection, {OPENED} opened one after another");
    let mut opened = RELAYS.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (n, relay) in RELAYS.into_iter().enumerate() {
            opened[n].push(open(relay).await?);
        }
    }
    print_line("", &opened.map(median).map(|cost| format!("{cost:.0}")));
    Ok(())
}

struct Run {
    cpu_per_gb: f64,
    resident_kib: u64,
}

/// Forwards `total` bytes in frames of `size`.
async fn forward(relay: peers::Relay, size: usize, total: usize) -> Result<Run> {
    let mut peer = Peer::start(relay, PAIRS).await?;
    let pairs = peer.pairs(PAIRS).await?;
    let before = peer.cpu()?;
    let bytes = load::run(pairs, size, total / PAIRS).await?;
    let cpu = peer.cpu()? - before;
    Ok(Run { cpu_per_gb: cpu * 1e9 / bytes as f64, resident_kib: peer.peak_memory_kib()? })
}

/// Returns the CPU time of the relay for one connection, in microseconds.
async fn open(relay: peers::Relay) -> Result<f64> {
    let mut peer = Peer::start(relay, OPENED).await?;
    let places = peer.places(OPENED).await?;
    let before = peer.cpu()?;
    let mut open = Vec::with_capacity(OPENED);
    for place in places {
        open.push(place.open().await?);
    }
    Ok((peer.cpu()? - before) * 1e6 / OPENED as f64)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn print_line(what: &str, figures: &[String]) {
    print!("  {what:18}");
    for figure in figures {
        print!(" {figure:>12}");
    }
    println!();
}

/// A relay's process on its core.
struct Pinned(Process);

impl Pinned {
    fn new(process: Process) -> Result<Self> {
        let pinned = Self(process);
        pin(pinned.id()?, RELAY_CORE)?;
        Ok(pinned)
    }

    fn id(&self) -> Result<u32> {
        self.0.id().context("the relay has ended")
    }
}
