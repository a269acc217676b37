//! `rendez admin`: the commands for operators of a relay.

mod audit;

use std::path::PathBuf;
use std::process::ExitCode;

use rendez_orchestrator::EnvironmentId;
use rendez_proto::registry::status::{ConnectionEntry, ConnectionRole, RelayStatus};
use rendez_registry::backup;

use self::audit::AuditCommand;
use crate::admin_access::map_not_found;
use crate::env::{self, EnvCommand};
use crate::exit::Exit;
use crate::format::{ago, bytes, now, span};
use crate::output::{note, print, print_json, print_json_lines, print_lines};
use crate::relay_options::{Purpose, RelayOptions};

/// Administer a relay.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AdminCommand {
    /// Show the relay's status: version, connections and the end of the audit log
    Status {
        #[command(flatten)]
        relay: RelayOptions,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the open websockets
    Connections {
        #[command(flatten)]
        relay: RelayOptions,
        /// Only the websockets of this environment
        #[arg(long, value_name = "ID")]
        environment: Option<EnvironmentId>,
        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// List, show and revoke environments: the same as `rendez env`
    #[command(subcommand)]
    Env(EnvCommand),
    /// Check or export the audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Copy a relay's database; the relay may be running. To restore the copy,
    /// replace registry.sqlite in a state directory that holds the relay's
    /// signing key
    Backup {
        /// The relay's state directory
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// The file to write; it must not exist
        file: PathBuf,
    },
}

/// Runs the command.
pub(crate) async fn run(command: AdminCommand) -> Result<ExitCode, Exit> {
    match command {
        AdminCommand::Status { relay, json } => {
            let status = relay.admin_client(Purpose::Administer)?.status().await;
            let status = status.map_err(|error| map_not_found(error, Exit::usage))?;
            match json {
                true => print_json(&status)?,
                false => print(describe(&status, now()))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        AdminCommand::Connections { relay, environment, json } => {
            let client = relay.admin_client(Purpose::Administer)?;
            let connections = client.connections(environment.as_ref()).await;
            let connections = connections.map_err(|error| map_not_found(error, Exit::usage))?;
            list(&connections, json)?;
            Ok(ExitCode::SUCCESS)
        }
        AdminCommand::Env(command) => env::run(command).await,
        AdminCommand::Audit(command) => audit::run(command).await,
        AdminCommand::Backup { state, file } => {
            backup::backup(&state, &file).await?;
            note(format_args!("wrote {}; it does not contain the signing key", file.display()));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn describe(status: &RelayStatus, now: u64) -> String {
    let RelayStatus { audit, .. } = status;
    let up = ago(now, status.started_at_unix_secs);
    let state = if status.draining { ", about to stop" } else { "" };
    let (version, head) = (&status.version, audit.head);
    format!(
        "relay         {version}, up for {up}{state}\n\
         executors     {}\norchestrators {}\nstreams       {}\n\
         audit log     {head}\n              {} events wait, {} were lost\n\
         history       {} records wait, {} were lost",
        status.executors,
        status.orchestrators,
        status.streams,
        audit.unwritten,
        audit.lost,
        status.history_unwritten,
        status.history_lost
    )
}

fn list(connections: &[ConnectionEntry], json: bool) -> Result<(), Exit> {
    if json {
        return print_json_lines(connections);
    }
    let width = connections.iter().map(|c| c.environment_id.as_str().len()).max().unwrap_or(0);
    let width = width.max("ENVIRONMENT".len());
    let head = "ROLE          SINCE      VERIFIED   RECEIVED   SENT       TOKEN";
    let head = format!("{:width$}  {head}", "ENVIRONMENT");
    let now = now();
    let rows = connections.iter().map(|connection| {
        let role = match connection.role {
            ConnectionRole::Executor => "executor",
            ConnectionRole::Orchestrator => "orchestrator",
        };
        let since = ago(now, connection.connected_at_unix_secs);
        let verified = connection.verified_ms_ago;
        let verified = verified.map_or("never".to_owned(), |ms| span(ms / 1000));
        let (received, sent) = (bytes(connection.received_bytes), bytes(connection.sent_bytes));
        let (id, token) = (connection.environment_id.as_str(), &connection.subject);
        format!("{id:width$}  {role:14}{since:11}{verified:11}{received:11}{sent:11}{token}")
    });
    print_lines(std::iter::once(head).chain(rows))
}
