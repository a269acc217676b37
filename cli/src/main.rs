//! `rendez`: the one binary that people install.
//!
//! Each command is a file, and a few lines over a library.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod admin;
mod admin_access;
mod agent;
mod dev;
mod env;
mod exec;
mod exit;
mod format;
mod output;
mod probe;
mod relay;
mod relay_options;
mod sys;
mod token;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rendez_executor_agent::AgentArgs;
use rendez_relay::RelayArgs;

use crate::exit::Exit;

/// Reach machines behind NAT, end-to-end encrypted through a relay that cannot
/// read along.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run relay, registry and an executor on this machine, to try things out
    Dev(dev::DevArgs),
    /// Run a relay: the registry and the rendezvous, on SQLite
    Relay(RelayArgs),
    Agent(AgentArgs),
    /// Run a command on an executor
    ///
    /// Standard input, output, error and the exit code are the command's. Ctrl-C
    /// interrupts it; a second one kills it and waits for its end, 5 seconds at
    /// most; a third one waits no longer. SIGTERM and SIGHUP kill it at once, and
    /// wait as long (a SIGHUP that is ignored, as under nohup, stays so). Of a
    /// SIGKILL the executor learns nothing: it takes the connection for lost and
    /// lets the command run on for 190 seconds, whatever --grace says.
    #[command(visible_alias = "x", after_help = exit::HELP)]
    Exec(exec::ExecArgs),
    /// Look at environments, and revoke them
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// Administer a relay: its state, connections, audit log and backups
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Measure real round trips through a relay
    #[command(after_help = exit::HELP)]
    Probe(probe::ProbeArgs),
    /// Create, list, rotate and revoke access tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return exit::usage(&error),
    };
    // A server uses all cores; a client is done sooner without more threads.
    let serves = matches!(command, Command::Dev(_) | Command::Relay(_) | Command::Agent(_));
    let runtime = if serves {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(command));
            // Do not wait for a thread that still reads standard input.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Exit::software(format!("no async runtime: {error}"))),
    };
    match outcome {
        Ok(code) => code,
        Err(exit) => exit.report(),
    }
}

async fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::Dev(args) => dev::run(args).await,
        Command::Relay(args) => relay::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Exec(args) => exec::run(args).await,
        Command::Env(command) => env::run(command).await,
        Command::Admin(command) => admin::run(command).await,
        Command::Probe(args) => probe::run(args).await,
        Command::Token(command) => token::run(command).await,
    }
}
