//! `rendez token`: create, list and revoke access tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use rendez_proto::registry::admin::{CreateToken, Role, TokenCreated};
use rendez_registry::{Options, Registry};

use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;

/// Create, list and revoke access tokens.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it, this once
    Create(CreateArgs),
    /// List tokens, without their secrets
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        relay: RelayOptions,
    },
    /// Revoke a token by its id
    Revoke {
        #[command(flatten)]
        relay: RelayOptions,
        /// The id, as `rendez token ls` shows it
        id: String,
    },
}

/// Needs an admin token, or the relay's state directory.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    relay: RelayOptions,

    /// What the token is for
    #[arg(long, value_enum)]
    role: RoleName,

    /// The environments that it covers: an id, or a pattern such as 'ci-*'
    #[arg(long, default_value = "*", value_name = "PATTERN")]
    environments: String,

    /// A note for people
    #[arg(long, default_value = "", value_name = "TEXT")]
    label: String,

    /// When it ends, such as 90s, 15m, 12h or 30d [default: never]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    expires_in: Option<u64>,

    /// Write to this state directory of a relay instead of asking one: makes
    /// the first admin token, also while the relay runs
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum RoleName {
    /// To register executors
    Executor,
    /// To reach executors
    Orchestrator,
    /// To administer the relay
    Admin,
}

fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "must be a number and a unit: s, m, h or d".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Runs the command.
pub(crate) async fn run(command: TokenCommand) -> Result<ExitCode, Exit> {
    match command {
        TokenCommand::Create(args) => {
            let created = create(args).await?;
            eprintln!("id {}, covers {}", created.entry.id, created.entry.environments);
            println!("{}", created.token.expose());
        }
        TokenCommand::Ls { relay } => {
            let tokens = relay.client(Purpose::Administer)?.registry().tokens().await?;
            println!("{:18}{:14}{:9}{:20}LABEL", "ID", "ROLE", "STATE", "ENVIRONMENTS");
            for token in tokens {
                let role = match token.role {
                    Role::Executor => "executor",
                    Role::Orchestrator => "orchestrator",
                    Role::Admin => "admin",
                };
                let state = if token.revoked_at_unix_secs.is_some() { "revoked" } else { "active" };
                let (id, environments, label) = (token.id, token.environments, token.label);
                println!("{id:18}{role:14}{state:9}{environments:20}{label}");
            }
        }
        TokenCommand::Revoke { relay, id } => {
            relay.client(Purpose::Administer)?.registry().revoke_token(&id).await?;
            eprintln!("revoked {id}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: CreateArgs) -> Result<TokenCreated, Exit> {
    let request = CreateToken {
        role: match args.role {
            RoleName::Executor => Role::Executor,
            RoleName::Orchestrator => Role::Orchestrator,
            RoleName::Admin => Role::Admin,
        },
        environments: args.environments,
        label: args.label,
        expires_in_secs: args.expires_in,
    };
    match args.state {
        Some(state) => {
            let registry =
                Registry::open(&state, Options::default()).await.map_err(Exit::config)?;
            registry.create_token(&request).await.map_err(Exit::usage)
        }
        None => {
            let client = args.relay.client(Purpose::Administer)?;
            Ok(client.registry().create_token(&request).await?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("30d"), Ok(2_592_000));
        for bad in ["", "5", "d", "5w", "-5s", "99999999999999999999d"] {
            assert!(seconds(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
