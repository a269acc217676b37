//! The relay and the token that a command uses.
//!
//! Precedence: flags, then the environment (`RENDEZ_RELAY`, `RENDEZ_TOKEN`),
//! then a running `rendez dev`, which leaves its address and temporary tokens
//! in a file that only its user can read.

use rendez_orchestrator::{Client, SecretString};
use rendez_program::tls_args::TlsArgs;
use rendez_program::token::TokenArgs;
use rendez_registry_client::AdminClient;

use crate::dev::DevContext;
use crate::exit::Exit;
use crate::output::note;

/// The options of every command that connects to a relay.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RelayOptions {
    /// The relay's URL [default: the running `rendez dev` of this user]
    #[arg(long, env = "RENDEZ_RELAY", value_name = "URL")]
    relay: Option<String>,

    #[command(flatten)]
    token: TokenArgs,

    #[command(flatten)]
    tls: TlsArgs,
}

/// The use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To reach executors.
    Orchestrate,
    /// To administer the relay.
    Administer,
}

impl RelayOptions {
    /// An orchestrator at the relay and with the token that these options name.
    pub(crate) fn client(&self) -> Result<Client, Exit> {
        let (relay, token) = self.resolve(Purpose::Orchestrate)?;
        self.tls.configure().map_err(Exit::config)?;
        let client = Client::new(&relay, token)?;
        if client.sends_cleartext() {
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
        if client.sends_cleartext() {
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
        self.relay.clone().or_else(dev).ok_or_else(no_relay)
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
                "no token: set RENDEZ_TOKEN or --token-file (see `rendez token create --help`)",
            )),
            (None, given) => {
                let Some(dev) = DevContext::load() else {
                    return Err(no_relay());
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

fn no_relay() -> Exit {
    Exit::usage("no relay is given: set RENDEZ_RELAY and RENDEZ_TOKEN, or start `rendez dev`")
}

fn warn_of_exposure(relay: &str) {
    note(format_args!("rendez: warning: the token is sent to {relay} over plain HTTP"));
}
