//! Hubs: connections, streams and frames.

use std::fmt;

use rendez_proto::frame::ResetReason;
use rendez_relay_core::Dropped;

use super::MetricsWriter;
use crate::connections::End;
use crate::rendezvous::Rendezvous;

/// In the order of the directions in [`rendez_relay_core::Stats`].
const DIRECTIONS: [&str; 2] = ["to_executor", "to_orchestrator"];

pub(super) fn encode(out: &mut MetricsWriter<'_>, state: &Rendezvous) -> fmt::Result {
    let counts = state.connections.counts();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let roles = [
        ([("role", "executor")], count(counts.executors)),
        ([("role", "orchestrator")], count(counts.orchestrators)),
    ];
    out.gauges("rendez_relay_connections", "Open websockets.", roles)?;
    out.gauge(
        "rendez_relay_hubs",
        "Environments with an open websocket or a remembered stream.",
        count(counts.hubs),
    )?;
    out.gauge("rendez_relay_streams_active", "Known streams.", count(counts.streams))?;

    out.gauge(
        "rendez_relay_queue_bytes",
        "Bytes charged to accounts: queued frames, unfinished messages, unsent bytes.",
        count(state.connections.quotas().node().usage().memory_bytes),
    )?;

    let stats = state.connections.hub_stats();
    out.counter(
        "rendez_relay_handshakes_failed",
        "Failed handshakes that were charged to a token.",
        stats.failed_handshakes,
    )?;
    out.counter(
        "rendez_relay_reads_held_back",
        "Pauses in reading a websocket because of a rate limit.",
        stats.throttled,
    )?;
    out.counter(
        "rendez_relay_messages_held_back",
        "Messages that waited for memory before they were read.",
        state.connections.connection_stats().memory_waits(),
    )?;
    let frames = [0, 1].map(|way| ([("direction", DIRECTIONS[way])], stats.forwarded_frames[way]));
    out.counters(
        "rendez_relay_forwarded_frames",
        "Forwarded frames and the relay's own resets, without acks and heartbeats that overtake.",
        frames,
    )?;
    let bytes = [0, 1].map(|way| ([("direction", DIRECTIONS[way])], stats.forwarded_bytes[way]));
    out.counters("rendez_relay_forwarded_bytes", "Forwarded bytes, encrypted as received.", bytes)?;
    let dropped = Dropped::ALL.map(|why| ([("reason", why.as_str())], stats.dropped(why)));
    out.counters(
        "rendez_relay_frames_dropped",
        "Dropped frames; `express_full`: acks and heartbeats that a newer one of their stream replaced.",
        dropped,
    )?;
    let resets = ResetReason::ALL.map(|why| ([("reason", why.as_str())], stats.resets(why)));
    out.counters("rendez_relay_stream_resets", "Streams that the relay reset.", resets)?;
    let closed = End::ALL
        .map(|end| ([("reason", end.as_str())], state.connections.connection_stats().ended(end)));
    out.counters("rendez_relay_websockets_closed", "Closed websockets.", closed)
}
