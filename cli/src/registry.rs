//! A registry to administer: one that is asked over HTTP, or the state
//! directory of a relay, which may run meanwhile.

use std::path::PathBuf;

use rendez_orchestrator::{Client, EnvironmentId};
use rendez_proto::registry::admin::{CreateToken, RotateToken, TokenCreated, TokenEntry};
use rendez_registry::model::Subject;
use rendez_registry::service::DATABASE_FILE;
use rendez_registry::{Options, Registry};

use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;

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
pub(crate) enum State {
    /// It is made if it is missing.
    New,
    /// It must be there: a misspelt name must not make an empty one.
    Existing,
}

/// A registry to administer.
pub(crate) enum Admin {
    Remote(Box<Client>),
    Local(Registry),
}

impl AdminOptions {
    /// The registry that these options name.
    pub(crate) async fn open(&self, state: State) -> Result<Admin, Exit> {
        let Some(directory) = &self.state else {
            return Ok(Admin::Remote(Box::new(self.relay.client(Purpose::Administer)?)));
        };
        if state == State::Existing && !directory.join(DATABASE_FILE).exists() {
            let directory = directory.display();
            return Err(Exit::config(format!("{directory}: this is no state of a relay")));
        }
        let registry = Registry::open(directory, Options::default()).await;
        Ok(Admin::Local(registry.map_err(Exit::config)?))
    }
}

impl Admin {
    pub(crate) async fn create_token(&self, new: &CreateToken) -> Result<TokenCreated, Exit> {
        match self {
            Admin::Remote(client) => Ok(client.registry().create_token(new).await?),
            Admin::Local(registry) => registry.create_token(new).await.map_err(Exit::usage),
        }
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<TokenEntry>, Exit> {
        let registry = match self {
            Admin::Remote(client) => return Ok(client.registry().tokens().await?),
            Admin::Local(registry) => registry,
        };
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = registry.list_tokens(after.as_ref()).await.map_err(Exit::config)?;
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
                Ok(client.registry().rotate_token(id.as_str(), request).await?)
            }
            Admin::Local(registry) => {
                registry.rotate_token(None, id, request).await.map_err(Exit::usage)
            }
        }
    }

    pub(crate) async fn revoke_token(&self, subject: &Subject) -> Result<(), Exit> {
        let registry = match self {
            Admin::Remote(client) => {
                return Ok(client.registry().revoke_token(&subject.to_string()).await?);
            }
            Admin::Local(registry) => registry,
        };
        let found = registry.revoke(None, subject).await.map_err(Exit::config)?;
        if found { Ok(()) } else { Err(Exit::usage("there is no such token")) }
    }

    pub(crate) async fn revoke_environment(&self, id: &EnvironmentId) -> Result<(), Exit> {
        let registry = match self {
            Admin::Remote(client) => return Ok(client.registry().revoke_environment(id).await?),
            Admin::Local(registry) => registry,
        };
        let found = registry.revoke_environment(None, id).await.map_err(Exit::config)?;
        if found { Ok(()) } else { Err(Exit::usage("nobody registered this environment")) }
    }

    pub(crate) async fn end_registration(&self, id: &EnvironmentId) -> Result<(), Exit> {
        let registry = match self {
            Admin::Remote(client) => return Ok(client.registry().end_registration(id).await?),
            Admin::Local(registry) => registry,
        };
        let ended = registry.end_registration(None, id).await.map_err(Exit::config)?;
        ended.map(drop).ok_or_else(|| Exit::usage("the environment has no registration"))
    }
}
