//! Logs: to stderr, for people.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How much is logged.
///
/// | level | what |
/// | --- | --- |
/// | warn | somebody should look |
/// | info | visible to users: registered, connected, disconnected |
/// | debug | changes of state |
/// | trace | frames |
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
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

/// Starts logging. A second call does nothing.
///
/// The level is that of our own crates. Libraries never log below WARN: on
/// lower levels they print URLs and headers, and with them tickets and tokens.
pub fn start(level: LogLevel) {
    let level = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let filter =
        Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("rendez", level);
    let _ = tracing_subscriber::registry()
        .with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr))
        .with(filter)
        .try_init();
}
