//! `rendez relay`: run a relay.

use std::process::ExitCode;

use rendez_program::{logging, signals};
use rendez_relay::{Relay, RelayArgs, Traces, config, raise_descriptor_limit};

use crate::exit::Exit;
use crate::output::print;

/// Runs until SIGTERM or Ctrl-C.
pub(crate) async fn run(args: RelayArgs) -> Result<ExitCode, Exit> {
    let print_config = args.print_config;
    let settings = args.load().map_err(Exit::config)?;
    if print_config {
        print(config::document(&settings).trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (level, format) = (settings.config.log_level, settings.config.log_format);
    let traces = Traces::start(&settings.config).map_err(Exit::config)?;
    let log = logging::start_with(level, format, traces.span_layer());
    raise_descriptor_limit(settings.config.connections_max);
    let relay = Relay::bind(settings).await.map_err(Exit::config)?;
    relay.logging(log).serve(signals::shutdown_on_signals()).await;
    traces.finish().await;
    Ok(ExitCode::SUCCESS)
}
