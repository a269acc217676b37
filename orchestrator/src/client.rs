//! The way in: registry, websocket, handshake, session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_endpoint::{Config, Connect, Grace, Identity, IdentitySeed, Mux};
use rendez_proto::ids::{EnvironmentId, StreamId};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::registry::ConnectReply;
use rendez_proto::rpc::session::{ClientExtensions, Initialize, Initialized};
use rendez_rpc::{Caller, Endpoint};
use secrecy::SecretString;
use tokio::time::timeout;

use crate::error::ConnectError;
use crate::events::Events;
use crate::executor::{Executor, Timings};
use crate::link::Link;
use crate::random::random;
use crate::registry::RegistryClient;
use crate::route::Route;

/// Ours first; the Codex profile for stock executors.
pub const DEFAULT_PROFILES: [Profile; 2] = [Profile::RendezHybridIkV1, Profile::NoiseHybridIkV1];
/// How long the executor may take to open a session. Codex, WIRE.md section 4.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to executors through one relay.
///
/// A client has one static key, made when it is: executors' registries
/// authorize that key for each connection.
pub struct Client {
    route: Arc<Route>,
    grace: Grace,
}

impl Client {
    /// A client of the relay at `relay`, such as `https://relay.example.com`.
    ///
    /// # Errors
    /// The URL is not usable, or the system gives no randomness or trust store.
    pub fn new(relay: &str, token: SecretString) -> Result<Self, ConnectError> {
        Self::with_profiles(relay, token, DEFAULT_PROFILES.to_vec())
    }

    /// The same, accepting these profiles only, best first.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn with_profiles(
        relay: &str,
        token: SecretString,
        profiles: Vec<Profile>,
    ) -> Result<Self, ConnectError> {
        let registry = RegistryClient::new(relay, token)?;
        let identity = Identity::from_seed(&IdentitySeed::from_bytes(random()?));
        let route = Arc::new(Route { registry, identity, profiles });
        Ok(Self { route, grace: Grace::default() })
    }

    /// Connections wait this long for a lost path before they give up.
    #[must_use]
    pub fn with_grace(mut self, grace: Grace) -> Self {
        self.grace = grace;
        self
    }

    /// Its static key, which executors see.
    pub fn public_key(&self) -> &PublicKey {
        self.route.identity.public()
    }

    /// The registry's other calls.
    pub fn registry(&self) -> &RegistryClient {
        &self.route.registry
    }

    /// Connects to the executor of `environment`. May be called again at any
    /// time; connections are independent.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub async fn connect(&self, environment: &EnvironmentId) -> Result<Executor, ConnectError> {
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();
        let reply = self.route.ask(environment).await?;
        let ask = lap();
        let socket = self.route.dial(&reply).await?;
        let dial = lap();
        let profile = reply.security_profile;
        let identity = self.route.identity.clone();
        let mut config = Config::orchestrator(identity, environment.clone());
        config.profiles = self.route.profiles.clone();
        config.limits.grace = self.grace.get();
        let endpoint = Endpoint::new(Mux::new(config, random()?));
        let link = Link::start(self.route.clone(), endpoint.clone(), &reply, socket);
        let channel = endpoint.connect(stream_to(&reply)?).await?;
        let handshake = lap();
        tracing::debug!(%environment, %profile, "stream open");

        let events = Events::default();
        let caller = Caller::new(channel, events.clone());
        let hello = Initialize {
            client_name: "rendez".into(),
            resume_session_id: None,
            rendez: Some(ClientExtensions {
                max_chunk: limits::PROCESS_CHUNK_LARGE_MAX_BYTES as u64,
            }),
        };
        let session = timeout(SESSION_TIMEOUT, caller.call::<Initialize>(&hello))
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(ConnectError::Session)?;
        caller.notify(&Initialized {}).await.map_err(ConnectError::Session)?;
        let timings = Timings { ask, dial, handshake, session: lap() };
        Ok(Executor::new(link, caller, events, session, profile, timings))
    }
}

fn stream_to(reply: &ConnectReply) -> Result<Connect, ConnectError> {
    Ok(Connect {
        stream: StreamId::from_random(random()?),
        profile: reply.security_profile,
        registration: reply.executor_registration_id.clone(),
        peer: reply.executor_public_key.clone(),
        authorization: Bytes::copy_from_slice(reply.harness_key_authorization.expose().as_bytes()),
    })
}
