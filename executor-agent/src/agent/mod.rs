//! An agent from its start to its end.
//!
//! ```text
//! lifecycle   the work of each phase: register, dial, serve, back off
//!   phase     which phase follows which outcome (pure)
//! ```
//!
//! Streams, sessions and processes outlive all phases. A temporary failure never
//! ends an agent. A refused token does, because only a person can fix it.

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
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::lifecycle::Lifecycle;
use crate::config::{AgentArgs, AgentConfig, ConfigError};
use crate::credential::CredentialError;
use crate::identity::{self, IdentityError};
use crate::session::{SessionManager, StreamEnd, serve};
use crate::{authorize, environment, registry};

/// How long a stop waits for the peers to hear of it. A stream may be there whose
/// peer has left, and who comes meanwhile comes in vain.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long it waits then for the relay to hear of it.
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

/// What an agent is doing, for people and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentState {
    /// It asks the registry for the environment.
    Registering,
    /// The environment is its own.
    Registered {
        /// The claim.
        registration: RegistrationId,
    },
    /// The websocket is open: orchestrators can reach it.
    Connected,
    /// Something temporary went wrong.
    Waiting {
        /// What, in words.
        error: String,
        /// When it tries again.
        retry_in: Duration,
    },
}

/// Why an agent cannot run, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Its settings are not complete.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its key cannot be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its credential cannot be had.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// TLS or HTTP cannot be set up on this machine.
    #[error("cannot set up connections: {0}")]
    Setup(String),
    /// The registry does not want it.
    #[error("{0}")]
    Registry(#[from] RegistryError),
}

impl AgentError {
    /// The exit code of a program that ends with this error, of sysexits.h: 77
    /// if the token is missing or refused, so that a supervisor knows that
    /// trying again is of no use, else 78.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Registry(_) | Self::Config(ConfigError::NoToken(_)) => 77,
            Self::Config(_) | Self::Identity(_) | Self::Credential(_) | Self::Setup(_) => 78,
        }
    }
}

impl AgentArgs {
    /// Runs the agent that these arguments describe; its log tells people what
    /// it does.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn run(self, cancel: CancellationToken) -> Result<(), AgentError> {
        self.tls.configure().map_err(|error| AgentError::Setup(error.to_string()))?;
        Agent::new(self.into_config()?)?.run(cancel, |_| {}).await
    }
}

impl Agent {
    /// Reads or makes the key; nothing is sent yet.
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

    /// Lets in nobody but the orchestrator with this key, whatever the registry
    /// says of others.
    #[must_use]
    pub fn restrict_to(self, orchestrator: PublicKey) -> Self {
        Self { allowed: Some(orchestrator), ..self }
    }

    /// The static key, with both halves.
    pub fn public_key(&self) -> &PublicKey {
        self.identity.public()
    }

    /// Lives until `cancel`, or until only a person can help. Then all
    /// processes are killed and the peers are told. `on_state` hears of every
    /// step.
    ///
    /// # Errors
    /// [`AgentError::Registry`] if the token or the registration is refused.
    pub async fn run(
        self,
        cancel: CancellationToken,
        on_state: impl Fn(AgentState) + Send,
    ) -> Result<(), AgentError> {
        if self.config.relay.is_exposed() {
            tracing::warn!(relay = %self.config.relay, "what opens the relay goes there without TLS");
        }
        let agent = Arc::new(self);
        let accept_task = AbortOnDrop(tokio::spawn(accept_streams(agent.clone())));
        let _expiry_task = AbortOnDrop(tokio::spawn({
            let sessions = agent.sessions.clone();
            async move { sessions.expire_sessions().await }
        }));
        let connected = AtomicBool::new(false);
        let mut life = pin!(Lifecycle::new(&agent, &connected, on_state).run());
        let outcome = cancel.run_until_cancelled(life.as_mut()).await;
        agent.sessions.shutdown();
        if let Some(outcome) = outcome {
            return outcome;
        }
        if connected.load(Ordering::Relaxed) {
            let finish = async {
                if timeout(FINISH_TIMEOUT, accept_task.finished()).await.is_err() {
                    tracing::debug!("stopped before every peer was told");
                }
                agent.endpoint.shut_down(CloseFrame::NORMAL);
            };
            // the pump, which is part of the life, says the last words
            if timeout(FINISH_TIMEOUT + CLOSE_TIMEOUT, join(finish, life)).await.is_err() {
                tracing::debug!("stopped before the relay was told");
            }
        }
        Ok(())
    }
}

/// Lets orchestrators in and serves their streams, each in a task of its own;
/// the core bounds how many there are. Ends when the executor is shut down and
/// its streams are over.
async fn accept_streams(agent: Arc<Agent>) {
    let mut tasks = JoinSet::new();
    while let Some(incoming) = agent.sessions.until_shutdown(agent.endpoint.incoming()).await {
        match incoming {
            Incoming::Authorization(request)
                if agent.allowed.as_ref().is_some_and(|allowed| *allowed != request.peer) =>
            {
                tracing::debug!(peer = ?request.peer, "not the only orchestrator that is let in");
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

/// Serves a stream and sees to it that its peer hears of the end.
async fn serve_stream(sessions: Arc<SessionManager>, channel: Channel) {
    let channel = Arc::new(channel);
    if serve(sessions, channel.clone()).await == StreamEnd::InvalidMessage {
        channel.reset();
    }
    // what still arrives is read, else the end would wait behind it
    let rest = async { while channel.recv().await.is_some() {} };
    let (why, ()) = join(channel.finish(), rest).await;
    tracing::debug!(%why, "stream closed");
}

struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    async fn finished(mut self) {
        // a panic in it has been reported already
        let _ = (&mut self.0).await;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
