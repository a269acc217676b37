//! The switchboards: who is connected, and what became of frames.

use std::fmt;

use rendez_proto::frame::ResetReason;
use rendez_relay_core::Dropped;

use super::Out;
use crate::connections::End;
use crate::rendezvous::Rendezvous;

/// As [`rendez_relay_core::Stats`] orders directions.
const DIRECTIONS: [&str; 2] = ["to_executor", "to_orchestrator"];

pub(super) fn encode(out: &mut Out<'_>, state: &Rendezvous) -> fmt::Result {
    let counts = state.connections.counts();
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let roles = [
        ([("role", "executor")], count(counts.executors)),
        ([("role", "orchestrator")], count(counts.orchestrators)),
    ];
    out.gauges("rendez_relay_connections", "Open websockets.", roles)?;
    out.gauge(
        "rendez_relay_hubs",
        "Environments with a websocket or a stream that is remembered.",
        count(counts.hubs),
    )?;
    out.gauge("rendez_relay_streams_active", "Streams that are known.", count(counts.streams))?;

    out.gauge(
        "rendez_relay_queue_bytes",
        "Bytes of frames that wait for slow readers.",
        count(state.connections.quotas().node().usage().memory_bytes),
    )?;

    let stats = state.connections.hub_stats();
    out.counter(
        "rendez_relay_handshakes_failed",
        "Handshakes that came to nothing and were charged to their token.",
        stats.failed_handshakes,
    )?;
    out.counter(
        "rendez_relay_reads_held_back",
        "How often a websocket was not read for a while because of a rate.",
        stats.held_back,
    )?;
    let frames = [0, 1].map(|way| ([("direction", DIRECTIONS[way])], stats.forwarded_frames[way]));
    out.counters("rendez_relay_forwarded_frames", "Frames passed on, and resets of the relay's own; acks and heartbeats that overtake are not counted.", frames)?;
    let bytes = [0, 1].map(|way| ([("direction", DIRECTIONS[way])], stats.forwarded_bytes[way]));
    out.counters("rendez_relay_forwarded_bytes", "Bytes passed on, sealed as they came.", bytes)?;
    let dropped = Dropped::ALL.map(|why| ([("reason", why.as_str())], stats.dropped(why)));
    out.counters("rendez_relay_frames_dropped", "Frames not passed on.", dropped)?;
    let resets = ResetReason::ALL.map(|why| ([("reason", why.as_str())], stats.resets(why)));
    out.counters("rendez_relay_stream_resets", "Streams that the relay reset.", resets)?;
    let closed = End::ALL
        .map(|end| ([("reason", end.as_str())], state.connections.connection_stats().ended(end)));
    out.counters("rendez_relay_websockets_closed", "Websockets that ended.", closed)
}
