//! Leaving without losing work.
//!
//! ```text
//! SIGTERM ─► announced: /readyz says no, everything else goes on
//!    drain.announce ─► closed: no new connections, nobody waits for an executor
//!                      that is away, websockets sent away in batches, requests
//!                      in progress answered
//!    all gone, drain.deadline, or a second SIGTERM ─► the end
//! ```
//!
//! An environment goes as a whole: an executor without its orchestrators is of
//! no use to anybody. Our own ends are told in the close frame within which
//! span to come back, and resume every stream; stock ones come back by
//! themselves, on the same ticket (WIRE.md, section 2), because nothing here
//! answers them with 4xx.

use std::sync::Arc;
use std::time::Duration;

use rendez_proto::close::CloseFrame;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::connections::{ConnectionTable, SharedHub};

/// Mean pause between two batches of environments that are sent away.
const BATCH_PAUSE: Duration = Duration::from_millis(100);
/// How often the log says what is still waited for.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// What of the deadline batches may use: the rest is for closing.
const BATCHES_SHARE: u32 = 2;

/// When and how fast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) announce: Duration,
    pub(crate) deadline: Duration,
    reconnects_per_second: usize,
}

impl Pace {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            announce: config.drain_announce.min(config.drain_deadline),
            deadline: config.drain_deadline,
            reconnects_per_second: config.drain_reconnects_per_second.max(1),
        }
    }

    /// Over which time so many websockets come back.
    fn span(&self, websockets: usize) -> Duration {
        let millis = websockets.saturating_mul(1000) / self.reconnects_per_second;
        let span = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        // A few need no spreading.
        if span < BATCH_PAUSE { Duration::ZERO } else { span }
    }

    /// How many batches `hubs` are sent away in.
    fn batches(&self, websockets: usize, hubs: usize) -> usize {
        let over = self.span(websockets).min(self.deadline / BATCHES_SHARE);
        let batches = over.as_millis() / BATCH_PAUSE.as_millis();
        usize::try_from(batches).unwrap_or(usize::MAX).clamp(1, hubs.max(1))
    }
}

/// Sends everybody away and waits until they are gone, until `deadline`, or
/// until `at_once`.
pub(crate) async fn send_away(
    pace: Pace,
    deadline: Instant,
    connections: &ConnectionTable,
    requests: &TaskTracker,
    at_once: &CancellationToken,
) {
    let counts = connections.counts();
    let open = counts.executors + counts.orchestrators;
    let frame = CloseFrame::restarting_within(pace.span(open));
    tracing::info!(
        executors = counts.executors,
        orchestrators = counts.orchestrators,
        streams = counts.streams,
        seconds = deadline.saturating_duration_since(Instant::now()).as_secs(),
        told = frame.reason,
        "leaving; another SIGTERM leaves at once"
    );
    requests.close();
    let leaving = async {
        let hubs = connections.hubs();
        let size = hubs.len().div_ceil(pace.batches(open, hubs.len())).max(1);
        for (n, batch) in hubs.chunks(size).enumerate() {
            if n > 0 {
                tokio::time::sleep(jittered(BATCH_PAUSE)).await;
            }
            leave(batch, &frame);
        }
        let gone = async {
            connections.all_ended().await;
            requests.wait().await;
        };
        let mut gone = std::pin::pin!(gone);
        while tokio::time::timeout(REPORT_INTERVAL, gone.as_mut()).await.is_err() {
            // Who was about to join when the hubs were counted is told now.
            leave(&connections.hubs(), &frame);
            let (websockets, requests) = (connections.guards(), requests.len());
            tracing::info!(websockets, connections = requests, "waiting for these to close");
        }
    };
    let in_time = at_once.run_until_cancelled(tokio::time::timeout_at(deadline, leaving)).await;
    let open = connections.guards();
    if open > 0 && !matches!(in_time, Some(Ok(()))) {
        let urgent = at_once.is_cancelled();
        tracing::warn!(open, urgent, "websockets did not close in time and are dropped");
    }
}

fn leave(hubs: &[Arc<SharedHub>], frame: &CloseFrame) {
    for hub in hubs {
        hub.close(frame.clone());
    }
}

/// Between half and one and a half of `mean`, so that relays that were told to
/// leave at one moment do not send their endpoints away in step.
fn jittered(mean: Duration) -> Duration {
    let mut random = [0x80; 1];
    // Without random numbers the pause is the mean.
    let _ = getrandom::fill(&mut random);
    mean.mul_f64(0.5 + f64::from(random[0]) / f64::from(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        announce: Duration::ZERO,
        deadline: Duration::from_secs(20),
        reconnects_per_second: 1000,
    };

    #[test]
    fn a_few_leave_together_and_many_over_time() {
        for (open, hubs, span_ms, batches) in [
            (0, 0, 0, 1),
            (2, 1, 0, 1),
            (99, 50, 0, 1),
            (5_000, 2_000, 5_000, 50),
            (5_000, 10, 5_000, 10),
            (20_000, 20_000, 20_000, 100),
            (1_000_000, 500_000, 1_000_000, 100),
        ] {
            assert_eq!(PACE.span(open), Duration::from_millis(span_ms), "{open}");
            assert_eq!(PACE.batches(open, hubs), batches, "{open} in {hubs}");
        }
    }

    #[test]
    fn pauses_differ_around_their_mean() {
        for _ in 0..100 {
            let pause = jittered(BATCH_PAUSE);
            assert!(pause >= BATCH_PAUSE / 2 && pause <= BATCH_PAUSE * 3 / 2, "{pause:?}");
        }
    }
}
