//! A registry to administer: over HTTP, or in the state directory of a relay. That
//! relay may be running.

use std::path::{Path, PathBuf};

use rendez_orchestrator::EnvironmentId;
use rendez_proto::audit::AuditPage;
use rendez_proto::registry::admin::{CreateToken, RotateToken, TokenCreated, TokenEntry};
use rendez_registry::model::Subject;
use rendez_registry::{DATABASE_FILE, Options, Registry};
use rendez_registry_client::{AdminClient, RegistryError};

use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;
use crate::out::tell;

/// The options of commands that administer a relay.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AdminOptions {
    #[command(flatten)]
    relay: RelayOptions,

    /// Use this state directory of a relay instead of its API. Needs no token; the
    /// relay may be running
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Whether a command may create the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateDirectory {
    /// A missing directory is created.
    MayCreate,
    /// The directory must exist: a misspelt name must not create an empty one.
    Existing,
}

/// A registry to administer.
pub(crate) enum Admin {
    Remote(Box<AdminClient>),
    Local(Registry),
}

impl AdminOptions {
    /// Opens the registry that these options name.
    pub(crate) async fn open(&self, state: StateDirectory) -> Result<Admin, Exit> {
        match &self.state {
            None => Ok(Admin::Remote(Box::new(self.relay.admin_client(Purpose::Administer)?))),
            Some(directory) => Ok(Admin::Local(open_state(directory, state).await?)),
        }
    }

    /// Returns the options for reaching the relay.
    pub(crate) fn relay(&self) -> &RelayOptions {
        &self.relay
    }

    /// Returns the same options for the relay at `url`.
    pub(crate) fn at(self, url: String) -> Self {
        Self { relay: self.relay.at(url), ..self }
    }
}

/// Opens the registry in a relay's state directory. This never migrates an existing
/// database, because an older relay may be using it.
async fn open_state(directory: &Path, state: StateDirectory) -> Result<Registry, Exit> {
    if state == StateDirectory::MayCreate && !directory.join(DATABASE_FILE).exists() {
        let made = Registry::open(directory, Options::default()).await?;
        // The user sees this if the name is misspelt and the relay uses another one.
        tell(format_args!("created a new database in {}", directory.display()));
        return Ok(made);
    }
    Ok(Registry::attach(directory, Options::default()).await?)
}

/// Replaces a "not found" error by what the command makes of it. Other errors keep
/// their exit code.
pub(crate) fn map_not_found(error: RegistryError, missing: fn(String) -> Exit) -> Exit {
    match error {
        RegistryError::NotFound(message) => missing(message),
        error => error.into(),
    }
}

/// The error for a relay that serves administrative calls only at another address.
fn not_served(message: String) -> Exit {
    Exit::usage(format!("{message}; ask that one, or use --state beside the relay"))
}

impl Admin {
    pub(crate) async fn create_token(&self, new: &CreateToken) -> Result<TokenCreated, Exit> {
        match self {
            Admin::Remote(client) => {
                let created = client.create_token(new).await;
                created.map_err(|error| map_not_found(error, not_served))
            }
            Admin::Local(registry) => Ok(registry.tokens().create(None, new).await?),
        }
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<TokenEntry>, Exit> {
        let registry = match self {
            Admin::Remote(client) => {
                let tokens = client.tokens().await;
                return tokens.map_err(|error| map_not_found(error, not_served));
            }
            Admin::Local(registry) => registry,
        };
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = registry.tokens().list(after.as_ref()).await?;
            all.extend(page.tokens);
            after = page.next.and_then(|next| next.parse().ok());
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn rotate_token(
        &self,
        subject: &Subject,
        request: &RotateToken,
    ) -> Result<TokenCreated, Exit> {
        let Subject::Token(id) = subject else {
            return Err(Exit::usage("only tokens of the relay itself can be rotated"));
        };
        match self {
            Admin::Remote(client) => {
                let rotated = client.rotate_token(id.as_str(), request).await;
                rotated.map_err(|error| map_not_found(error, Exit::usage))
            }
            Admin::Local(registry) => Ok(registry.tokens().rotate(None, id, request).await?),
        }
    }

    pub(crate) async fn revoke_token(&self, subject: &Subject) -> Result<(), Exit> {
        let registry = match self {
            Admin::Remote(client) => {
                let revoked = client.revoke_token(&subject.to_string()).await;
                return revoked.map_err(|error| map_not_found(error, Exit::usage));
            }
            Admin::Local(registry) => registry,
        };
        let found = registry.tokens().revoke(None, subject).await?;
        if found { Ok(()) } else { Err(Exit::usage("there is no such token")) }
    }

    pub(crate) async fn revoke_environment(&self, id: &EnvironmentId) -> Result<(), Exit> {
        let registry = match self {
            Admin::Remote(client) => {
                let revoked = client.revoke_environment(id).await;
                return revoked.map_err(|error| map_not_found(error, Exit::unknown_environment));
            }
            Admin::Local(registry) => registry,
        };
        let found = registry.environments().revoke(None, id).await?;
        let unknown =
            || Exit::unknown_environment("no executor ever registered in this environment");
        if found { Ok(()) } else { Err(unknown()) }
    }

    pub(crate) async fn end_registration(&self, id: &EnvironmentId) -> Result<(), Exit> {
        let registry = match self {
            Admin::Remote(client) => {
                let ended = client.end_registration(id).await;
                return ended.map_err(|error| map_not_found(error, Exit::unknown_environment));
            }
            Admin::Local(registry) => registry,
        };
        let unknown = || Exit::unknown_environment("the environment has no registration");
        registry.registrations().end(None, id).await?.map(drop).ok_or_else(unknown)
    }

    /// Returns the page of the audit log that follows row number `after`.
    pub(crate) async fn audit(&self, after: u64) -> Result<AuditPage, Exit> {
        match self {
            Admin::Remote(client) => {
                let page = client.audit(after).await;
                page.map_err(|error| map_not_found(error, not_served))
            }
            Admin::Local(registry) => Ok(registry.audit().page(after).await?),
        }
    }
}
