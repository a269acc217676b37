//! The way in: registry, websocket, handshake, session.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::{Config, Connect, Identity, IdentitySeed, Mux};
use rendez_proto::ids::{EnvironmentId, StreamId};
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::registry::{ConnectReply, ConnectRequest, Profiles};
use rendez_proto::rpc::session::{ClientExtensions, Initialize, Initialized};
use rendez_rpc::{Caller, Endpoint};
use rendez_transport::dial::{DialledSocket, dial};
use secrecy::SecretString;
use tokio::time::timeout;

use crate::error::{ConnectError, RegistryError};
use crate::events::Events;
use crate::executor::Executor;
use crate::link::Link;
use crate::registry::RegistryClient;

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
        Ok(Self { route: Arc::new(Route { registry, identity, profiles }) })
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
        let reply = self.route.ask(environment).await?;
        let socket = self.route.dial(&reply).await?;
        let profile = reply.security_profile;
        let identity = self.route.identity.clone();
        let config = Config {
            profiles: self.route.profiles.clone(),
            ..Config::orchestrator(identity, environment.clone())
        };
        let endpoint = Endpoint::new(Mux::new(config, random()?));
        let link = Link::start(self.route.clone(), endpoint.clone(), &reply, socket);
        let channel = endpoint.connect(stream_to(&reply)?).await?;
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
        Ok(Executor::new(link, caller, events, session, profile))
    }
}

/// How executors are found and reached, first and again.
pub(crate) struct Route {
    registry: RegistryClient,
    identity: Identity,
    profiles: Vec<Profile>,
}

impl Route {
    /// Asks the registry for a ticket, and checks that it answers the question.
    pub(crate) async fn ask(
        &self,
        environment: &EnvironmentId,
    ) -> Result<ConnectReply, ConnectError> {
        let request = ConnectRequest {
            harness_public_key: self.identity.public().clone(),
            rendez: Some(Profiles { profiles: self.profiles.clone() }),
        };
        let reply = self.registry.connect(environment, &request).await?;
        if reply.environment_id != *environment {
            let what = format!("it connects to {} instead of {environment}", reply.environment_id);
            return Err(RegistryError::Malformed(what).into());
        }
        let offered = reply.rendez.as_ref().map_or(&[][..], |offer| &offer.profiles);
        match best(&self.profiles, offered, reply.security_profile) {
            Some(best) if best == reply.security_profile => Ok(reply),
            _ => Err(ConnectError::Downgrade(reply.security_profile)),
        }
    }

    /// Opens the websocket that a ticket is for.
    pub(crate) async fn dial(&self, reply: &ConnectReply) -> Result<DialledSocket, ConnectError> {
        Ok(dial(reply.url.expose()).await?)
    }
}

/// Of the profiles that we accept, the first one that the executor offers, or
/// that the registry chose.
fn best(accepted: &[Profile], offered: &[Profile], chosen: Profile) -> Option<Profile> {
    accepted.iter().copied().find(|profile| offered.contains(profile) || *profile == chosen)
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

/// Bytes of the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], ConnectError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| ConnectError::NoRandomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worse_profile_than_both_ends_know_is_a_downgrade() {
        use Profile::{NoiseHybridIkV1 as Codex, RendezHybridIkV1 as Ours, RendezIkV1 as Ik};
        let accepted = [Ours, Codex];
        assert_eq!(best(&accepted, &[Codex, Ours], Ours), Some(Ours));
        assert_eq!(best(&accepted, &[Codex, Ours], Codex), Some(Ours));
        assert_eq!(best(&accepted, &[Codex], Codex), Some(Codex));
        assert_eq!(best(&accepted, &[], Codex), Some(Codex), "a stock registry");
        assert_eq!(best(&accepted, &[], Ik), None);
    }
}
