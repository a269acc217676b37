//! A registry to administer: one that is asked over HTTP, or the state
//! directory of a relay, which may run meanwhile.

use std::path::{Path, PathBuf};

use rendez_orchestrator::EnvironmentId;
use rendez_proto::audit::AuditPage;
use rendez_proto::registry::admin::{CreateToken, RotateToken, TokenCreated, TokenEntry};
use rendez_registry::model::Subject;
use rendez_registry::{DATABASE_FILE, Options, Registry};
use rendez_registry_client::{AdminClient, RegistryError};

use crate::exit::Exit;
use crate::output::note;
use crate::relay_options::{Purpose, RelayOptions};

/// Options of every command that administers a relay.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AdminOptions {
    #[command(flatten)]
    relay: RelayOptions,

    /// Work on this state directory of a relay instead of asking one; needs no
    /// token, and the relay may run meanwhile
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Whether a state directory may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateDirectory {
    /// It is made if it is missing.
    CreateIfMissing,
    /// It must be there: a misspelt name must not make an empty one.
    Existing,
}

/// A registry to administer.
pub(crate) enum AdminAccess {
    Remote(Box<AdminClient>),
    Local(Registry),
}

impl AdminOptions {
    /// The registry that these options name.
    pub(crate) async fn open(&self, state: StateDirectory) -> Result<AdminAccess, Exit> {
        match &self.state {
            None => {
                Ok(AdminAccess::Remote(Box::new(self.relay.admin_client(Purpose::Administer)?)))
            }
            Some(directory) => Ok(AdminAccess::Local(open_local(directory, state).await?)),
        }
    }

    /// How to reach the relay.
    pub(crate) fn relay(&self) -> &RelayOptions {
        &self.relay
    }

    /// The same options for the relay at `url`.
    pub(crate) fn at(self, url: String) -> Self {
        Self { relay: self.relay.at(url), ..self }
    }
}

/// Opens the registry in a relay's state directory. One that is there is never
/// brought up to date: an older relay may be running on it.
async fn open_local(directory: &Path, state: StateDirectory) -> Result<Registry, Exit> {
    if state == StateDirectory::CreateIfMissing && !directory.join(DATABASE_FILE).exists() {
        let made = Registry::open(directory, Options::default()).await?;
        // the name may be misspelt, and a relay elsewhere
        note(format_args!("made a new database in {}", directory.display()));
        return Ok(made);
    }
    Ok(Registry::attach(directory, Options::default()).await?)
}

/// What is told in place of "not found", which is the right answer to a wrong
/// name and the wrong one to everything else.
pub(crate) fn map_not_found(error: RegistryError, missing: fn(String) -> Exit) -> Exit {
    match error {
        RegistryError::NotFound(message) => missing(message),
        error => error.into(),
    }
}

/// Every relay has tokens, if not for whoever asks at this address.
fn not_served(message: String) -> Exit {
    Exit::usage(format!("{message}; ask that one, or use --state beside the relay"))
}

impl AdminAccess {
    pub(crate) async fn create_token(&self, new: &CreateToken) -> Result<TokenCreated, Exit> {
        match self {
            AdminAccess::Remote(client) => {
                let created = client.create_token(new).await;
                created.map_err(|error| map_not_found(error, not_served))
            }
            AdminAccess::Local(registry) => Ok(registry.tokens().create(None, new).await?),
        }
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<TokenEntry>, Exit> {
        let registry = match self {
            AdminAccess::Remote(client) => {
                let tokens = client.tokens().await;
                return tokens.map_err(|error| map_not_found(error, not_served));
            }
            AdminAccess::Local(registry) => registry,
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
            AdminAccess::Remote(client) => {
                let rotated = client.rotate_token(id.as_str(), request).await;
                rotated.map_err(|error| map_not_found(error, Exit::usage))
            }
            AdminAccess::Local(registry) => Ok(registry.tokens().rotate(None, id, request).await?),
        }
    }

    pub(crate) async fn revoke_token(&self, subject: &Subject) -> Result<(), Exit> {
        let registry = match self {
            AdminAccess::Remote(client) => {
                let revoked = client.revoke_token(&subject.to_string()).await;
                return revoked.map_err(|error| map_not_found(error, Exit::usage));
            }
            AdminAccess::Local(registry) => registry,
        };
        let found = registry.tokens().revoke(None, subject).await?;
        if found { Ok(()) } else { Err(Exit::usage("there is no such token")) }
    }

    pub(crate) async fn revoke_environment(&self, id: &EnvironmentId) -> Result<(), Exit> {
        let registry = match self {
            AdminAccess::Remote(client) => {
                let revoked = client.revoke_environment(id).await;
                return revoked.map_err(|error| map_not_found(error, Exit::unknown_environment));
            }
            AdminAccess::Local(registry) => registry,
        };
        let found = registry.environments().revoke(None, id).await?;
        let unknown =
            || Exit::unknown_environment("no executor ever registered in this environment");
        if found { Ok(()) } else { Err(unknown()) }
    }

    pub(crate) async fn end_registration(&self, id: &EnvironmentId) -> Result<(), Exit> {
        let registry = match self {
            AdminAccess::Remote(client) => {
                let ended = client.end_registration(id).await;
                return ended.map_err(|error| map_not_found(error, Exit::unknown_environment));
            }
            AdminAccess::Local(registry) => registry,
        };
        let unknown = || Exit::unknown_environment("the environment has no registration");
        registry.registrations().end(None, id).await?.map(drop).ok_or_else(unknown)
    }

    /// The audit log's rows after number `after`, one page of them.
    pub(crate) async fn audit(&self, after: u64) -> Result<AuditPage, Exit> {
        match self {
            AdminAccess::Remote(client) => {
                let page = client.audit(after).await;
                page.map_err(|error| map_not_found(error, not_served))
            }
            AdminAccess::Local(registry) => Ok(registry.audit().page(after).await?),
        }
    }
}
