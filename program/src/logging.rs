//! The log of a program: on standard error, as text or as JSON.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_log::AsLog as _;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt as lines, reload};

/// How much is logged.
///
/// | level | events |
/// | --- | --- |
/// | warn | an operator should look |
/// | info | visible to users: registered, connected, disconnected |
/// | debug | changes of state |
/// | trace | frames |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Failures.
    Error,
    /// An operator should look.
    Warn,
    /// Visible to users.
    Info,
    /// Changes of state.
    Debug,
    /// Frames, by id and size.
    Trace,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            LogLevel::Off => LevelFilter::OFF,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}

/// An unknown name of a level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a log level is one of off, error, warn, info, debug, trace")]
pub struct InvalidLogLevel;

impl FromStr for LogLevel {
    type Err = InvalidLogLevel;
    fn from_str(name: &str) -> Result<Self, InvalidLogLevel> {
        Ok(match name {
            "off" => LogLevel::Off,
            "error" => LogLevel::Error,
            "warn" => LogLevel::Warn,
            "info" => LogLevel::Info,
            "debug" => LogLevel::Debug,
            "trace" => LogLevel::Trace,
            _ => return Err(InvalidLogLevel),
        })
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogLevel::Off => "off",
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        })
    }
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object, with the event's fields at the top.
    Json,
}

/// An unknown name of a format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a log format is human or json")]
pub struct InvalidLogFormat;

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;
    fn from_str(name: &str) -> Result<Self, InvalidLogFormat> {
        match name {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err(InvalidLogFormat),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

/// A layer beside the log that receives spans, such as an exporter of traces.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// The layers below that of the log.
type Below = Layered<Option<SpanLayer>, Registry>;

/// Changes the level of a running log.
#[derive(Clone, Default)]
pub struct LogHandle(Option<reload::Handle<Targets, Below>>);

impl LogHandle {
    /// Sets the level from now on. Without effect if other code started the log.
    pub fn set_level(&self, level: LogLevel) {
        if let Some(handle) = &self.0 {
            let _ = handle.reload(filter(level));
            limit_library_records(level);
        }
    }
}

/// Starts logging as text. A second call does nothing.
pub fn start(level: LogLevel) {
    start_with(level, LogFormat::Human, None);
}

/// Starts logging. A second call does nothing, and its handle has no effect.
///
/// Only `spans` receives spans, at any level: a log line carries its context as
/// fields.
pub fn start_with(level: LogLevel, format: LogFormat, spans: Option<SpanLayer>) -> LogHandle {
    let (filter, handle) = reload::Layer::new(filter(level));
    // Not `is_event`: `tracing::enabled!` checks with neither event nor span. Without
    // the hint, the subscriber would be asked about events above the level.
    let not_span = filter_fn(|metadata| !metadata.is_span());
    let events = filter.and(not_span.with_max_level_hint(LevelFilter::TRACE));
    let log = printer(format).with_filter(events);
    let started = tracing_subscriber::registry().with(spans).with(log).try_init();
    if started.is_ok() {
        limit_library_records(level);
    }
    LogHandle(started.is_ok().then_some(handle))
}

/// The most verbose level of libraries: at lower levels they print URLs and headers,
/// which contain tickets and tokens.
const LIBRARY_LEVEL_MAX: LevelFilter = LevelFilter::WARN;

/// The level applies to our own crates, and to libraries up to
/// [`LIBRARY_LEVEL_MAX`].
fn filter(level: LogLevel) -> Targets {
    let level = level.filter();
    Targets::new().with_default(level.min(LIBRARY_LEVEL_MAX)).with_target("rendez", level)
}

/// Drops records of the `log` facade above the level of libraries where they are
/// made. Only libraries use the facade, the websocket library for every frame, and
/// each record that passes this gate costs several filters.
fn limit_library_records(level: LogLevel) {
    log::set_max_level(level.filter().min(LIBRARY_LEVEL_MAX).as_log());
}

fn printer<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Human => lines::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Json => lines::layer()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_writer(std::io::stderr)
            .boxed(),
    }
}
