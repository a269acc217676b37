//! Runs 3,000 worlds, and checks that a world follows from its seed.
//!
//! `SEED=n cargo test -p rendez-sim --test seeds -- --nocapture` replays one
//! world with its log; `SEEDS=n` runs another number of them.

use std::env::var;

use rendez_sim::batch::{Summary, run_many};
use rendez_sim::run_with_log;

/// Worlds of a test run.
const SEEDS: u64 = 3_000;
/// Threads over seeds.
const THREADS: usize = 2;
/// Lines of a log that are shown when a rule did not hold.
const TAIL: usize = 60;

fn number(name: &str) -> Option<u64> {
    var(name).ok().map(|text| text.parse().expect("SEED and SEEDS are numbers"))
}

/// Prints a world's log, or its end, and fails if a rule did not hold.
fn replay(seed: u64, lines: usize) {
    let (result, log) = run_with_log(seed);
    for line in &log[log.len().saturating_sub(lines)..] {
        println!("{line}");
    }
    match result {
        Ok(report) => println!("{report:#?}"),
        Err(violation) => panic!("{violation}"),
    }
}

#[test]
fn every_seed_keeps_the_rules() {
    if let Some(seed) = number("SEED") {
        return replay(seed, usize::MAX);
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let summary = run_many(0..seeds, THREADS, 5, |_| {});
    print!("{summary}");
    for violation in &summary.violations {
        println!("{violation}");
    }
    if let Some(first) = summary.violations.first() {
        replay(first.seed, TAIL);
    }
    if seeds >= SEEDS {
        assert_worlds_had_enough_faults(&summary);
    }
}

/// Rules prove nothing in worlds without faults.
fn assert_worlds_had_enough_faults(summary: &Summary) {
    let transitions = |name| summary.transitions.get(name).copied().unwrap_or(0);
    for name in [
        "drop",
        "duplicate",
        "reorder",
        "forge",
        "replay",
        "splice",
        "inject",
        "cut executor",
        "cut orchestrator",
        "stall",
        "restart relay",
        "lose registry",
        "restart executor",
        "usurp",
        "pause",
        "slow reader",
        "jump clock",
    ] {
        assert!(transitions(name) >= 100, "{name}: only {} transitions", transitions(name));
    }
    let counted = |name| summary.counters.get(name).copied().unwrap_or(0);
    for (name, times) in [
        ("conversations complete", 4_000),
        ("conversations unknown", 100),
        ("ended: lost", 200),
        ("ended: unknown stream", 200),
        ("hints", 500),
        ("hostile frames", 3_000),
        ("replays", 10_000),
        ("intrusions", 1_000),
        ("refused control", 1_000),
        ("refused records", 300),
        ("duplicates", 3_000),
        ("retransmits", 5_000),
        ("bytes delivered", 1_000_000_000),
    ] {
        assert!(counted(name) >= times, "{name}: only {}", counted(name));
    }
}

#[test]
fn same_seed_gives_the_same_log() {
    for seed in [3, 17, 40, 101, 310, 1425] {
        let [first, second] = [run_with_log(seed).1, run_with_log(seed).1];
        assert!(!first.is_empty());
        let differs = first.iter().zip(&second).position(|(one, other)| one != other);
        if let Some(line) = differs {
            panic!("seed {seed} gave two different logs:\n{}\n{}", first[line], second[line]);
        }
        assert_eq!(first.len(), second.len(), "seed {seed} gave logs of different lengths");
    }
}
