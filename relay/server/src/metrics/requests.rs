//! What was asked of the listener and of the registry, and how it ended.

use std::fmt;

use super::Out;
use crate::connections::ConnectionLimit;
use crate::rendezvous::Rendezvous;

pub(super) fn encode(
    out: &mut Out<'_>,
    state: &Rendezvous,
    limit: &ConnectionLimit,
) -> fmt::Result {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    out.gauge(
        "rendez_relay_tcp_connections",
        "TCP connections of clients, websockets included.",
        count(limit.open()),
    )?;
    out.gauge(
        "rendez_relay_tcp_connections_max",
        "Most of them at once (`connections_max`).",
        count(limit.max),
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
        "Requests that reached no rule, and answers that were not read.",
        refused,
    )?;
    let requests = state.registry.stats().all();
    let requests = requests.map(|(operation, outcome, n)| {
        ([("operation", operation.as_str()), ("outcome", outcome.as_str())], n)
    });
    out.counters(
        "rendez_registry_requests",
        "Calls of the registry and tickets, by how they ended.",
        requests,
    )
}
