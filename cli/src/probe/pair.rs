//! An executor and an orchestrator that know each other, for one probe.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rendez_executor_agent::config::{Auth, DEFAULT_PROFILES};
use rendez_executor_agent::{Agent, AgentConfig, AgentError, State};
use rendez_orchestrator::{Client, EnvironmentId, Grace};
use rendez_proto::registry::admin::{CreateToken, Role, TokenCreated};
use rendez_registry::{Options, Registry};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;

/// How long a probe's tokens live, should nobody revoke them.
const TOKEN_SECS: u64 = 600;
/// How long cleaning up may take.
const CLEANUP: Duration = Duration::from_secs(5);

/// Who makes tokens.
enum Maker {
    /// A relay, for an admin token.
    Relay(Client),
    /// The registry in a state directory.
    State(Registry),
}

/// See the module.
pub(super) struct Pair {
    maker: Maker,
    tokens: Vec<String>,
    client: Client,
    agent: Mutex<Option<Agent>>,
    running: Mutex<Option<JoinHandle<Result<(), AgentError>>>>,
    cancel: CancellationToken,
    _state: TempDir,
}

impl Pair {
    /// Makes tokens and keys.
    pub(super) async fn prepare(
        options: &RelayOptions,
        state: Option<&Path>,
        environment: &EnvironmentId,
    ) -> Result<Self, Exit> {
        let maker = match state {
            Some(state) => {
                Maker::State(Registry::open(state, Options::default()).await.map_err(Exit::config)?)
            }
            None => Maker::Relay(options.client(Purpose::Administer)?),
        };
        let orchestrator = maker.token(Role::Orchestrator, environment).await?;
        let executor = maker.token(Role::Executor, environment).await?;
        let client = options.client_with(orchestrator.token.expose().to_owned().into())?;
        let directory =
            tempfile::Builder::new().prefix("rendez-probe-").tempdir().map_err(Exit::config)?;
        let agent = Agent::new(AgentConfig {
            relay: options.url()?.parse().map_err(Exit::usage)?,
            environment: environment.clone(),
            auth: Auth::Bearer(executor.token.expose().to_owned().into()),
            state: directory.path().to_owned(),
            profiles: DEFAULT_PROFILES.to_vec(),
            cwd: directory.path().to_owned(),
            grace: Grace::default(),
        })?;
        // Others may hold tokens for this environment; none of them may run
        // anything here.
        let agent = agent.only(client.public_key().clone());
        Ok(Self {
            maker,
            tokens: vec![orchestrator.entry.id, executor.entry.id],
            client,
            agent: Mutex::new(Some(agent)),
            running: Mutex::default(),
            cancel: CancellationToken::new(),
            _state: directory,
        })
    }

    /// The orchestrator.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Starts the executor and waits until it is connected.
    pub(super) async fn register(&self) -> Result<Duration, Exit> {
        let since = Instant::now();
        let (connected, refused) = (CancellationToken::new(), CancellationToken::new());
        let (on_state, over) = (connected.clone(), refused.clone().drop_guard());
        let agent = lock(&self.agent).take();
        let agent = agent.ok_or_else(|| Exit::software("the executor runs already"))?;
        let cancel = self.cancel.clone();
        let task = tokio::spawn(async move {
            let _over = over;
            let watch = move |state: State| {
                if state == State::Connected {
                    on_state.cancel();
                }
            };
            agent.run(cancel, watch).await
        });
        *lock(&self.running) = Some(task);
        if refused.run_until_cancelled(connected.cancelled()).await.is_some() {
            return Ok(since.elapsed());
        }
        let task = lock(&self.running).take();
        match task {
            Some(task) => match task.await.map_err(Exit::software)? {
                Err(error) => Err(error.into()),
                Ok(()) => Err(Exit::software("the executor stopped by itself")),
            },
            None => Err(Exit::software("the executor is gone")),
        }
    }

    /// Stops the executor and revokes the tokens.
    pub(super) async fn dissolve(self) {
        self.cancel.cancel();
        let running = lock(&self.running).take();
        let cleanup = async {
            if let Some(running) = running {
                let _ = running.await;
            }
            for id in &self.tokens {
                if let Err(why) = self.maker.revoke(id).await {
                    eprintln!("rendez: token {id} ends by itself in 10 minutes: {why}");
                }
            }
        };
        let _ = tokio::time::timeout(CLEANUP, cleanup).await;
    }
}

impl Maker {
    async fn token(&self, role: Role, environment: &EnvironmentId) -> Result<TokenCreated, Exit> {
        let request = CreateToken {
            environments: environment.to_string(),
            label: "rendez probe".to_owned(),
            expires_in_secs: Some(TOKEN_SECS),
            ..CreateToken::new(role)
        };
        match self {
            Maker::Relay(client) => Ok(client.registry().create_token(&request).await?),
            Maker::State(registry) => registry.create_token(&request).await.map_err(Exit::software),
        }
    }

    async fn revoke(&self, id: &str) -> Result<(), String> {
        match self {
            Maker::Relay(client) => {
                client.registry().revoke_token(id).await.map_err(|error| error.to_string())
            }
            Maker::State(registry) => {
                let id = id.parse().map_err(|_| "its id is not valid".to_owned())?;
                registry.revoke(None, &id).await.map(drop).map_err(|error| error.to_string())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
