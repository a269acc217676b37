//! `rendez agent`: serve this machine through a relay.

use std::process::ExitCode;

use rendez_executor_agent::AgentArgs;
use rendez_program::{logging, signals};

use crate::exit::Exit;

/// Runs until SIGTERM or Ctrl-C.
pub(crate) async fn run(args: AgentArgs) -> Result<ExitCode, Exit> {
    logging::start(args.log);
    args.run(signals::cancel_on_signal()).await?;
    Ok(ExitCode::SUCCESS)
}
