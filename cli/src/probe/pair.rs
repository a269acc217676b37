//! An executor and an orchestrator that know each other, for one probe.

use std::time::{Duration, Instant};

use rendez_executor_agent::config::{Auth, DEFAULT_PROFILES};
use rendez_executor_agent::{Agent, AgentConfig, AgentError, State};
use rendez_orchestrator::{Client, EnvironmentId, Grace};
use rendez_proto::registry::admin::Role;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::tokens::Tokens;
use crate::context::RelayOptions;
use crate::exit::Exit;

/// See the module.
pub(super) struct Pair {
    client: Client,
    agent: Option<Agent>,
    running: Option<JoinHandle<Result<(), AgentError>>>,
    cancel: CancellationToken,
    _state: TempDir,
}

impl Pair {
    /// Makes tokens and keys.
    pub(super) async fn prepare(
        options: &RelayOptions,
        tokens: &mut Tokens,
        environment: &EnvironmentId,
    ) -> Result<Self, Exit> {
        let orchestrator = tokens.make(Role::Orchestrator, environment).await?;
        let executor = tokens.make(Role::Executor, environment).await?;
        let client = options.client_with(orchestrator.expose().to_owned().into())?;
        let directory =
            tempfile::Builder::new().prefix("rendez-probe-").tempdir().map_err(Exit::config)?;
        let agent = Agent::new(AgentConfig {
            relay: options.url()?.parse().map_err(Exit::usage)?,
            environment: environment.clone(),
            auth: Auth::Bearer(executor.expose().to_owned().into()),
            state: directory.path().to_owned(),
            profiles: DEFAULT_PROFILES.to_vec(),
            cwd: directory.path().to_owned(),
            grace: Grace::default(),
        })?;
        // Others may hold tokens for this environment; none of them may run
        // anything here.
        let agent = agent.only(client.public_key().clone());
        Ok(Self {
            client,
            agent: Some(agent),
            running: None,
            cancel: CancellationToken::new(),
            _state: directory,
        })
    }

    /// The orchestrator.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Starts the executor and waits until it is connected.
    pub(super) async fn register(&mut self) -> Result<Duration, Exit> {
        let since = Instant::now();
        let (connected, refused) = (CancellationToken::new(), CancellationToken::new());
        let (on_state, over) = (connected.clone(), refused.clone().drop_guard());
        let agent = self.agent.take().ok_or_else(|| Exit::software("the executor runs already"))?;
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
        self.running = Some(task);
        if refused.run_until_cancelled(connected.cancelled()).await.is_some() {
            return Ok(since.elapsed());
        }
        match self.running.take() {
            Some(task) => match task.await.map_err(Exit::software)? {
                Err(error) => Err(error.into()),
                Ok(()) => Err(Exit::software("the executor stopped by itself")),
            },
            None => Err(Exit::software("the executor is gone")),
        }
    }

    /// Tells the executor to stop.
    pub(super) fn leave(&self) {
        self.cancel.cancel();
    }

    /// Waits until it has, but not for longer than this.
    pub(super) async fn gone(self, within: Duration) {
        if let Some(running) = self.running {
            let _ = timeout(within, running).await;
        }
    }
}
