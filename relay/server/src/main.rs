//! `rendez-relay`: the relay alone, for servers and images.

use std::io::{ErrorKind, Write as _, stdout};

use clap::Parser as _;
use rendez_program::{logging, signals};
use rendez_relay::{Relay, RelayArgs, Traces, config, raise_descriptor_limit};

#[derive(clap::Parser)]
#[command(version, about = "The Rendez relay: registry and rendezvous, on SQLite")]
struct Cli {
    #[command(flatten)]
    relay: RelayArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Cli::parse().relay;
    let print = args.print_config;
    let settings = args.load()?;
    if print {
        let written = stdout().write_all(config::document(&settings).as_bytes());
        // A reader may close the pipe early.
        return Ok(written.or_else(|error| match error.kind() {
            ErrorKind::BrokenPipe => Ok(()),
            _ => Err(error),
        })?);
    }
    let traces = Traces::start(&settings.config)?;
    let (level, format) = (settings.config.log_level, settings.config.log_format);
    let log = logging::start_with(level, format, traces.span_layer());
    raise_descriptor_limit(settings.config.connections_max);
    Relay::bind(settings).await?.logging(log).serve(signals::shutdown_on_signals()).await;
    traces.finish().await;
    Ok(())
}
