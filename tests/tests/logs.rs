//! Logs cost nothing on the frame path while they are off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use anyhow::{Result, ensure};
use rendez_program::logging::{LogFormat, LogLevel, start_with};
use rendez_tests::relay::{TestRelay, Witness};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Round trips at each level.
const ROUND_TRIPS: usize = 50;

/// Counts the events that the subscriber is asked about. It wants none of them, so it
/// does not raise the level itself, and no answer about it is cached.
#[derive(Default, Clone)]
struct Counter(Arc<Counts>);

#[derive(Default)]
struct Counts {
    /// Events of our crates.
    ours: AtomicUsize,
    /// Events of libraries, those of the `log` facade included.
    libraries: AtomicUsize,
}

impl<S: Subscriber> Layer<S> for Counter {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::OFF)
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("rendez");
        let count = if ours { &self.0.ours } else { &self.0.libraries };
        count.fetch_add(1, Relaxed);
        true
    }
}

impl Counter {
    /// Events of our crates and of libraries during some round trips through a relay.
    async fn during_round_trips(&self, witness: &mut Witness) -> Result<(usize, usize)> {
        let counts = || (self.0.ours.load(Relaxed), self.0.libraries.load(Relaxed));
        let before = counts();
        for _ in 0..ROUND_TRIPS {
            witness.exchange().await?;
        }
        let after = counts();
        Ok((after.0 - before.0, after.1 - before.1))
    }
}

#[tokio::test]
async fn no_frame_reaches_the_log_below_its_level() -> Result<()> {
    let counter = Counter::default();
    let log = start_with(LogLevel::Error, LogFormat::Json, Some(Box::new(counter.clone())));
    let relay = TestRelay::start().await?;
    let mut witness = Witness::start(&relay, "box").await?;
    ensure!(counter.during_round_trips(&mut witness).await? == (0, 0), "at the start");
    for level in [LogLevel::Off, LogLevel::Warn, LogLevel::Info, LogLevel::Debug] {
        log.set_level(level);
        let asked = counter.during_round_trips(&mut witness).await?;
        ensure!(asked == (0, 0), "{asked:?} at {level}");
    }
    // Frames are logged at this level, but libraries must not be: their lines show
    // URLs.
    log.set_level(LogLevel::Trace);
    let (ours, libraries) = counter.during_round_trips(&mut witness).await?;
    ensure!(ours >= 4 * ROUND_TRIPS, "{ours} events of frames at trace");
    ensure!(log::max_level() == log::LevelFilter::Warn, "{}", log::max_level());
    log.set_level(LogLevel::Error);
    let asked = counter.during_round_trips(&mut witness).await?;
    ensure!(asked == (0, 0), "{asked:?} after the reload");
    // The same frames do reach the subscriber if records of libraries are let through.
    log.set_level(LogLevel::Trace);
    log::set_max_level(log::LevelFilter::Trace);
    let (_, open) = counter.during_round_trips(&mut witness).await?;
    ensure!(open > libraries + ROUND_TRIPS, "{open}, {libraries} with the gate");
    Ok(())
}
