//! What happens to a path, one thing at a time.

use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use tokio::time::sleep;

use super::flows::{Flows, now_micros};
use super::links::Away;
use super::noise::Noise;
use super::path::Side;
use super::world::{Way, World};

/// How long a network is away.
const OUTAGE: Duration = Duration::from_secs(10);

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// The relay is killed with SIGKILL, and started again soon.
    KillRelay,
    /// The relay is ended with SIGTERM, and started again soon.
    StopRelay,
    /// Every connection of an endpoint is reset.
    Reset(End),
    /// Every connection of an endpoint ends in one direction.
    HalfClose(End, Side),
    /// Nothing passes for some seconds, then everything goes on.
    Dark(End),
    /// An endpoint has no network for ten seconds.
    Outage(End),
    /// An endpoint's processes stop for some seconds, as in a sleeping laptop.
    Freeze(End),
}

/// Whom it hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The agent.
    Executor,
    /// Every `rendez exec`.
    Orchestrator,
}

/// Every kind of cut, at either end.
pub const ALL: [Cut; 14] = [
    Cut::KillRelay,
    Cut::Reset(End::Executor),
    Cut::Outage(End::Executor),
    Cut::HalfClose(End::Orchestrator, Side::Endpoint),
    Cut::Freeze(End::Executor),
    Cut::StopRelay,
    Cut::Reset(End::Orchestrator),
    Cut::Dark(End::Executor),
    Cut::HalfClose(End::Executor, Side::Relay),
    Cut::Outage(End::Orchestrator),
    Cut::HalfClose(End::Executor, Side::Endpoint),
    Cut::Dark(End::Orchestrator),
    Cut::Freeze(End::Orchestrator),
    Cut::HalfClose(End::Orchestrator, Side::Relay),
];

/// When it happened, in microseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// What was printed before may have passed already.
    pub cut: u64,
    /// From here on the path is whole.
    pub restored: u64,
}

impl Cut {
    /// Whether this end loses its websockets by it, for certain.
    pub fn ends_websockets_of(self, end: End) -> bool {
        match self {
            Cut::KillRelay | Cut::StopRelay => true,
            Cut::Reset(hit) | Cut::HalfClose(hit, _) => hit == end,
            Cut::Dark(_) | Cut::Outage(_) | Cut::Freeze(_) => false,
        }
    }

    /// Whether an end does: then there is something to resume.
    pub fn ends_websockets(self) -> bool {
        [End::Executor, End::Orchestrator].iter().any(|end| self.ends_websockets_of(*end))
    }

    /// Lets it happen. The path is whole when this returns. A freeze lasts
    /// for `freeze`, or else for some seconds.
    ///
    /// # Errors
    /// The relay did not stop or start, or a process is gone.
    pub async fn perform(
        self,
        world: &mut World,
        flows: &Flows,
        noise: &mut Noise,
        freeze: Option<Duration>,
    ) -> Result<Times> {
        let cut = now_micros();
        match self {
            Cut::KillRelay => restart(world, Signal::KILL, noise).await?,
            Cut::StopRelay => restart(world, Signal::TERM, noise).await?,
            Cut::Reset(end) => world.way(end).path.cut(),
            Cut::HalfClose(end, towards) => world.way(end).path.half_close(towards),
            Cut::Dark(end) => {
                world.way(end).path.set_dark(true);
                sleep(some_seconds(noise)).await;
                world.way(end).path.set_dark(false);
            }
            Cut::Outage(end) => {
                let how = [Away::Silent, Away::Inside, Away::Outside][noise.below(3) as usize];
                outage(world.way(end), Some(how)).await?;
                sleep(OUTAGE).await;
                outage(world.way(end), None).await?;
            }
            Cut::Freeze(End::Executor) => {
                world.agent.process().signal(Signal::STOP)?;
                sleep(freeze.unwrap_or_else(|| some_seconds(noise))).await;
                world.agent.process().signal(Signal::CONT)?;
            }
            Cut::Freeze(End::Orchestrator) => {
                flows.signal(Signal::STOP)?;
                sleep(freeze.unwrap_or_else(|| some_seconds(noise))).await;
                flows.signal(Signal::CONT)?;
            }
        }
        Ok(Times { cut, restored: now_micros() })
    }
}

impl World {
    fn way(&self, end: End) -> &Way {
        match end {
            End::Executor => &self.executor,
            End::Orchestrator => &self.orchestrator,
        }
    }
}

async fn restart(world: &mut World, signal: Signal, noise: &mut Noise) -> Result<()> {
    world.stop_relay(signal).await?;
    sleep(Duration::from_millis(noise.below(2000))).await;
    world.start_relay().await
}

/// Takes a network away, or brings it back.
async fn outage(way: &Way, away: Option<Away>) -> Result<()> {
    match &way.link {
        Some(link) => {
            println!("a real link: {away:?}");
            link.set(away).await
        }
        None => {
            way.path.set_dark(away.is_some());
            Ok(())
        }
    }
}

/// One to five.
fn some_seconds(noise: &mut Noise) -> Duration {
    Duration::from_millis(1000 + noise.below(4000))
}
