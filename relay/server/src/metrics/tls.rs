//! TLS of the public listener; zeros without it.

use std::fmt;

use super::Out;
use crate::tls::{HandshakeOutcome, KeyExchangeGroup, OrderOutcome, OrderStats, TlsStats};

pub(super) fn encode(out: &mut Out<'_>, stats: &TlsStats) -> fmt::Result {
    let handshakes =
        HandshakeOutcome::ALL.map(|ended| ([("result", ended.as_str())], stats.handshakes(ended)));
    out.counters("rendez_tls_handshakes", "TLS handshakes, by how they ended.", handshakes)?;
    let groups =
        KeyExchangeGroup::ALL.map(|group| ([("group", group.as_str())], stats.groups(group)));
    out.counters(
        "rendez_tls_key_exchanges",
        "TLS connections, by what their keys were agreed on with.",
        groups,
    )?;
    let [failed, good] = stats.reloads();
    let reloads = [([("result", "ok")], good), ([("result", "failed")], failed)];
    out.counters("rendez_tls_reloads", "Changes of the TLS files that were noticed.", reloads)?;
    out.gauge(
        "rendez_tls_certificate_not_after_seconds",
        "When the certificate ends, in seconds since 1970; 0 without TLS.",
        stats.not_after(),
    )?;
    let help = "How long good TLS handshakes took.";
    out.histogram("rendez_tls_handshake_seconds", help, &stats.took)
}

/// Certificates by ACME; zeros without it.
pub(super) fn orders(out: &mut Out<'_>, stats: &OrderStats) -> fmt::Result {
    let ended = OrderOutcome::ALL.map(|how| ([("result", how.as_str())], stats.ended(how)));
    out.counters("rendez_acme_orders", "Orders of a certificate, by how they ended.", ended)?;
    out.gauge(
        "rendez_acme_orders_failed_in_a_row",
        "Orders that failed since the last good one.",
        i64::try_from(stats.consecutive_failures()).unwrap_or(i64::MAX),
    )?;
    out.gauge(
        "rendez_acme_next_order_seconds",
        "When the next certificate is ordered, in seconds since 1970; 0 without ACME.",
        stats.next(),
    )
}
