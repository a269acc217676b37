//! A workload under faults, and the properties that must hold.
//!
//! Every byte and every line arrives once and in order, each command starts once and
//! its exit code arrives, a user at a terminal sees messages and a script does not,
//! and no step exceeds its deadline.
//!
//! The figures printed are the time from the end of each fault until data arrives
//! again, and the bytes that the paths carried.

use std::env;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::{interval, timeout};

use super::faults::{ALL, End, Fault};
use super::links::Link;
use super::random::Random;
use super::testbed::Testbed;
use super::workload::{Workload, now_micros};

/// Longest time without progress, and for a flow's end. It exceeds every grace
/// period, so that a loss is reported first.
const STALL: Duration = Duration::from_secs(120);
/// A run that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(1800);
/// One in this many faults does not wait for the previous one to be over.
const OVERLAP_ODDS: u64 = 5;
/// Time between two checks of the progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// The largest median of the recovery times that is accepted on a busy machine, in
/// any build. The documentation of the test states the aim.
const MEDIAN_MAX: Duration = Duration::from_secs(5);

/// The size of a run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Decides the bytes, the kinds of faults and their moments.
    pub seed: u64,
    /// Size of the upload and of the download.
    pub mebibytes: u64,
    /// Number of faults.
    pub faults: usize,
    /// Seconds for which endpoints are frozen; a few seconds by default. Above 60
    /// their websockets are closed meanwhile, above 90 their streams.
    pub freeze_secs: Option<u64>,
}

impl Plan {
    /// This plan, changed by `SEED`, `SURVIVE_MIB`, `SURVIVE_CUTS` and
    /// `SURVIVE_FREEZE_SECS`.
    ///
    /// # Errors
    /// If one of them is not a number.
    pub fn or_from_environment(self) -> Result<Self> {
        Ok(Self {
            seed: number("SEED")?.unwrap_or(self.seed),
            mebibytes: number("SURVIVE_MIB")?.unwrap_or(self.mebibytes),
            faults: number("SURVIVE_CUTS")?.map_or(self.faults, |faults| faults as usize),
            freeze_secs: number("SURVIVE_FREEZE_SECS")?.or(self.freeze_secs),
        })
    }

    /// The faults at sorted fractions of the transfer: every kind once in random
    /// order, and again.
    fn events(self, random: &mut Random) -> Vec<(f64, Fault)> {
        let mut moments: Vec<f64> = (0..self.faults).map(|_| random.fraction()).collect();
        moments.sort_by(f64::total_cmp);
        let mut kinds = Vec::new();
        while kinds.len() < self.faults {
            let mut round = ALL.to_vec();
            while !round.is_empty() && kinds.len() < self.faults {
                let next = random.below(round.len() as u64) as usize;
                kinds.push(round.swap_remove(next));
            }
        }
        moments.into_iter().zip(kinds).collect()
    }
}

fn number(variable: &str) -> Result<Option<u64>> {
    let Some(text) = env::var_os(variable) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).with_context(|| format!("{variable} is not a number"))
}

/// Runs the plan. `links` are the links of the executor and of the orchestrators, if
/// they are real.
///
/// # Errors
/// The property that did not hold, with the seed that reproduces it.
pub async fn run_plan(plan: Plan, links: Option<[Link; 2]>) -> Result<()> {
    println!("{plan:?}");
    let expected_losses = timeout(DEADLINE, run(plan, links)).await;
    let expected_losses = expected_losses.unwrap_or_else(|_| bail!("not done after {DEADLINE:?}"));
    expected_losses.with_context(|| format!("SEED={} {plan:?}", plan.seed))
}

async fn run(plan: Plan, links: Option<[Link; 2]>) -> Result<()> {
    let mut random = Random::new(plan.seed);
    let mut testbed = Testbed::start(links).await?;
    let began = Instant::now();
    let workload = Workload::start(&testbed, plan.seed, plan.mebibytes * 1024 * 1024).await?;
    workload.recovered(0, 0, STALL).await.context("before any fault")?;

    let events = plan.events(&mut random);
    let expected_losses =
        events.iter().filter(|(_, fault)| fault.closes_websockets_of(End::Orchestrator)).count();
    let freeze = plan.freeze_secs.map(Duration::from_secs);
    let delays = match fault(&mut testbed, &workload, &mut random, &events, freeze).await {
        Ok(delays) => delays,
        Err(error) => {
            let words = testbed.log_tails();
            return Err(error.context(format!("{}\n{words}", workload.explain().await)));
        }
    };
    let terminal = match workload.finish(STALL).await {
        Ok(terminal) => terminal,
        Err(error) => return Err(error.context(testbed.log_tails())),
    };

    let count = |words: &str| terminal.matches(words).count();
    let (lost, resumed) = (count("connection lost, resuming"), count("resumed"));
    ensure!(
        (expected_losses == 0 || lost > 0) && resumed == lost,
        "{expected_losses} faults; a terminal was expected_losses of {lost} losses, {resumed} resumes: {terminal:?}"
    );
    let carried =
        |path: &super::testbed::NetworkPath| path.proxy.carried() as f64 / f64::from(1 << 20);
    println!(
        "seed {}: {} MiB each path and 200,000 lines in {:.1} s; paths carried {:.1} MiB \
         (executor) and {:.1} MiB (orchestrators); a user saw {lost} losses",
        plan.seed,
        plan.mebibytes,
        began.elapsed().as_secs_f64(),
        carried(&testbed.executor),
        carried(&testbed.orchestrator),
    );
    report(plan, "all faults", delays.iter().map(|(_, delay)| *delay).collect());
    let resumed = delays.iter().filter(|(fault, _)| fault.closes_websockets());
    let median = report(plan, "faults that end websockets", resumed.map(|(_, d)| *d).collect());
    ensure!(median.is_none_or(|median| median <= MEDIAN_MAX), "median {median:?}");
    Ok(())
}

/// Prints how long recovery took, and returns the median.
fn report(plan: Plan, what: &str, mut delays: Vec<Duration>) -> Option<Duration> {
    delays.sort_unstable();
    let (median, longest) = (*delays.get(delays.len() / 2)?, *delays.last()?);
    println!(
        "seed {}: {} {what}: bytes flow again after: median {} ms, longest {} ms",
        plan.seed,
        delays.len(),
        median.as_millis(),
        longest.as_millis()
    );
    Some(median)
}

/// Injects all faults. Returns how long recovery took after each.
async fn fault(
    testbed: &mut Testbed,
    workload: &Workload,
    random: &mut Random,
    events: &[(f64, Fault)],
    freeze: Option<Duration>,
) -> Result<Vec<(Fault, Duration)>> {
    let mut delays = Vec::new();
    let mut overlapping = false;
    for (index, (moment, fault)) in events.iter().enumerate() {
        // Flows may run ahead of the slowest one, but not up to the next fault.
        let next = events.get(index + 1).map_or(1.0, |(next, _)| *next);
        workload.open(moment + (next - moment) / 2.0);
        if !overlapping {
            let progress = progress(workload, *moment).await;
            progress.with_context(|| format!("before fault {index}, {fault:?}"))?;
        }
        let began = now_micros();
        let times = fault.inject(testbed, workload, random, freeze).await?;
        let away = Duration::from_micros(times.ended - began);
        // Some faults hit streams that have just begun to resume.
        if random.below(OVERLAP_ODDS) == 0 && index + 1 < events.len() {
            println!("fault {index:2} at {:4.1} %: {fault:?}, and at once:", moment * 100.0);
            overlapping = true;
            continue;
        }
        overlapping = false;
        let delay = workload
            .recovered(times.began, times.ended, STALL)
            .await
            .with_context(|| format!("fault {index}, {fault:?}"))?;
        println!(
            "fault {index:2} at {:4.1} %: {fault:?}, {} ms; workload again after {} ms",
            moment * 100.0,
            away.as_millis(),
            delay.as_millis()
        );
        delays.push((*fault, delay));
    }
    Ok(delays)
}

/// Waits until every flow has passed `fraction`.
async fn progress(workload: &Workload, fraction: f64) -> Result<()> {
    let mut look = interval(LOOK_INTERVAL);
    let (mut before, mut since) = (workload.passed(), [Instant::now(); 3]);
    loop {
        let passed = workload.passed();
        if passed.iter().all(|passed| *passed >= fraction) {
            return Ok(());
        }
        ensure!(!workload.any_ended(), "a flow has ended too early");
        for flow in 0..passed.len() {
            if passed[flow] > before[flow] || passed[flow] >= fraction {
                since[flow] = Instant::now();
            }
        }
        before = passed;
        let stalled = since.iter().any(|since| since.elapsed() >= STALL);
        ensure!(!stalled, "no progress for {STALL:?} towards {fraction}: {passed:?}");
        look.tick().await;
    }
}
