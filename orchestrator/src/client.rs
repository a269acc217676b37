//! Creates connections: registry, websocket, handshake, session.

use std::sync::Arc;

use rendez_endpoint::{Grace, Identity, IdentitySeed};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_registry_client::OrchestratorClient;
use secrecy::SecretString;

use crate::connector::Connector;
use crate::environment::Environment;
use crate::error::ConnectError;
use crate::event_dispatcher::EventDispatcher;
use crate::random::random;
use crate::relay_endpoint::RelayEndpoint;

/// The accepted profiles, best first: our own, and the Codex profile for stock
/// executors.
pub const DEFAULT_PROFILES: [Profile; 2] = [Profile::RendezHybridIkV1, Profile::NoiseHybridIkV1];

/// Connects to executors through one relay.
///
/// A client has one static key, generated with it. The registry authorizes that
/// key for each connection.
pub struct Client {
    relay: Arc<RelayEndpoint>,
    grace: Grace,
}

impl Client {
    /// Creates a client of the relay at `relay`, such as
    /// `https://relay.example.com`.
    ///
    /// # Errors
    /// The URL or the token is invalid, or the system provides no trust store or
    /// no randomness.
    pub fn new(relay: &str, token: SecretString) -> Result<Self, ConnectError> {
        Self::with_profiles(relay, token, DEFAULT_PROFILES.to_vec())
    }

    /// Creates a client that accepts only these profiles, best first.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn with_profiles(
        relay: &str,
        token: SecretString,
        profiles: Vec<Profile>,
    ) -> Result<Self, ConnectError> {
        let registry = OrchestratorClient::new(relay, token)?;
        let identity = Identity::from_seed(&IdentitySeed::from_bytes(random()?));
        let relay = Arc::new(RelayEndpoint { registry, identity, profiles });
        Ok(Self { relay, grace: Grace::default() })
    }

    /// Sets how long a connection tries to reconnect before it is lost.
    #[must_use]
    pub fn with_grace(mut self, grace: Grace) -> Self {
        self.grace = grace;
        self
    }

    /// Returns the client's static public key, which executors see.
    pub fn public_key(&self) -> &PublicKey {
        self.relay.identity.public()
    }

    /// Whether the token crosses a network unencrypted: the relay is on another
    /// machine and its URL is `http://`.
    pub fn sends_cleartext(&self) -> bool {
        self.relay.registry.sends_cleartext()
    }

    /// Connects to the executor of `environment`. Each call opens a connection of
    /// its own.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, environment: &EnvironmentId) -> Result<Environment, ConnectError> {
        let connector = Connector {
            relay: self.relay.clone(),
            environment: environment.clone(),
            grace: self.grace,
        };
        let events = EventDispatcher::new(false);
        let connected = connector.connect(&events, None, 0).await?;
        Ok(Environment::new(connected, connector, events))
    }
}
