//! `rendez`: the one binary that users install.
//!
//! Each command is one module, a few lines over a library.

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

/// Run commands on machines behind NAT, through a relay that cannot read the
/// traffic.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Try Rendez on this machine: run a relay and an executor in one process
    Dev(dev::DevArgs),
    /// Run a relay, which keeps its state in SQLite
    Relay(RelayArgs),
    Agent(AgentArgs),
    /// Run a command on an executor
    ///
    /// Standard input, output, error and the exit code are those of the command.
    ///
    /// Ctrl-C interrupts the command. A second Ctrl-C kills it and waits at most 5
    /// seconds for its end; a third one stops waiting. SIGTERM and SIGHUP kill it
    /// at once and wait at most 5 seconds. Under nohup, SIGHUP is ignored.
    ///
    /// If rendez itself is killed (SIGKILL), the command keeps running for up to
    /// 190 seconds, whatever --grace is.
    #[command(visible_alias = "x", after_help = exit::HELP)]
    Exec(exec::ExecArgs),
    /// List, show and revoke environments
    #[command(subcommand)]
    Env(env::EnvCommand),
    /// Administer a relay: status, connections, audit log and backups
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// Measure connection and round-trip times through a relay
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
    // Servers use all cores. Clients finish sooner without additional threads.
    let serves = matches!(command, Command::Dev(_) | Command::Relay(_) | Command::Agent(_));
    let runtime = if serves {
        tokio::runtime::Builder::new_multi_thread().enable_all().build()
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()
    };
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(run(command));
            // A thread may still block on standard input: do not wait for it.
            runtime.shutdown_background();
            outcome
        }
        Err(error) => Err(Exit::software(format!("cannot start the async runtime: {error}"))),
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
