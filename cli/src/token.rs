//! `rendez token`: create, list, rotate and revoke access tokens.

use std::process::ExitCode;

use rendez_proto::registry::admin::{CreateToken, Role, RotateToken, TokenEntry};
use rendez_registry::model::Subject;

use crate::admin_access::{AdminOptions, StateDirectory};
use crate::exit::Exit;
use crate::format::{now, parse_seconds, span};
use crate::output::{note, print, print_json_lines, print_lines};

/// Create, list, rotate and revoke access tokens.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a token and print it. It cannot be printed again
    Create(CreateArgs),
    /// List tokens and enrolled executors, without their secrets
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        admin: AdminOptions,

        /// Print JSON, one object per line
        #[arg(long)]
        json: bool,
    },
    /// Give a token a new secret and print it. It cannot be printed again
    ///
    /// The token keeps its id, role, restrictions and open connections. The old
    /// secret stays valid for the time of --overlap.
    Rotate {
        #[command(flatten)]
        admin: AdminOptions,

        /// The token's id, as shown by `rendez token ls`
        id: Subject,

        /// How long the old secret stays valid, such as 10m or 12h; 0 ends it
        /// immediately
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_seconds)]
        overlap: u64,
    },
    /// Revoke a token, an enrolled executor or a subject of another issuer
    ///
    /// It is refused from then on, and its connections are closed within 5
    /// seconds. This cannot be undone.
    Revoke {
        #[command(flatten)]
        admin: AdminOptions,

        /// The id, as shown by `rendez token ls`, or a subject of another
        /// issuer (jwt_...), as shown in the relay's log
        id: Subject,
    },
}

/// Needs an admin token, or the relay's state directory.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    admin: AdminOptions,

    /// The role of the token
    #[arg(long, value_enum)]
    role: RoleName,

    /// The environments that the token covers: an id, or a pattern such as 'ci-*'
    #[arg(long, default_value = "*", value_name = "PATTERN")]
    environments: String,

    /// A label, shown by `rendez token ls`
    #[arg(long, default_value = "", value_name = "TEXT")]
    label: String,

    /// Lifetime of the token, such as 90s, 12h, 30d or 1h30m [default: unlimited]
    #[arg(long, value_name = "TIME", value_parser = parse_seconds)]
    expires_in: Option<u64>,

    /// A network from which the token is accepted, such as 10.0.0.0/8 or
    /// 192.0.2.7; may be repeated [default: every network]
    #[arg(long = "source", value_name = "CIDR")]
    sources: Vec<String>,

    /// Number of uses: of registrations (executor), of connections to an
    /// environment (orchestrator) or of enrolments (join) [default: 1 for join,
    /// else unlimited]
    #[arg(long, value_name = "N")]
    max_uses: Option<u32>,
}

/// The role of a token.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum RoleName {
    /// Registers executors
    Executor,
    /// Connects to executors
    Orchestrator,
    /// Administers the relay
    Admin,
    /// Enrols an executor, which uses its own key from then on
    Join,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Executor => Role::Executor,
            RoleName::Orchestrator => Role::Orchestrator,
            RoleName::Admin => Role::Admin,
            RoleName::Join => Role::Join,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(command: TokenCommand) -> Result<ExitCode, Exit> {
    match command {
        TokenCommand::Create(args) => {
            let admin = args.admin.open(StateDirectory::CreateIfMissing).await?;
            let created = admin.create_token(&args.request()).await?;
            note(format_args!("id {}, covers {}", created.entry.id, created.entry.environments));
            print(created.token.expose())?;
        }
        TokenCommand::Ls { admin, json } => {
            let tokens = admin.open(StateDirectory::Existing).await?.tokens().await?;
            match json {
                true => print_json_lines(&tokens)?,
                false => print_lines(table(&tokens, now()))?,
            }
        }
        TokenCommand::Rotate { admin, id, overlap } => {
            let admin = admin.open(StateDirectory::Existing).await?;
            let request = RotateToken { overlap_secs: overlap };
            let rotated = admin.rotate_token(&id, &request).await?;
            match overlap {
                0 => note(format_args!("the old secret of {id} is no longer valid")),
                _ => note(format_args!("the old secret of {id} stays valid for {}", span(overlap))),
            }
            print(rotated.token.expose())?;
        }
        TokenCommand::Revoke { admin, id } => {
            admin.open(StateDirectory::Existing).await?.revoke_token(&id).await?;
            note(format_args!("revoked {id}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl CreateArgs {
    fn request(&self) -> CreateToken {
        CreateToken {
            role: self.role.into(),
            environments: self.environments.clone(),
            label: self.label.clone(),
            expires_in_secs: self.expires_in,
            source_cidrs: self.sources.clone(),
            max_uses: self.max_uses,
        }
    }
}

/// One line per token, in columns.
fn table(tokens: &[TokenEntry], now: u64) -> Vec<String> {
    let mut rows = vec![
        ["ID", "ROLE", "STATE", "ENDS", "USES", "ENVIRONMENTS", "FROM", "LABEL"].map(str::to_owned),
    ];
    rows.extend(tokens.iter().map(|token| row(token, now)));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.into_iter().map(|row| line(row.into())).collect()
}

fn row(token: &TokenEntry, now: u64) -> [String; 8] {
    let role = match &token.enrolled_by {
        Some(join) => format!("{} (joined by {join})", token.role),
        None => token.role.to_string(),
    };
    let ends = match token.expires_at_unix_secs {
        None => "never".to_owned(),
        Some(end) if end <= now => format!("{} ago", span(now - end)),
        Some(end) => format!("in {}", span(end - now)),
    };
    let uses = match (token.uses, token.max_uses) {
        (Some(uses), Some(max)) => format!("{uses}/{max}"),
        _ => "-".to_owned(),
    };
    let from = match token.source_cidrs.as_slice() {
        [] => "anywhere".to_owned(),
        cidrs => cidrs.join(","),
    };
    [
        token.id.clone(),
        role,
        state(token, now).to_owned(),
        ends,
        uses,
        token.environments.clone(),
        from,
        token.label.clone(),
    ]
}

fn state(token: &TokenEntry, now: u64) -> &'static str {
    if token.revoked_at_unix_secs.is_some() {
        "revoked"
    } else if token.expires_at_unix_secs.is_some_and(|end| end <= now) {
        "expired"
    } else if token.max_uses.is_some_and(|max| token.uses.unwrap_or(0) >= max) {
        "used up"
    } else if token.previous_secret_until_unix_secs.is_some_and(|until| now < until) {
        "rotating"
    } else {
        "active"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> TokenEntry {
        TokenEntry {
            id: "00112233aabbccdd".to_owned(),
            role: Role::Executor,
            environments: "dev-*".to_owned(),
            label: "a note".to_owned(),
            created_at_unix_secs: 0,
            expires_at_unix_secs: None,
            revoked_at_unix_secs: None,
            source_cidrs: Vec::new(),
            max_uses: None,
            uses: None,
            rotated_at_unix_secs: None,
            previous_secret_until_unix_secs: None,
            enrolled_by: None,
        }
    }

    #[test]
    fn token_row_shows_its_restrictions() {
        let bounded = TokenEntry {
            role: Role::Join,
            expires_at_unix_secs: Some(1000 + 90_000),
            source_cidrs: vec!["10.0.0.0/8".to_owned(), "::1/128".to_owned()],
            max_uses: Some(5),
            uses: Some(2),
            ..entry()
        };
        let lines = table(&[entry(), bounded], 1000);
        let lines: Vec<Vec<&str>> = lines
            .iter()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        let id = "00112233aabbccdd";
        assert_eq!(
            lines[1],
            [id, "executor", "active", "never", "-", "dev-*", "anywhere", "a note"]
        );
        let from = "10.0.0.0/8,::1/128";
        assert_eq!(lines[2], [id, "join", "active", "in 1d1h", "2/5", "dev-*", from, "a note"]);
    }

    #[test]
    fn state_names_the_first_reason_for_refusal() {
        let used = TokenEntry { max_uses: Some(1), uses: Some(1), ..entry() };
        let expired = TokenEntry { expires_at_unix_secs: Some(10), ..used.clone() };
        let revoked = TokenEntry { revoked_at_unix_secs: Some(5), ..expired.clone() };
        let rotating = TokenEntry { previous_secret_until_unix_secs: Some(11), ..entry() };
        for (token, word) in [
            (entry(), "active"),
            (rotating, "rotating"),
            (used, "used up"),
            (expired, "expired"),
            (revoked, "revoked"),
        ] {
            assert_eq!(state(&token, 10), word);
        }
    }
}
