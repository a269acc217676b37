//! The whole system on virtual time: executors and orchestrators (the real
//! [`Mux`](rendez_endpoint::Mux)), the real [`Hub`](rendez_relay_core::Hub)
//! between them, a model of the registry, a faulty network and a hostile relay.
//! One seed gives one world, always the same.
//!
//! ```text
//!  application ── shell ── Mux ══ websocket ══ hostile layer ── Hub ── ... Mux ── shell ── application
//!   (apps.rs)  (shell.rs)         (pipe.rs)      (attack.rs)   (relay.rs)
//!                   └────────────── registry.rs ──────────────┘
//! ```
//!
//! | module | stands for |
//! | --- | --- |
//! | [`plan`] | the script of a seed: nodes, conversations, [`Transition`]s |
//! | `world` | virtual time, the agenda, and the phases of a run |
//! | `net` | the pumps at both ends of each websocket (`transport`) |
//! | `shell` | `executor-agent/src/agent/lifecycle.rs` and `orchestrator/src/reconnect.rs` |
//! | `apps`, `orchestrator_app`, `executor_app` | sessions, numbered output, requests that are repeated by their number |
//! | `attack` | attacks of a hostile relay on frames |
//! | `faults` | cuts, restarts, pauses and clocks |
//! | [`rules`] | the reference: the rules for every step and for the end |
//!
//! `tests/seeds.rs` runs seeds and replays one (`SEED=n`); the program of this
//! package runs any number of them. See README.md.

mod apps;
mod attack;
pub mod batch;
mod executor_app;
mod faults;
mod log;
mod message;
mod net;
mod node;
mod orchestrator_app;
mod pipe;
pub mod plan;
mod registry;
mod relay;
mod rng;
pub mod rules;
mod setup;
mod shell;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use plan::Transition;
pub use rules::Rule;
use world::World;

/// Virtual time in microseconds since a world's beginning.
pub type Micros = u64;

pub(crate) const MS: Micros = 1_000;
pub(crate) const SEC: Micros = 1_000_000;

/// How a world ended.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The virtual time that passed.
    pub virtual_time: Micros,
    /// Steps of the world.
    pub steps: u64,
    /// Transitions, by name.
    pub transitions: BTreeMap<&'static str, u64>,
    /// Counters, by name, so that a test can check that its worlds had enough
    /// faults.
    pub counters: BTreeMap<&'static str, u64>,
}

/// A rule that did not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The seed.
    pub seed: u64,
    /// The rule.
    pub rule: Rule,
    /// The virtual time.
    pub at: Micros,
    /// The observation.
    pub detail: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Violation { seed, rule, at, detail } = self;
        write!(f, "SEED={seed} violates {rule:?} at {:.6} s: {detail}", *at as f64 / 1e6)
    }
}

/// Runs the world of a seed.
///
/// # Errors
/// The rule that did not hold.
pub fn run(seed: u64) -> Result<Report, Box<Violation>> {
    run_logged(seed, false).0
}

/// Runs the world of a seed and returns its log, whatever happened.
pub fn run_with_log(seed: u64) -> (Result<Report, Box<Violation>>, Vec<String>) {
    run_logged(seed, true)
}

fn run_logged(seed: u64, kept: bool) -> (Result<Report, Box<Violation>>, Vec<String>) {
    let mut world = World::new(seed, kept);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let result = match ran {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_default();
            Err(Box::new(Violation { seed, rule: Rule::NoPanic, at: world.now(), detail: text }))
        }
    };
    (result, world.take_log())
}
