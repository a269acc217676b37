//! Exports traces of calls and websockets by OTLP over HTTP, in batches, with the
//! relay's own HTTP and TLS client. Frames are never traced.
//!
//! | span | from, to |
//! | --- | --- |
//! | `register`, `connect`, `validate`, `rendezvous` | the request, its response |
//! | `websocket` | the upgrade, the close |
//!
//! Spans contain ids and statuses, like the log. Without a listener no spans are
//! created.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use rendez_program::logging::SpanLayer;
use rendez_transport::tls;
use rustls::ClientConfig;
use tokio::runtime::Handle;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;

use crate::config::Config;

/// The timeout for sending one batch, and for the last one at shutdown.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The most verbose level of exported spans.
const SPAN_LEVEL_MAX: LevelFilter = LevelFilter::INFO;

/// Traces cannot be exported to `telemetry.otlp`; the operator has to act.
#[derive(Debug, thiserror::Error)]
#[error("cannot export traces to telemetry.otlp: {0}")]
pub struct TracesError(String);

/// The export of traces, if it is on.
pub struct Traces(Option<SdkTracerProvider>);

impl Traces {
    /// Starts the export if it is configured. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`TracesError`].
    pub fn start(config: &Config) -> Result<Self, TracesError> {
        let Some(url) = config.telemetry_otlp.url() else { return Ok(Self(None)) };
        let failed = |error: &dyn fmt::Display| TracesError(error.to_string());
        let config = tls::for_url(url).map_err(|error| failed(&error))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&config))
            .timeout(SEND_TIMEOUT)
            .build()
            .map_err(|error| failed(&error))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(OtlpHttpClient { http, runtime: Handle::current() })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url)
            .with_timeout(SEND_TIMEOUT)
            .build()
            .map_err(|error| failed(&error))?;
        let resource = Resource::builder().with_service_name("rendez-relay").build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self(Some(provider)))
    }

    /// The layer that exports our own spans, at any log level.
    pub fn span_layer(&self) -> Option<SpanLayer> {
        self.0.as_ref().map(span_layer)
    }

    /// Sends the remaining spans.
    pub async fn finish(self) {
        let Some(provider) = self.0 else { return };
        // Blocks until the exporter's thread has ended.
        let shutdown = move || provider.shutdown_with_timeout(SEND_TIMEOUT);
        match tokio::task::spawn_blocking(shutdown).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot send the last traces"),
            Err(error) => tracing::warn!(%error, "cannot send the last traces"),
        }
    }
}

fn span_layer(provider: &SdkTracerProvider) -> SpanLayer {
    use tracing_subscriber::Layer as _;
    use tracing_subscriber::filter::filter_fn;
    let ours = |metadata: &Metadata<'_>| {
        metadata.is_span()
            && metadata.target().starts_with("rendez")
            && *metadata.level() <= SPAN_LEVEL_MAX
    };
    // The hint keeps events and spans of a more verbose level away from the
    // subscriber.
    let ours = filter_fn(ours).with_max_level_hint(SPAN_LEVEL_MAX);
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("rendez-relay"))
        .with_tracked_inactivity(false)
        .with_location(false)
        .with_threads(false)
        .with_filter(ours)
        .boxed()
}

/// Sends batches on our runtime, because the exporter's thread has none.
#[derive(Debug)]
struct OtlpHttpClient {
    http: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for OtlpHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sending = async move {
            let reply = http.execute(request.try_into()?).await?.error_for_status()?;
            let status = reply.status();
            Ok::<_, reqwest::Error>((status, reply.bytes().await?))
        };
        let (status, body) = self.runtime.spawn(sending).await??;
        Ok(Response::builder().status(status).body(body)?)
    }
}
