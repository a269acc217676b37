//! Which relay, and with which token.
//!
//! Flags win over the environment (`RENDEZ_RELAY`, `RENDEZ_TOKEN`), and that
//! over a running `rendez dev`, which leaves its address and throw-away tokens
//! in a file that only its user can read.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rendez_orchestrator::{Client, SecretString};
use rendez_program::tls_args::TlsArgs;
use rendez_program::token::TokenArgs;
use rendez_registry_client::AdminClient;
use serde::{Deserialize, Serialize};

use crate::exit::Exit;
use crate::out::tell;
use crate::sys;

/// How long a relay on this machine may take to be there.
const ALIVE_WITHIN: Duration = Duration::from_secs(1);

/// Options of every command that talks to a relay.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RelayOptions {
    /// The relay's URL. Default: the one of a `rendez dev` that runs here
    #[arg(long, env = "RENDEZ_RELAY", value_name = "URL")]
    relay: Option<String>,

    #[command(flatten)]
    token: TokenArgs,

    #[command(flatten)]
    tls: TlsArgs,
}

/// What a token is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To reach executors.
    Orchestrate,
    /// To administer the relay.
    Administer,
}

/// What `rendez dev` leaves for the other commands.
#[derive(Serialize, Deserialize)]
pub(crate) struct DevContext {
    /// The relay's URL.
    pub(crate) relay: String,
    /// For reaching its executor.
    pub(crate) orchestrator_token: String,
    /// For administering it.
    pub(crate) admin_token: String,
}

impl RelayOptions {
    /// An orchestrator at the relay and with the token that these options name.
    pub(crate) fn client(&self) -> Result<Client, Exit> {
        let (relay, token) = self.resolve(Purpose::Orchestrate)?;
        self.tls.configure().map_err(Exit::config)?;
        let client = Client::new(&relay, token)?;
        if client.is_exposed() {
            warn_of_exposure(&relay);
        }
        Ok(client)
    }

    /// An orchestrator with another token at the same relay.
    pub(crate) fn client_with(&self, token: SecretString) -> Result<Client, Exit> {
        self.tls.configure().map_err(Exit::config)?;
        Ok(Client::new(&self.url()?, token)?)
    }

    /// A client of the administrative calls.
    pub(crate) fn admin_client(&self, purpose: Purpose) -> Result<AdminClient, Exit> {
        let (relay, token) = self.resolve(purpose)?;
        self.tls.configure().map_err(Exit::config)?;
        let client = AdminClient::new(&relay, token)?;
        if client.is_exposed() {
            warn_of_exposure(&relay);
        }
        Ok(client)
    }

    /// The same with another token at the same relay.
    pub(crate) fn admin_client_with(&self, token: SecretString) -> Result<AdminClient, Exit> {
        self.tls.configure().map_err(Exit::config)?;
        Ok(AdminClient::new(&self.url()?, token)?)
    }

    /// The relay's URL.
    pub(crate) fn url(&self) -> Result<String, Exit> {
        let dev = || DevContext::load().map(|dev| dev.relay);
        self.relay.clone().or_else(dev).ok_or_else(which_relay)
    }

    /// The same options for the relay at `url`.
    pub(crate) fn at(self, url: String) -> Self {
        Self { relay: Some(url), ..self }
    }

    fn resolve(&self, purpose: Purpose) -> Result<(String, SecretString), Exit> {
        let given = self.token.read(|name| std::env::var(name).ok()).map_err(Exit::no_token)?;
        match (&self.relay, given) {
            (Some(relay), Some(token)) => Ok((relay.clone(), token)),
            (Some(_), None) => Err(Exit::no_token(
                "no token; set RENDEZ_TOKEN or --token-file (see `rendez token create --help`)",
            )),
            (None, given) => {
                let Some(dev) = DevContext::load() else {
                    return Err(which_relay());
                };
                let own = match purpose {
                    Purpose::Orchestrate => dev.orchestrator_token,
                    Purpose::Administer => dev.admin_token,
                };
                Ok((dev.relay, given.unwrap_or_else(|| own.into())))
            }
        }
    }
}

fn which_relay() -> Exit {
    Exit::usage("which relay? Set RENDEZ_RELAY and RENDEZ_TOKEN, or start `rendez dev`")
}

fn warn_of_exposure(relay: &str) {
    tell(format_args!("rendez: warning: the token goes to {relay} without TLS"));
}

impl DevContext {
    fn path() -> PathBuf {
        sys::runtime_directory().join("dev.json")
    }

    /// Writes the context; the guard removes it.
    pub(crate) fn publish(&self) -> std::io::Result<Published> {
        let directory = sys::runtime_directory();
        sys::make_private_directory(&directory)?;
        let earlier = Self::load();
        self.write(&directory)?;
        Ok(Published { directory, relay: self.relay.clone(), earlier })
    }

    fn write(&self, directory: &Path) -> std::io::Result<()> {
        let draft = directory.join(format!("dev.json.{}", std::process::id()));
        let mut file = sys::create_private_file(&draft)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&draft, Self::path())
    }

    /// Whether its relay is still there: it is on this machine.
    fn is_alive(&self) -> bool {
        let address = self.relay.strip_prefix("http://").and_then(|at| at.parse().ok());
        address.is_some_and(|at| TcpStream::connect_timeout(&at, ALIVE_WITHIN).is_ok())
    }

    fn load() -> Option<Self> {
        // Somebody else's file could send our commands to their relay.
        if !sys::is_private_directory(&sys::runtime_directory()) {
            return None;
        }
        serde_json::from_slice(&fs::read(Self::path()).ok()?).ok()
    }
}

/// Removes the context when `rendez dev` ends, and brings back the one of an earlier
/// `rendez dev` that still runs.
pub(crate) struct Published {
    directory: PathBuf,
    relay: String,
    earlier: Option<DevContext>,
}

impl Drop for Published {
    fn drop(&mut self) {
        // Unless a later `rendez dev` has put its own there.
        if DevContext::load().is_some_and(|context| context.relay == self.relay) {
            let earlier = self.earlier.take().filter(DevContext::is_alive);
            if earlier.is_none_or(|earlier| earlier.write(&self.directory).is_err()) {
                let _ = fs::remove_file(DevContext::path());
            }
        }
    }
}
