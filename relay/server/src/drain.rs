//! Shutdown without losing work.
//!
//! ```text
//! SIGTERM ─► announced: /readyz fails, everything else goes on
//!    drain.announce ─► closed: no new connections, no waits for an absent executor,
//!                      websockets closed in batches, requests in progress answered
//!    all closed, drain.deadline, or a second SIGTERM ─► the rest closed together ─► exit
//! ```
//!
//! The websockets of an environment close together: an executor is of no use
//! without its orchestrators. The close frame gives our own endpoints a reconnect
//! window, and they resume every stream. Stock ones reconnect by themselves with the
//! same ticket (docs/codex-wire.md#executor-reconnects), because a draining relay
//! never answers them with 4xx.

use std::sync::Arc;
use std::time::Duration;

use rendez_proto::close::CloseFrame;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::connections::{ConnectionTable, SharedHub};

/// Mean pause between two batches of environments.
const BATCH_PAUSE: Duration = Duration::from_millis(100);
/// How often the log reports the connections that are still open.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// How long websockets may take to close when there is no time left: their close frames
/// are under way by then.
const LAST_CLOSE: Duration = Duration::from_millis(500);
/// Batches may use the deadline divided by this; the rest is for closing.
const BATCHES_SHARE: u32 = 2;

/// The settings of a shutdown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DrainSchedule {
    announce: Duration,
    pub(crate) deadline: Duration,
    reconnects_per_second: usize,
}

impl DrainSchedule {
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            announce: config.drain_announce.min(config.drain_deadline),
            deadline: config.drain_deadline,
            reconnects_per_second: config.drain_reconnects_per_second.max(1),
        }
    }

    /// The window in which this many websockets reconnect.
    fn reconnect_window(&self, websockets: usize) -> Duration {
        let millis = websockets.saturating_mul(1000) / self.reconnects_per_second;
        let window = Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        // A few need no window.
        if window < BATCH_PAUSE { Duration::ZERO } else { window }
    }

    /// The number of batches that `hubs` are closed in.
    fn batches(&self, websockets: usize, hubs: usize) -> usize {
        let over = self.reconnect_window(websockets).min(self.deadline / BATCHES_SHARE);
        let batches = over.as_millis() / BATCH_PAUSE.as_millis();
        usize::try_from(batches).unwrap_or(usize::MAX).clamp(1, hubs.max(1))
    }
}

/// Lets balancers notice that the relay is about to stop.
pub(crate) async fn announce(
    schedule: DrainSchedule,
    connections: &ConnectionTable,
    at_once: &CancellationToken,
) {
    connections.start_draining();
    if !schedule.announce.is_zero() {
        tracing::info!(
            seconds = schedule.announce.as_secs_f64(),
            "asked to stop: /readyz fails now, clients are served until drain.announce has passed"
        );
    }
    let _ = at_once.run_until_cancelled(tokio::time::sleep(schedule.announce)).await;
}

/// Closes all websockets and waits until they are gone, until `deadline`, or until
/// `at_once`.
pub(crate) async fn close_websockets(
    schedule: DrainSchedule,
    deadline: Instant,
    connections: &ConnectionTable,
    requests: &TaskTracker,
    at_once: &CancellationToken,
) {
    let counts = connections.counts();
    let open = counts.executors + counts.orchestrators;
    let frame = CloseFrame::restarting_within(schedule.reconnect_window(open));
    tracing::info!(
        executors = counts.executors,
        orchestrators = counts.orchestrators,
        streams = counts.streams,
        seconds = deadline.saturating_duration_since(Instant::now()).as_secs(),
        reason = frame.reason,
        "closing all websockets; another SIGTERM stops at once"
    );
    requests.close();
    let closing = async {
        let hubs = connections.hubs();
        let size = hubs.len().div_ceil(schedule.batches(open, hubs.len())).max(1);
        for (n, batch) in hubs.chunks(size).enumerate() {
            if n > 0 {
                tokio::time::sleep(jittered(BATCH_PAUSE)).await;
            }
            close_hubs(batch, &frame);
        }
        let closed = async {
            connections.all_ended().await;
            requests.wait().await;
        };
        let mut closed = std::pin::pin!(closed);
        while tokio::time::timeout(REPORT_INTERVAL, closed.as_mut()).await.is_err() {
            // Closes a websocket that joined after the hubs were listed.
            close_hubs(&connections.hubs(), &frame);
            let (websockets, connections) = (connections.guards(), requests.len());
            tracing::info!(websockets, connections, "waiting for connections to close");
        }
    };
    let in_time = at_once.run_until_cancelled(tokio::time::timeout_at(deadline, closing)).await;
    if !matches!(in_time, Some(Ok(()))) {
        // Clients that are closed reconnect; those that are dropped may not notice.
        close_hubs(&connections.hubs(), &frame);
        let _ = tokio::time::timeout(LAST_CLOSE, connections.all_ended()).await;
    }
    let open = connections.guards();
    if open > 0 {
        let at_once = at_once.is_cancelled();
        tracing::warn!(open, at_once, "websockets did not close in time and are dropped");
    }
}

fn close_hubs(hubs: &[Arc<SharedHub>], frame: &CloseFrame) {
    for hub in hubs {
        hub.close(frame.clone());
    }
}

/// A random duration between half and one and a half of `mean`, so that relays that
/// stop at the same moment do not close their websockets in step.
fn jittered(mean: Duration) -> Duration {
    let mut random = [0x80; 1];
    // Without random numbers the pause is the mean.
    let _ = getrandom::fill(&mut random);
    mean.mul_f64(0.5 + f64::from(random[0]) / f64::from(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: DrainSchedule = DrainSchedule {
        announce: Duration::ZERO,
        deadline: Duration::from_secs(20),
        reconnects_per_second: 1000,
    };

    #[test]
    fn many_websockets_close_in_batches() {
        for (open, hubs, window_ms, batches) in [
            (0, 0, 0, 1),
            (2, 1, 0, 1),
            (99, 50, 0, 1),
            (5_000, 2_000, 5_000, 50),
            (5_000, 10, 5_000, 10),
            (20_000, 20_000, 20_000, 100),
            (1_000_000, 500_000, 1_000_000, 100),
        ] {
            assert_eq!(SCHEDULE.reconnect_window(open), Duration::from_millis(window_ms), "{open}");
            assert_eq!(SCHEDULE.batches(open, hubs), batches, "{open} in {hubs}");
        }
    }

    #[test]
    fn pauses_vary_around_their_mean() {
        for _ in 0..100 {
            let pause = jittered(BATCH_PAUSE);
            assert!(pause >= BATCH_PAUSE / 2 && pause <= BATCH_PAUSE * 3 / 2, "{pause:?}");
        }
    }
}
