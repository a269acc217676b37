//! Requests to the listener and to the registry, by outcome.

use std::fmt;

use super::MetricsWriter;
use crate::connections::{ConnectionLimit, StrangerClosed};
use crate::rendezvous::Rendezvous;

pub(super) fn encode(
    out: &mut MetricsWriter<'_>,
    state: &Rendezvous,
    limit: &ConnectionLimit,
) -> fmt::Result {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    out.gauge(
        "rendez_relay_tcp_connections",
        "Open TCP connections of clients, including websockets.",
        count(limit.open()),
    )?;
    out.gauge(
        "rendez_relay_tcp_connections_max",
        "Limit of open TCP connections (`connections_max`).",
        count(limit.max),
    )?;
    out.gauge(
        "rendez_relay_strangers",
        "Open TCP connections that have shown no valid token or ticket.",
        count(limit.strangers()),
    )?;
    out.counters(
        "rendez_relay_strangers_closed",
        "Such connections that were closed to let others in.",
        StrangerClosed::ALL.map(|why| ([("reason", why.as_str())], limit.strangers_closed(why))),
    )?;
    let stats = state.connections.connection_stats();
    let refused = [
        ([("reason", "head_timeout")], stats.head_timeouts()),
        ([("reason", "answer_timeout")], stats.answer_timeouts()),
        ([("reason", "bad_head")], stats.bad_heads()),
        ([("reason", "not_an_upgrade")], stats.not_an_upgrade()),
    ];
    out.counters(
        "rendez_relay_requests_refused",
        "Requests with a late or invalid head or without an upgrade, and unread responses.",
        refused,
    )?;
    let requests = state.registry.stats().all();
    let requests = requests.map(|(operation, outcome, n)| {
        ([("operation", operation.as_str()), ("outcome", outcome.as_str())], n)
    });
    out.counters(
        "rendez_registry_requests",
        "Registry calls and ticket checks by outcome.",
        requests,
    )
}
