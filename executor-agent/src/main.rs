//! `rendez-agent`: the executor alone, for images and servers.

use std::io::{Write as _, stderr};
use std::process::ExitCode;

use clap::Parser as _;
use rendez_executor_agent::AgentArgs;
use rendez_program::{logging, signals};

#[derive(clap::Parser)]
#[command(version, about = "The Rendez executor: serves this machine through a relay")]
struct Cli {
    #[command(flatten)]
    agent: AgentArgs,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Cli::parse().agent;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(run(args));
    // Do not wait for a thread that asks a name server which does not answer,
    // or reads a file on a disk that hangs.
    runtime.shutdown_background();
    outcome
}

async fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    logging::start(args.log);
    match args.run(signals::cancel_on_signal()).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            // A closed standard error is not a failure.
            let _ = writeln!(stderr(), "rendez-agent: {error}");
            Ok(ExitCode::from(error.exit_code()))
        }
    }
}
