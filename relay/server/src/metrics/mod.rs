//! Metrics for Prometheus, in its text format.
//!
//! A scrape reads the counters of the relay's parts; only durations are collected
//! here. Label values come from closed sets, and all of them are exported from the
//! start with 0, so that an alert on a rate works before the first event. No label
//! contains an environment, a key, an address or other text of a client.

mod database;
mod hubs;
mod process;
mod requests;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub(crate) use self::database::StoreTimes;
pub(crate) use self::process::started;

use crate::connections::{ConnectionLimit, ConnectionTable};
use crate::rendezvous::Rendezvous;
use crate::tls::{OrderStats, Tls, TlsStats};

/// The content type of [`Metrics::encode`]'s text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Histogram buckets in seconds: from a call that uses memory only to the longest
/// wait of a stock client.
const SECONDS: [f64; 12] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];

/// A client's call whose duration is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientCall {
    Register,
    Connect,
    Validate,
    Rendezvous,
}

impl ClientCall {
    const ALL: [ClientCall; 4] =
        [ClientCall::Register, ClientCall::Connect, ClientCall::Validate, ClientCall::Rendezvous];

    /// The call of a matched route.
    pub(crate) fn of_route(route: &str) -> Option<Self> {
        let last = route.rsplit('/').next().unwrap_or_default();
        Self::ALL.into_iter().find(|call| call.as_str() == last)
    }

    /// Its name in labels and traces.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            ClientCall::Register => "register",
            ClientCall::Connect => "connect",
            ClientCall::Validate => "validate",
            ClientCall::Rendezvous => "rendezvous",
        }
    }
}

/// All metrics of a relay.
pub(crate) struct Metrics {
    registry: Registry,
    durations: Durations,
    store: Arc<StoreTimes>,
}

/// Durations of client calls, which no other part of the relay needs.
#[derive(Clone)]
struct Durations {
    calls: [Histogram; ClientCall::ALL.len()],
}

impl Default for Durations {
    fn default() -> Self {
        Self { calls: std::array::from_fn(|_| Histogram::new(SECONDS)) }
    }
}

impl Metrics {
    /// The metrics of a relay with these parts.
    pub(crate) fn new(
        state: &Rendezvous,
        limit: ConnectionLimit,
        tls: Option<Arc<Tls>>,
        store: Arc<StoreTimes>,
    ) -> Self {
        let durations = Durations::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(RelayCollector {
            state: state.clone(),
            limit,
            tls,
            no_tls: TlsStats::default(),
            no_orders: OrderStats::default(),
            durations: durations.clone(),
            store: store.clone(),
        }));
        Self { registry, durations, store }
    }

    /// Whether writes to the store fail.
    pub(crate) fn store_is_failing(&self) -> bool {
        self.store.is_failing()
    }

    /// The text of a scrape.
    pub(crate) fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    pub(crate) fn observe_call(&self, call: ClientCall, took: Duration) {
        self.durations.calls[call as usize].observe(took.as_secs_f64());
    }
}

/// Reads all counters at scrape time.
struct RelayCollector {
    state: Rendezvous,
    limit: ConnectionLimit,
    tls: Option<Arc<Tls>>,
    /// Zeros for a relay without TLS.
    no_tls: TlsStats,
    no_orders: OrderStats,
    durations: Durations,
    store: Arc<StoreTimes>,
}

impl fmt::Debug for RelayCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayCollector")
    }
}

impl Collector for RelayCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = MetricsWriter(encoder);
        process::encode(&mut out)?;
        drain(&mut out, &self.state.connections)?;
        hubs::encode(&mut out, &self.state)?;
        requests::encode(&mut out, &self.state, &self.limit)?;
        database::encode(&mut out, &self.state, &self.store)?;
        tls::encode(&mut out, self.tls.as_ref().map_or(&self.no_tls, |tls| &tls.stats))?;
        tls::orders(&mut out, self.tls.as_ref().map_or(&self.no_orders, |tls| &tls.orders))?;
        let calls = ClientCall::ALL
            .map(|call| ([("call", call.as_str())], &self.durations.calls[call as usize]));
        out.histograms("rendez_call_seconds", "Duration of client calls until the response.", calls)
    }
}

fn drain(out: &mut MetricsWriter<'_>, connections: &ConnectionTable) -> fmt::Result {
    let draining = i64::from(connections.is_draining());
    out.gauge("rendez_relay_draining", "1 while the relay drains.", draining)
}

/// Writes metrics: one call per name with all its labels.
pub(crate) struct MetricsWriter<'a>(DescriptorEncoder<'a>);

impl MetricsWriter<'_> {
    /// A counter without labels; its name ends in `_total` on the wire.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.describe(name, help, MetricType::Counter)?)
    }

    /// A counter of seconds.
    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        ConstCounter::new(value).encode(self.describe(name, help, MetricType::Counter)?)
    }

    /// A gauge without labels.
    fn gauge(&mut self, name: &str, help: &str, value: i64) -> fmt::Result {
        ConstGauge::new(value).encode(self.describe(name, help, MetricType::Gauge)?)
    }

    /// A counter per set of labels.
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let values = values.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, MetricType::Counter, values)
    }

    /// A gauge per set of labels.
    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, i64)>,
    ) -> fmt::Result {
        let values = values.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, MetricType::Gauge, values)
    }

    /// A histogram without labels.
    fn histogram(&mut self, name: &str, help: &str, value: &Histogram) -> fmt::Result {
        value.encode(self.describe(name, help, MetricType::Histogram)?)
    }

    /// A histogram per set of labels.
    fn histograms<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, &'h Histogram)>,
    ) -> fmt::Result {
        let values = values.into_iter().map(|(labels, value)| (labels, value.clone()));
        self.family(name, help, MetricType::Histogram, values)
    }

    fn family<L: EncodeLabelSet, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut encoder = self.describe(name, help, kind)?;
        for (labels, value) in values {
            value.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn describe<'s>(
        &'s mut self,
        name: &'s str,
        help: &'s str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }
}
