//! Access to the registry that a command administers: over HTTP, or through the
//! state directory of a relay, which may be running.

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

/// The options of every command that administers a relay.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AdminOptions {
    #[command(flatten)]
    relay: RelayOptions,

    /// Use a relay's state directory on this machine instead of HTTP. Needs no
    /// token; the relay may be running
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Whether a state directory may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateDirectory {
    /// It is created if it is missing.
    CreateIfMissing,
    /// It must exist: a misspelt name must not create an empty one.
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

    /// The options for connecting to the relay.
    pub(crate) fn relay(&self) -> &RelayOptions {
        &self.relay
    }

    /// The same options for the relay at `url`.
    pub(crate) fn at(self, url: String) -> Self {
        Self { relay: self.relay.at(url), ..self }
    }
}

/// Opens the registry in a relay's state directory. An existing database is never
/// migrated: an older relay may be running on it.
async fn open_local(directory: &Path, state: StateDirectory) -> Result<Registry, Exit> {
    if state == StateDirectory::CreateIfMissing && !directory.join(DATABASE_FILE).exists() {
        let made = Registry::open(directory, Options::default()).await?;
        // Print the path: it may be misspelt, and the relay's state elsewhere.
        note(format_args!("created a new database in {}", directory.display()));
        return Ok(made);
    }
    Ok(Registry::attach(directory, Options::default()).await?)
}

/// Replaces the error "not found" by that of `missing`: a name may be unknown,
/// or the address may not serve the call.
pub(crate) fn map_not_found(error: RegistryError, missing: fn(String) -> Exit) -> Exit {
    match error {
        RegistryError::NotFound(message) => missing(message),
        error => error.into(),
    }
}

/// The error for a call that this address does not serve.
fn not_served(message: String) -> Exit {
    Exit::usage(format!("{message}; use that address, or --state on the relay's machine"))
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
            return Err(Exit::usage("only the relay's own tokens can be rotated"));
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
            || Exit::unknown_environment("no executor has registered in this environment");
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

    /// One page of the audit log: the rows after number `after`.
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
