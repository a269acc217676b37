//! Logs, for all our programs: to stderr, for people or for machines.

use std::fmt;
use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets, filter_fn};
use tracing_subscriber::layer::{Layered, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, fmt as lines, reload};

/// How much is logged.
///
/// | level | what |
/// | --- | --- |
/// | warn | somebody should look |
/// | info | visible to users: registered, connected, disconnected |
/// | debug | changes of state |
/// | trace | frames |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// Failures.
    Error,
    /// Somebody should look.
    Warn,
    /// Visible to users.
    Info,
    /// Changes of state.
    Debug,
    /// Frames, by id and size.
    Trace,
}

/// No level has this name.
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

/// How a line of the log looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Words for people, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object, with the event's fields at the top.
    Json,
}

/// No format has this name.
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

/// Something beside the log that hears of spans, such as an exporter of traces.
pub type SpanLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// What the log's own layer stands on.
type Below = Layered<Option<SpanLayer>, Registry>;

/// Changes the level of a running log.
#[derive(Clone, Default)]
pub struct LogHandle(Option<reload::Handle<Targets, Below>>);

impl LogHandle {
    /// From here on. Nothing happens where somebody else started the log.
    pub fn set_level(&self, level: LogLevel) {
        if let Some(handle) = &self.0 {
            let _ = handle.reload(filter(level));
        }
    }
}

/// Starts logging for people. A second call does nothing.
pub fn start(level: LogLevel) {
    start_with(level, LogFormat::Human, None);
}

/// Starts logging. A second call does nothing, and its handle has no effect.
///
/// Spans are for `spans` alone, whatever the level: lines of the log say by
/// themselves what they are about.
pub fn start_with(level: LogLevel, format: LogFormat, spans: Option<SpanLayer>) -> LogHandle {
    let (filter, handle) = reload::Layer::new(filter(level));
    // not `is_event`: `tracing::enabled!` asks as neither event nor span
    let events = filter.and(filter_fn(|metadata| !metadata.is_span()));
    let log = printer(format).with_filter(events);
    let started = tracing_subscriber::registry().with(spans).with(log).try_init();
    LogHandle(started.is_ok().then_some(handle))
}

/// The level is that of our own crates. Libraries never log below WARN: on
/// lower levels they print URLs and headers, and with them tickets and tokens.
fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("rendez", level)
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
