//! Many seeds on a few threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::{Micros, Report, Violation, run};

/// The results of many worlds.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many ran.
    pub seeds: u64,
    /// Virtual time, all together.
    pub virtual_time: Micros,
    /// Steps, all together.
    pub steps: u64,
    /// Transitions, by name.
    pub transitions: BTreeMap<&'static str, u64>,
    /// Counters, by name.
    pub counters: BTreeMap<&'static str, u64>,
    /// The rules that did not hold, by seed.
    pub violations: Vec<Violation>,
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.virtual_time += report.virtual_time;
        self.steps += report.steps;
        for (name, count) in report.transitions {
            *self.transitions.entry(name).or_default() += count;
        }
        for (name, count) in report.counters {
            *self.counters.entry(name).or_default() += count;
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.virtual_time as f64 / 3.6e9;
        writeln!(f, "{} seeds, {hours:.0} h of virtual time, {} steps", self.seeds, self.steps)?;
        for (what, counts) in [("befell", &self.transitions), ("happened", &self.counters)] {
            let counts: Vec<_> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
            writeln!(f, "{what}: {}", counts.join(", "))?;
        }
        Ok(())
    }
}

/// Runs `seeds` on so many threads, and stops after `stop_after` violations.
/// `progress` is called after each seed with the number of completed ones, from
/// every thread.
pub fn run_many(
    seeds: Range<u64>,
    threads: usize,
    stop_after: usize,
    progress: impl Fn(u64) + Sync,
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || summary.lock().violations.len() >= stop_after {
                        return;
                    }
                    let result = run(seed);
                    let mut summary = summary.lock();
                    summary.seeds += 1;
                    match result {
                        Ok(report) => summary.add(report),
                        Err(violation) => summary.violations.push(*violation),
                    }
                    let done = summary.seeds;
                    drop(summary);
                    progress(done);
                }
            });
        }
    });
    let mut summary = summary.into_inner();
    summary.violations.sort_by_key(|violation| violation.seed);
    summary
}
