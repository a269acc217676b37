//! Faults of a path, one at a time.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tokio::time::sleep;

use super::links::LinkDown;
use super::proxy::Side;
use super::random::Random;
use super::testbed::{NetworkPath, Testbed};
use super::workload::{Workload, now_micros};

/// The duration of an outage.
const OUTAGE: Duration = Duration::from_secs(10);

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The relay is killed with SIGKILL, and restarted soon.
    KillRelay,
    /// The relay is ended with SIGTERM, and restarted soon.
    StopRelay,
    /// Every connection of an endpoint is reset.
    Reset(End),
    /// Every connection of an endpoint ends in one direction.
    HalfClose(End, Side),
    /// No data passes for some seconds.
    Stall(End),
    /// An endpoint has no network for ten seconds.
    Outage(End),
    /// An endpoint's processes are stopped for some seconds, as in a sleeping
    /// laptop.
    Freeze(End),
}

/// The endpoint that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The agent.
    Executor,
    /// Every `rendez exec`.
    Orchestrator,
}

/// Every kind of fault, at either end.
pub const ALL: [Fault; 14] = [
    Fault::KillRelay,
    Fault::Reset(End::Executor),
    Fault::Outage(End::Executor),
    Fault::HalfClose(End::Orchestrator, Side::Endpoint),
    Fault::Freeze(End::Executor),
    Fault::StopRelay,
    Fault::Reset(End::Orchestrator),
    Fault::Stall(End::Executor),
    Fault::HalfClose(End::Executor, Side::Relay),
    Fault::Outage(End::Orchestrator),
    Fault::HalfClose(End::Executor, Side::Endpoint),
    Fault::Stall(End::Orchestrator),
    Fault::Freeze(End::Orchestrator),
    Fault::HalfClose(End::Orchestrator, Side::Relay),
];

/// The time of a fault, in microseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Its start. Earlier output may have passed already.
    pub began: u64,
    /// Its end. The path works from here on.
    pub ended: u64,
}

impl Fault {
    /// Whether it certainly closes this end's websockets.
    pub fn closes_websockets_of(self, end: End) -> bool {
        match self {
            Fault::KillRelay | Fault::StopRelay => true,
            Fault::Reset(hit) | Fault::HalfClose(hit, _) => hit == end,
            Fault::Stall(_) | Fault::Outage(_) | Fault::Freeze(_) => false,
        }
    }

    /// Whether it closes the websockets of an end, which then has to resume.
    pub fn closes_websockets(self) -> bool {
        [End::Executor, End::Orchestrator].iter().any(|end| self.closes_websockets_of(*end))
    }

    /// Injects the fault. The path works again when this returns. A freeze lasts for
    /// `freeze`, or else for some seconds.
    ///
    /// # Errors
    /// If the relay did not stop or start, or a process has ended.
    pub async fn inject(
        self,
        testbed: &mut Testbed,
        workload: &Workload,
        random: &mut Random,
        freeze: Option<Duration>,
    ) -> Result<Times> {
        let began = now_micros();
        match self {
            Fault::KillRelay => restart(testbed, Signal::KILL, random).await?,
            Fault::StopRelay => restart(testbed, Signal::TERM, random).await?,
            Fault::Reset(end) => testbed.network_path(end).proxy.reset_all(),
            Fault::HalfClose(end, towards) => testbed.network_path(end).proxy.half_close(towards),
            Fault::Stall(end) => {
                testbed.network_path(end).proxy.set_stalled(true);
                sleep(some_seconds(random)).await;
                testbed.network_path(end).proxy.set_stalled(false);
            }
            Fault::Outage(end) => {
                let how = [LinkDown::Silent, LinkDown::Inside, LinkDown::Outside]
                    [random.below(3) as usize];
                outage(testbed.network_path(end), Some(how)).await?;
                sleep(OUTAGE).await;
                outage(testbed.network_path(end), None).await?;
            }
            Fault::Freeze(End::Executor) => {
                testbed.agent.process().signal(Signal::STOP)?;
                sleep(freeze.unwrap_or_else(|| some_seconds(random))).await;
                testbed.agent.process().signal(Signal::CONT)?;
            }
            Fault::Freeze(End::Orchestrator) => {
                workload.signal(Signal::STOP)?;
                sleep(freeze.unwrap_or_else(|| some_seconds(random))).await;
                workload.signal(Signal::CONT)?;
            }
        }
        Ok(Times { began, ended: now_micros() })
    }
}

impl Testbed {
    fn network_path(&self, end: End) -> &NetworkPath {
        match end {
            End::Executor => &self.executor,
            End::Orchestrator => &self.orchestrator,
        }
    }
}

async fn restart(testbed: &mut Testbed, signal: Signal, random: &mut Random) -> Result<()> {
    testbed.stop_relay(signal).await?;
    sleep(Duration::from_millis(random.below(2000))).await;
    testbed.start_relay().await
}

/// Starts an outage, or ends it.
async fn outage(path: &NetworkPath, away: Option<LinkDown>) -> Result<()> {
    match &path.link {
        Some(link) => {
            println!("a real link: {away:?}");
            link.set(away).await
        }
        None => {
            path.proxy.set_stalled(away.is_some());
            Ok(())
        }
    }
}

/// One to five seconds.
fn some_seconds(random: &mut Random) -> Duration {
    Duration::from_millis(1000 + random.below(4000))
}
