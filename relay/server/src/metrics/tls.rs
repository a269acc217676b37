//! TLS of the public listener; zeros without TLS.

use std::fmt;

use super::MetricsWriter;
use crate::tls::{HandshakeOutcome, KeyExchangeGroup, OrderOutcome, OrderStats, TlsStats};

pub(super) fn encode(out: &mut MetricsWriter<'_>, stats: &TlsStats) -> fmt::Result {
    let handshakes =
        HandshakeOutcome::ALL.map(|ended| ([("result", ended.as_str())], stats.handshakes(ended)));
    out.counters("rendez_tls_handshakes", "TLS handshakes by outcome.", handshakes)?;
    let groups =
        KeyExchangeGroup::ALL.map(|group| ([("group", group.as_str())], stats.groups(group)));
    out.counters("rendez_tls_key_exchanges", "TLS connections by key exchange group.", groups)?;
    let [failed, good] = stats.reloads();
    let reloads = [([("result", "ok")], good), ([("result", "failed")], failed)];
    out.counters("rendez_tls_reloads", "Reloads of changed TLS files.", reloads)?;
    out.gauge(
        "rendez_tls_certificate_not_after_seconds",
        "When the certificate expires, in seconds since 1970; 0 without TLS.",
        stats.not_after(),
    )?;
    let help = "Duration of successful TLS handshakes.";
    out.histogram("rendez_tls_handshake_seconds", help, &stats.took)
}

/// Certificates by ACME; zeros without it.
pub(super) fn orders(out: &mut MetricsWriter<'_>, stats: &OrderStats) -> fmt::Result {
    let ended = OrderOutcome::ALL.map(|how| ([("result", how.as_str())], stats.ended(how)));
    out.counters("rendez_acme_orders", "Certificate orders by outcome.", ended)?;
    out.gauge(
        "rendez_acme_orders_failed_in_a_row",
        "Failed orders since the last successful one.",
        i64::try_from(stats.consecutive_failures()).unwrap_or(i64::MAX),
    )?;
    out.gauge(
        "rendez_acme_next_order_seconds",
        "When the next certificate order is due, in seconds since 1970; 0 without ACME.",
        stats.next(),
    )
}
