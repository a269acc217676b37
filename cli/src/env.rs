//! `rendez env`: list, show and revoke environments.

use std::process::ExitCode;

use rendez_orchestrator::EnvironmentId;
use rendez_proto::registry::environments::{
    ConnectionRecord, EnvironmentDetail, EnvironmentEntry, EnvironmentState, LiveExecutor,
};

use crate::admin_access::{AdminOptions, StateDirectory};
use crate::exit::Exit;
use crate::format::{ago, bytes, now, span};
use crate::output::{note, print, print_json, print_json_lines, print_lines};
use crate::relay_options::{Purpose, RelayOptions};

/// List, show and revoke environments.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum EnvCommand {
    /// List the environments that the token covers
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        relay: RelayOptions,

        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// Show one environment: whether its executor is connected, since when, and
    /// its latest connections
    Show {
        #[command(flatten)]
        relay: RelayOptions,

        /// The environment
        #[arg(value_name = "ENVIRONMENT")]
        environment: EnvironmentId,

        /// Ping the executor before the state is shown
        #[arg(long)]
        probe: bool,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke an environment: close its connections within 5 seconds
    ///
    /// The executor cannot reconnect: enrolled executors are revoked, and
    /// existing tokens cannot register in the environment any more. To use it
    /// again, create a new join token or a new executor token. Needs an admin
    /// token, or the relay's state directory.
    Revoke {
        #[command(flatten)]
        admin: AdminOptions,

        /// The environment
        #[arg(value_name = "ENVIRONMENT")]
        environment: EnvironmentId,

        /// Only end the current registration: the executor can register again
        /// with its token or key
        #[arg(long)]
        registration_only: bool,
    },
}

/// Runs the command.
pub(crate) async fn run(command: EnvCommand) -> Result<ExitCode, Exit> {
    match command {
        EnvCommand::Ls { relay, json } => list(&relay, json).await?,
        EnvCommand::Show { relay, environment, probe, json } => {
            let client = relay.admin_client(Purpose::Orchestrate)?;
            let detail = client.environment(&environment, probe).await?;
            match json {
                true => print_json(&detail)?,
                false => print(describe(&detail, now()))?,
            }
        }
        EnvCommand::Revoke { admin, environment, registration_only } => {
            let admin = admin.open(StateDirectory::Existing).await?;
            if registration_only {
                admin.end_registration(&environment).await?;
                note(format_args!("ended the registration of {environment}"));
            } else {
                admin.revoke_environment(&environment).await?;
                note(format_args!("revoked {environment}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(relay: &RelayOptions, json: bool) -> Result<(), Exit> {
    let client = relay.admin_client(Purpose::Orchestrate)?;
    let environments = client.environments().await?;
    if json {
        return print_json_lines(&environments);
    }
    if environments.is_empty() {
        note("no environments: no executor has registered yet, or the token covers none of them");
        return Ok(());
    }
    let width = environments.iter().map(|e| e.environment_id.as_str().len()).max().unwrap_or(0);
    let width = width.max("ENVIRONMENT".len());
    let head = format!("{:width$}  {:9}  {:9}  PROFILES", "ENVIRONMENT", "STATE", "SINCE");
    let now = now();
    let rows = environments.iter().map(|environment| line(environment, width, now));
    print_lines(std::iter::once(head).chain(rows))
}

fn line(environment: &EnvironmentEntry, width: usize, now: u64) -> String {
    let profiles: Vec<_> = environment.profiles.iter().map(|profile| profile.name()).collect();
    let (id, state) = (environment.environment_id.as_str(), environment.state.as_str());
    let since = environment.since_unix_secs.map_or_else(String::new, |since| ago(now, since));
    format!("{id:width$}  {state:9}  {since:9}  {}", profiles.join(","))
}

/// Several lines for a terminal.
fn describe(detail: &EnvironmentDetail, now: u64) -> String {
    let mut lines = Vec::new();
    let mut field = |name: &str, value: String| lines.push(format!("{name:14}{value}"));
    field("environment", detail.environment_id.to_string());
    let Some(entry) = &detail.entry else {
        field("state", "never seen: no executor has registered under this id".to_owned());
        return lines.join("\n");
    };
    let since = entry.since_unix_secs.map_or_else(String::new, |since| ago(now, since));
    field("state", state(entry.state, &since));
    if entry.state == EnvironmentState::Offline {
        let why = match (entry.away_because, entry.since_unix_secs) {
            (Some(why), _) => why.words(),
            (None, Some(_)) => "it has registered, but not connected since",
            (None, None) => "not known yet",
        };
        field("because", why.to_owned());
    }
    if let Some(executor) = &detail.executor {
        field("verified", verified(executor));
        field("received", bytes(executor.received_bytes));
        field("sent", bytes(executor.sent_bytes));
    }
    field("orchestrators", detail.orchestrators.to_string());
    field("streams", detail.streams.to_string());
    let generation = entry.generation;
    match (&entry.executor_registration_id, entry.registered_at_unix_secs) {
        (Some(id), Some(at)) => {
            let registered = ago(now, at);
            field("registration", format!("{id}, number {generation}, {registered} ago"));
            let profiles: Vec<_> = entry.profiles.iter().map(|profile| profile.name()).collect();
            field("profiles", profiles.join(" "));
        }
        _ => field("registration", format!("none: number {generation} was ended")),
    }
    field("known for", ago(now, entry.created_at_unix_secs));
    if !detail.history.is_empty() {
        lines.push("\nBEGAN      LASTED     RECEIVED   SENT       END".to_owned());
        lines.extend(detail.history.iter().map(|record| past(record, now)));
    }
    lines.join("\n")
}

fn state(state: EnvironmentState, since: &str) -> String {
    match state {
        EnvironmentState::NeverSeen => "never seen".to_owned(),
        EnvironmentState::Offline if since.is_empty() => "offline".to_owned(),
        EnvironmentState::Offline => format!("offline for {since}"),
        EnvironmentState::Connected => format!("connected for {since}"),
        EnvironmentState::Draining => format!("connected for {since}; its relay is draining"),
    }
}

fn verified(executor: &LiveExecutor) -> String {
    match executor.verified {
        None => "not yet: no ping has been answered".to_owned(),
        Some(round) => {
            let (whole, tenth) = (round.round_trip_us / 1000, round.round_trip_us % 1000 / 100);
            let age = span(round.age_ms / 1000);
            format!("a ping was answered {age} ago, within {whole}.{tenth} ms")
        }
    }
}

fn past(record: &ConnectionRecord, now: u64) -> String {
    let began = format!("{} ago", ago(now, record.connected_at_unix_secs));
    let end = record.ended_at_unix_secs;
    let lasted = ago(end.unwrap_or(now), record.connected_at_unix_secs);
    let (received, sent) = match end {
        Some(_) => (bytes(record.received_bytes), bytes(record.sent_bytes)),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let why = record.ended_because.map_or("open", |why| why.words());
    format!("{began:11}{lasted:11}{received:11}{sent:11}{why}")
}

#[cfg(test)]
mod tests {
    use rendez_proto::registry::environments::EndReason;

    use super::*;

    #[test]
    fn environment_without_registration_is_described() {
        let entry = |since_unix_secs, away_because| EnvironmentEntry {
            environment_id: "dev".parse().unwrap(),
            online: false,
            state: EnvironmentState::Offline,
            since_unix_secs,
            away_because,
            executor_registration_id: None,
            generation: rendez_proto::ids::Generation(3),
            profiles: vec![],
            created_at_unix_secs: 10,
            registered_at_unix_secs: None,
        };
        let describe = |since, because| {
            let detail = EnvironmentDetail {
                environment_id: "dev".parse().unwrap(),
                state: EnvironmentState::Offline,
                entry: Some(entry(since, because)),
                executor: None,
                orchestrators: 0,
                streams: 0,
                history: vec![],
            };
            describe(&detail, 100)
        };
        let revoked = describe(None, Some(EndReason::Revoked));
        assert!(revoked.contains("state         offline\n"), "{revoked}");
        assert!(revoked.contains("because       its access was revoked\n"), "{revoked}");
        assert!(revoked.contains("registration  none: number 3 was ended\n"), "{revoked}");
        assert!(revoked.ends_with("known for     1m30s"), "{revoked}");
        let fresh = describe(Some(95), None);
        assert!(fresh.contains("state         offline for 5s\n"), "{fresh}");
        assert!(fresh.contains("but not connected since\n"), "{fresh}");
        assert_eq!(line(&entry(None, None), 3, 100).trim_end(), "dev  offline");
    }
}
