//! `rendez env`: look at environments.

use std::process::ExitCode;

use rendez_proto::registry::admin::EnvironmentEntry;

use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;

/// Look at environments.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum EnvCommand {
    /// List the environments that the token may see
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        relay: RelayOptions,

        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command.
pub(crate) async fn run(command: EnvCommand) -> Result<ExitCode, Exit> {
    let EnvCommand::Ls { relay, json } = command;
    let client = relay.client(Purpose::Orchestrate)?;
    let environments = client.registry().environments().await?;
    if json {
        for environment in &environments {
            println!("{}", serde_json::to_string(environment).map_err(Exit::software)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if environments.is_empty() {
        eprintln!("no executor has registered yet, or the token covers none of them");
        return Ok(ExitCode::SUCCESS);
    }
    let width = environments.iter().map(|e| e.environment_id.as_str().len()).max().unwrap_or(0);
    let width = width.max("ENVIRONMENT".len());
    println!("{:width$}  STATE    PROFILES", "ENVIRONMENT");
    for environment in &environments {
        println!("{}", line(environment, width));
    }
    Ok(ExitCode::SUCCESS)
}

fn line(environment: &EnvironmentEntry, width: usize) -> String {
    let state = if environment.online { "online" } else { "offline" };
    let profiles: Vec<_> = environment.profiles.iter().map(|profile| profile.name()).collect();
    let id = environment.environment_id.as_str();
    format!("{id:width$}  {state:7}  {}", profiles.join(","))
}
