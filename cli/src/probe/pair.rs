//! The temporary executor and the orchestrator of one probe.

use std::time::{Duration, Instant};

use rendez_executor_agent::config::{Auth, DEFAULT_PROFILES};
use rendez_executor_agent::{Agent, AgentConfig, AgentError, AgentState};
use rendez_orchestrator::{Client, EnvironmentId, Grace};
use rendez_proto::registry::admin::Role;
use rendez_proto::registry::environments::EnvironmentState;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::tokens::ProbeTokens;
use crate::exit::Exit;
use crate::relay_options::RelayOptions;

/// The temporary executor and the client that measures through it.
pub(super) struct ProbePair {
    client: Client,
    agent: Option<Agent>,
    running: Option<JoinHandle<Result<(), AgentError>>>,
    cancel: CancellationToken,
    _state: TempDir,
}

impl ProbePair {
    /// Creates tokens and keys, unless another executor uses this environment.
    pub(super) async fn prepare(
        options: &RelayOptions,
        tokens: &mut ProbeTokens,
        environment: &EnvironmentId,
    ) -> Result<Self, Exit> {
        let orchestrator = tokens.create(Role::Orchestrator, environment).await?;
        let executor = tokens.create(Role::Executor, environment).await?;
        let token = || orchestrator.expose().to_owned().into();
        let detail = options.admin_client_with(token())?.environment(environment, true).await?;
        if matches!(detail.state, EnvironmentState::Connected | EnvironmentState::Draining) {
            return Err(Exit::usage(format!(
                "an executor is connected as {environment}, and the probe's executor would replace \
                 it; choose another --probe-environment"
            )));
        }
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
        let client = options.client_with(token())?;
        // Holders of other tokens for this environment must not run anything here.
        let agent = agent.restrict_to(client.public_key().clone());
        Ok(Self {
            client,
            agent: Some(agent),
            running: None,
            cancel: CancellationToken::new(),
            _state: directory,
        })
    }

    /// The orchestrator's client.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Starts the executor and waits until it is connected. Returns how long that
    /// took.
    pub(super) async fn register(&mut self) -> Result<Duration, Exit> {
        let since = Instant::now();
        // Carries the first connection or error; closes if the executor ends before.
        let (sender, mut first) = mpsc::channel(1);
        let agent = self
            .agent
            .take()
            .ok_or_else(|| Exit::software("the temporary executor was started twice"))?;
        let cancel = self.cancel.clone();
        let task = tokio::spawn(async move {
            let watch = move |state: AgentState| {
                let news = match state {
                    AgentState::Connected => Ok(()),
                    AgentState::Waiting { error, .. } => Err(error),
                    AgentState::Registering | AgentState::Registered { .. } => return,
                };
                // Only the first one is read.
                let _ = sender.try_send(news);
            };
            agent.run(cancel, watch).await
        });
        self.running = Some(task);
        match first.recv().await {
            Some(Ok(())) => return Ok(since.elapsed()),
            // The executor would retry for ever; a probe reports the error.
            Some(Err(error)) => {
                let said = format!("the temporary executor cannot connect: {error}");
                return Err(Exit::unavailable(said));
            }
            None => {}
        }
        match self.running.take() {
            Some(task) => match task.await.map_err(Exit::software)? {
                Err(error) => Err(error.into()),
                Ok(()) => Err(Exit::software("the temporary executor stopped unexpectedly")),
            },
            None => Err(Exit::software("the temporary executor is not running")),
        }
    }

    /// Asks the executor to stop.
    pub(super) fn stop(&self) {
        self.cancel.cancel();
    }

    /// Waits at most this long until the executor has stopped.
    pub(super) async fn wait_until_stopped(self, within: Duration) {
        if let Some(running) = self.running {
            let _ = timeout(within, running).await;
        }
    }
}
