//! Runs the worlds of many seeds:
//! `rendez-sim --seeds 1000000 [--from N] [--threads N]`, or of one seed with its
//! log: `rendez-sim --replay SEED`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use rendez_sim::batch::run_many;
use rendez_sim::run_with_log;

/// Violations after which a long run stops.
const STOP_AFTER: usize = 10;
/// Seeds between two progress lines.
const PROGRESS: u64 = 10_000;

const USAGE: &str = "usage: rendez-sim [--seeds N] [--from N] [--threads N] | --replay SEED";

fn main() -> ExitCode {
    match arguments() {
        Some(Arguments { replay: Some(seed), .. }) => replay(seed),
        Some(arguments) => many(&arguments),
        None => {
            eprintln!("{USAGE}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    seeds: u64,
    from: u64,
    threads: usize,
    replay: Option<u64>,
}

fn arguments() -> Option<Arguments> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parsed = Arguments { seeds: 2_000, from: 0, threads, replay: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value: u64 = words.next()?.parse().ok()?;
        match word.as_str() {
            "--seeds" => parsed.seeds = value,
            "--from" => parsed.from = value,
            "--threads" => parsed.threads = usize::try_from(value).ok()?.max(1),
            "--replay" => parsed.replay = Some(value),
            _ => return None,
        }
    }
    Some(parsed)
}

fn replay(seed: u64) -> ExitCode {
    let (result, log) = run_with_log(seed);
    for line in log {
        println!("{line}");
    }
    match result {
        Ok(report) => {
            println!("{report:#?}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            println!("{violation}");
            ExitCode::FAILURE
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let Arguments { seeds, from, threads, .. } = *arguments;
    // panics are caught and reported with their seed
    std::panic::set_hook(Box::new(|_| {}));
    let reported = AtomicU64::new(0);
    let summary = run_many(from..from + seeds, threads, STOP_AFTER, |done| {
        if done % PROGRESS == 0 && reported.fetch_max(done, Ordering::Relaxed) < done {
            println!("{done} of {seeds}");
        }
    });
    print!("{summary}");
    for violation in &summary.violations {
        println!("{violation}");
    }
    if summary.violations.is_empty() {
        println!("every rule held");
        ExitCode::SUCCESS
    } else {
        println!("see one: cargo run --release -p rendez-sim -- --replay SEED");
        ExitCode::FAILURE
    }
}
