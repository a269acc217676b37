//! `rendez admin`: what operators do with a relay.

use std::io::{ErrorKind, Write as _, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use rendez_orchestrator::EnvironmentId;
use rendez_proto::audit::{AuditPage, AuditRow, Head, Verifier};
use rendez_proto::registry::status::{ConnectionEntry, ConnectionRole, RelayStatus};
use rendez_registry::{Options, Registry, backup};

use crate::context::{Purpose, RelayOptions};
use crate::env::{self, EnvCommand};
use crate::exit::Exit;

/// Administer a relay.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AdminCommand {
    /// Show the relay as a whole: what is connected, and its audit log's end
    Status {
        #[command(flatten)]
        relay: RelayOptions,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the websockets that are open
    Connections {
        #[command(flatten)]
        relay: RelayOptions,
        /// Only those of this environment
        #[arg(long, value_name = "ID")]
        environment: Option<EnvironmentId>,
        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// Look at environments: the same as `rendez env`
    #[command(subcommand)]
    Env(EnvCommand),
    /// Check or export the audit log
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Copy a relay's database, also while the relay runs. To restore it, put
    /// it in place of registry.sqlite in a state directory that has the
    /// relay's signing key
    Backup {
        /// The relay's state directory
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// The file to write, which must not exist
        file: PathBuf,
    },
}

/// Check or export the audit log.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no row was changed, removed or inserted, and print the end of
    /// the log, to be noted elsewhere. Exits with 65 if the log is broken
    Verify {
        #[command(flatten)]
        source: AuditSource,
        /// An end that was noted before: it must still be part of the log
        #[arg(long, value_name = "SEQ:HASH")]
        head: Option<Head>,
    },
    /// Print the rows as JSON, one per line
    Export {
        #[command(flatten)]
        source: AuditSource,
        /// Begin after this row
        #[arg(long, value_name = "SEQ", default_value_t = 0)]
        after: u64,
    },
}

/// Where the log is.
#[derive(Debug, clap::Args)]
pub(crate) struct AuditSource {
    #[command(flatten)]
    relay: RelayOptions,
    /// Read this state directory of a relay instead of asking one
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Runs the command.
pub(crate) async fn run(command: AdminCommand) -> Result<ExitCode, Exit> {
    match command {
        AdminCommand::Status { relay, json } => {
            let status = relay.client(Purpose::Administer)?.registry().status().await?;
            match json {
                true => println!("{}", serde_json::to_string(&status).map_err(Exit::software)?),
                false => print!("{}", describe(&status, env::now())),
            }
            Ok(ExitCode::SUCCESS)
        }
        AdminCommand::Connections { relay, environment, json } => {
            let client = relay.client(Purpose::Administer)?;
            let connections = client.registry().connections(environment.as_ref()).await?;
            list(&connections, json)?;
            Ok(ExitCode::SUCCESS)
        }
        AdminCommand::Env(command) => env::run(command).await,
        AdminCommand::Audit(AuditCommand::Verify { source, head }) => verify(&source, head).await,
        AdminCommand::Audit(AuditCommand::Export { source, after }) => {
            let mut out = stdout().lock();
            let print = |row: &AuditRow| {
                let mut line = serde_json::to_vec(row).map_err(Exit::software)?;
                line.push(b'\n');
                match out.write_all(&line) {
                    Ok(()) => Ok(Next::Go),
                    // whoever read it has had enough
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Next::Stop),
                    Err(error) => Err(Exit::io(error)),
                }
            };
            rows(&source, after, print).await?;
            Ok(ExitCode::SUCCESS)
        }
        AdminCommand::Backup { state, file } => {
            backup::backup(&state, &file).await.map_err(Exit::config)?;
            eprintln!("wrote {}; the signing key is not part of it", file.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn describe(status: &RelayStatus, now: u64) -> String {
    let RelayStatus { audit, .. } = status;
    let up = env::ago(now, status.started_at_unix_secs);
    let state = if status.draining { ", about to stop" } else { "" };
    let (version, head) = (&status.version, audit.head);
    format!(
        "relay         {version}, up for {up}{state}\n\
         executors     {}\norchestrators {}\nstreams       {}\n\
         audit log     {head}\n              {} events wait, {} were lost\n\
         history       {} records wait, {} were lost\n",
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
        for connection in connections {
            println!("{}", serde_json::to_string(connection).map_err(Exit::software)?);
        }
        return Ok(());
    }
    let width = connections.iter().map(|c| c.environment_id.as_str().len()).max().unwrap_or(0);
    let width = width.max("ENVIRONMENT".len());
    let head = "ROLE          SINCE      VERIFIED   RECEIVED   SENT       TOKEN";
    println!("{:width$}  {head}", "ENVIRONMENT");
    let now = env::now();
    for connection in connections {
        let role = match connection.role {
            ConnectionRole::Executor => "executor",
            ConnectionRole::Orchestrator => "orchestrator",
        };
        let since = env::ago(now, connection.connected_at_unix_secs);
        let verified = connection.verified_ms_ago;
        let verified = verified.map_or("never".to_owned(), |ms| env::ago(ms / 1000, 0));
        let (received, sent) =
            (env::bytes(connection.received_bytes), env::bytes(connection.sent_bytes));
        let (id, token) = (connection.environment_id.as_str(), &connection.subject);
        println!("{id:width$}  {role:14}{since:11}{verified:11}{received:11}{sent:11}{token}");
    }
    Ok(())
}

async fn verify(source: &AuditSource, head: Option<Head>) -> Result<ExitCode, Exit> {
    let mut verifier = Verifier::expecting(head);
    let check = |row: &AuditRow| verifier.check(row).map(|()| Next::Go).map_err(Exit::data);
    rows(source, 0, check).await?;
    let intact = verifier.finish().map_err(Exit::data)?;
    let (count, first) = (intact.rows, intact.first);
    eprintln!("{count} rows are intact, the first is number {first}");
    if intact.lost > 0 {
        eprintln!(
            "{} events were lost when they came too fast, as the log itself says",
            intact.lost
        );
    }
    println!("{}", intact.head);
    Ok(ExitCode::SUCCESS)
}

/// Whether more rows are wanted.
#[derive(PartialEq)]
enum Next {
    Go,
    Stop,
}

/// Gives every row after `after` to `each`, page by page.
async fn rows(
    source: &AuditSource,
    after: u64,
    mut each: impl FnMut(&AuditRow) -> Result<Next, Exit>,
) -> Result<(), Exit> {
    let pages = match &source.state {
        Some(state) => {
            let registry = Registry::open(state, Options::default()).await.map_err(Exit::config)?;
            Pages::Here(registry)
        }
        None => Pages::There(source.relay.client(Purpose::Administer)?),
    };
    let mut next = Some(after);
    while let Some(after) = next {
        let page = pages.after(after).await?;
        for row in &page.rows {
            if each(row)? == Next::Stop {
                return Ok(());
            }
        }
        // a page that does not go on would be asked for again and again
        next = page.next.filter(|next| *next > after);
    }
    Ok(())
}

/// Where pages come from.
enum Pages {
    Here(Registry),
    There(rendez_orchestrator::Client),
}

impl Pages {
    async fn after(&self, after: u64) -> Result<AuditPage, Exit> {
        match self {
            Pages::Here(registry) => registry.audit().page(after).await.map_err(Exit::config),
            Pages::There(client) => Ok(client.registry().audit(after).await?),
        }
    }
}
