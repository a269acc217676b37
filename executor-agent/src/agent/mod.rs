//! An agent from its start to its end.
//!
//! ```text
//! lifecycle   the work of each phase: register, dial, serve, back off
//!   phase     which phase follows which outcome (pure)
//! ```
//!
//! Streams, sessions and processes outlive all phases. A temporary failure never
//! ends an agent. A refused token does: a retry would fail, too.

mod lifecycle;
mod phase;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join;
use rendez_endpoint::{Config, Identity, Mux, Refusal};
use rendez_program::token::TOKEN_VARIABLE;
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::RegistrationId;
use rendez_proto::keys::PublicKey;
use rendez_registry_client::{ExecutorClient, RegistryError};
use rendez_rpc::{Channel, Endpoint, Incoming, MessageStream as _};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::lifecycle::Lifecycle;
use crate::config::{AgentArgs, AgentConfig, ConfigError};
use crate::credential::CredentialError;
use crate::identity::{self, IdentityError};
use crate::session::{SessionManager, StreamEnd, serve};
use crate::{authorize, environment, registry};

/// How long a stopping agent waits for its streams to finish. The peer of a stream
/// may have left, and new peers may still arrive.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it then waits for the close handshake with the relay.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An executor, ready to run.
pub struct Agent {
    config: AgentConfig,
    identity: Identity,
    registry: ExecutorClient,
    sessions: Arc<SessionManager>,
    endpoint: Endpoint,
    allowed: Option<PublicKey>,
}

/// The state of an agent, for people and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    /// The agent asks the registry for a registration.
    Registering,
    /// The agent holds the registration of the environment.
    Registered {
        /// The registration.
        registration: RegistrationId,
    },
    /// The websocket is open: orchestrators can reach the agent.
    Connected,
    /// The agent waits after a temporary failure.
    Waiting {
        /// The failure.
        error: String,
        /// The time until the next attempt.
        retry_in: Duration,
    },
}

/// Why an agent cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its settings are incomplete or invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its key cannot be read or created.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its credential cannot be read or created.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// This machine cannot provide TLS, HTTP or random numbers.
    #[error("cannot set up TLS or HTTP: {0}")]
    Setup(String),
    /// The registry refused the token or the registration.
    #[error("{0}")]
    Registry(#[from] RegistryError),
}

impl AgentError {
    /// The exit code (sysexits.h) of a program that ends with this error: 77 if the
    /// token is missing or refused, so that a supervisor does not restart it in
    /// vain, otherwise 78.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Registry(_) | Self::Config(ConfigError::NoToken(_)) => 77,
            Self::Config(_) | Self::Identity(_) | Self::Credential(_) | Self::Setup(_) => 78,
        }
    }
}

impl AgentArgs {
    /// Runs the agent that these arguments describe. The agent logs each step.
    ///
    /// # Errors
    /// Every [`AgentError`].
    pub async fn run(self, cancel: CancellationToken) -> Result<(), AgentError> {
        self.tls.configure().map_err(|error| AgentError::Setup(error.to_string()))?;
        Agent::new(self.into_config()?)?.run(cancel, |_| {}).await
    }
}

impl Agent {
    /// Reads or creates the keys. Sends nothing yet.
    ///
    /// # Errors
    /// [`AgentError::Identity`], [`AgentError::Credential`] or
    /// [`AgentError::Setup`].
    pub fn new(config: AgentConfig) -> Result<Self, AgentError> {
        let setup = |error: &dyn std::fmt::Display| AgentError::Setup(error.to_string());
        let identity = Identity::from_seed(&identity::load_or_create(&config.state)?);
        let (relay, auth) = (config.relay.as_url().clone(), registry::auth(&config)?);
        let registry = ExecutorClient::new(relay, config.environment.clone(), auth)
            .map_err(|error| setup(&error))?;
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| setup(&error))?;
        let profiles = config.profiles.clone();
        let mut core = Config::executor(identity.clone(), config.environment.clone(), profiles);
        core.limits.grace = config.grace.get();
        let endpoint = Endpoint::new(Mux::new(core, seed));
        let sessions = SessionManager::new(
            environment::describe(&config.cwd),
            config.grace.get(),
            &[TOKEN_VARIABLE],
        );
        Ok(Self { config, identity, registry, sessions, endpoint, allowed: None })
    }

    /// Refuses all orchestrators except the one with this key. The registry must
    /// accept that one, too.
    #[must_use]
    pub fn restrict_to(self, orchestrator: PublicKey) -> Self {
        Self { allowed: Some(orchestrator), ..self }
    }

    /// The static public key, both halves.
    pub fn public_key(&self) -> &PublicKey {
        self.identity.public()
    }

    /// Runs until `cancel`, or until the registry refuses the agent for good. Then
    /// kills all processes and finishes all streams. Calls `on_state` at each
    /// change.
    ///
    /// # Errors
    /// [`AgentError::Registry`] if the token or the registration is refused.
    pub async fn run(
        self,
        cancel: CancellationToken,
        on_state: impl Fn(AgentState) + Send,
    ) -> Result<(), AgentError> {
        if self.config.relay.sends_cleartext() {
            tracing::warn!(relay = %self.config.relay, "credentials are sent to the relay over plain HTTP");
        }
        let agent = Arc::new(self);
        let accept_task = AbortOnDropHandle::new(tokio::spawn(accept_streams(agent.clone())));
        let _expiry_task = AbortOnDropHandle::new(tokio::spawn({
            let sessions = agent.sessions.clone();
            async move { sessions.expire_sessions().await }
        }));
        let connected = AtomicBool::new(false);
        let mut lifecycle = pin!(Lifecycle::new(&agent, &connected, on_state).run());
        let outcome = cancel.run_until_cancelled(lifecycle.as_mut()).await;
        agent.sessions.shutdown();
        if let Some(outcome) = outcome {
            return outcome;
        }
        if connected.load(Ordering::Relaxed) {
            let finish = async {
                if timeout(FINISH_TIMEOUT, accept_task).await.is_err() {
                    tracing::debug!("gave up waiting for the streams to finish");
                }
                agent.endpoint.shut_down(CloseFrame::NORMAL);
            };
            // the pump that sends the last frames is part of the lifecycle
            if timeout(FINISH_TIMEOUT + CLOSE_TIMEOUT, join(finish, lifecycle)).await.is_err() {
                tracing::debug!("gave up waiting for the close handshake with the relay");
            }
        }
        Ok(())
    }
}

/// Authorizes handshakes and serves streams, each in a task of its own; the core
/// bounds their number. Returns when the sessions are shut down and all streams
/// are closed.
async fn accept_streams(agent: Arc<Agent>) {
    let mut tasks = JoinSet::new();
    while let Some(incoming) = agent.sessions.until_shutdown(agent.endpoint.incoming()).await {
        match incoming {
            Incoming::Authorization(request)
                if agent.allowed.as_ref().is_some_and(|allowed| *allowed != request.peer) =>
            {
                tracing::debug!(peer = ?request.peer, "refused an orchestrator other than the allowed one");
                request.refuse(Refusal::Denied);
            }
            Incoming::Authorization(request) => {
                let agent = agent.clone();
                tasks.spawn(async move {
                    authorize::authorize_handshake(&agent.registry, request).await
                });
            }
            Incoming::Opened(channel) => {
                tasks.spawn(serve_stream(agent.sessions.clone(), channel));
            }
        }
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
}

/// Serves a stream, then finishes or resets it.
async fn serve_stream(sessions: Arc<SessionManager>, channel: Channel) {
    let channel = Arc::new(channel);
    if serve(sessions, channel.clone()).await == StreamEnd::InvalidMessage {
        channel.reset();
    }
    // unread messages would hold back the end of the stream
    let rest = async { while channel.recv().await.is_some() {} };
    let (why, ()) = join(channel.finish(), rest).await;
    tracing::debug!(%why, "stream closed");
}

#[cfg(test)]
mod tests;
