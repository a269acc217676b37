//! `rendez dev`: relay, registry and an executor in one process.

mod context;

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use rendez_executor_agent::config::{Auth, DEFAULT_PROFILES};
use rendez_executor_agent::{Agent, AgentConfig, AgentState};
use rendez_orchestrator::EnvironmentId;
use rendez_orchestrator::Grace;
use rendez_program::logging::{self, LogLevel};
use rendez_program::signals;
use rendez_proto::registry::admin::{CreateToken, Role};
use rendez_registry::Registry;
use rendez_relay::{Config, Relay};
use tokio_util::sync::CancellationToken;

pub(crate) use self::context::DevContext;
use crate::exit::Exit;
use crate::output::print;

/// Keys, tokens and the database are in a temporary directory, which is removed
/// when the process ends.
#[derive(Debug, clap::Args)]
pub(crate) struct DevArgs {
    /// Address and port of the relay
    #[arg(long, default_value = "127.0.0.1:7700", value_name = "IP:PORT")]
    listen: SocketAddr,

    /// The id of the executor's environment
    #[arg(long, default_value = "dev", value_name = "ID")]
    environment: EnvironmentId,

    /// Level of the log on stderr: off, error, warn, info, debug or trace
    #[arg(long, env = "RENDEZ_LOG", default_value = "warn", value_name = "LEVEL")]
    log: LogLevel,
}

/// Runs until interrupted.
pub(crate) async fn run(args: DevArgs) -> Result<ExitCode, Exit> {
    logging::start(args.log);
    let cancel = signals::cancel_on_signal();
    let state = tempfile::Builder::new().prefix("rendez-dev-").tempdir().map_err(Exit::config)?;
    let relay = Relay::bind(Config {
        listen: args.listen,
        state: state.path().join("relay"),
        connections_max: 1024,
        ..Config::default()
    })
    .await
    .map_err(Exit::config)?;
    let url = format!("http://{}", relay.local_addr());
    let registry = relay.registry().clone();

    let executor_token = token(&registry, Role::Executor).await?;
    let agent = Agent::new(AgentConfig {
        relay: url.parse().map_err(Exit::software)?,
        environment: args.environment.clone(),
        auth: Auth::Bearer(executor_token.into()),
        state: state.path().join("agent"),
        profiles: DEFAULT_PROFILES.to_vec(),
        cwd: std::env::current_dir().map_err(Exit::config)?,
        grace: Grace::default(),
    })?;

    let context = DevContext {
        relay: url.clone(),
        orchestrator_token: token(&registry, Role::Orchestrator).await?,
        admin_token: token(&registry, Role::Admin).await?,
    };
    // Started after the tokens exist: a relay without tokens logs a hint.
    let relay = tokio::spawn(relay.serve(cancel.clone()));
    let published = context.publish().map_err(Exit::config)?;
    let ready = CancellationToken::new();
    let announce = ready.clone();
    let watch = move |state: AgentState| {
        if state == AgentState::Connected {
            announce.cancel();
        }
    };
    let greeting = greeting(&url, &args.environment, &context, state.path());
    let quit = cancel.clone();
    let greeted = tokio::spawn(async move {
        match quit.run_until_cancelled(ready.cancelled()).await {
            // Without standard output the user cannot see the tokens: stop.
            Some(()) => print(greeting).inspect_err(|_| quit.cancel()),
            None => Ok(()),
        }
    });
    let agent = agent.run(cancel.clone(), watch).await;
    cancel.cancel();
    let _ = relay.await;
    drop(published);
    agent?;
    greeted.await.map_err(Exit::software)??;
    Ok(ExitCode::SUCCESS)
}

async fn token(registry: &Registry, role: Role) -> Result<String, Exit> {
    let request = CreateToken { label: "rendez dev".to_owned(), ..CreateToken::new(role) };
    let created = registry.tokens().create(None, &request).await.map_err(Exit::software)?;
    Ok(created.token.expose().to_owned())
}

fn greeting(url: &str, id: &EnvironmentId, context: &DevContext, state: &Path) -> String {
    let rendez = command_name();
    let token = &context.orchestrator_token;
    let state = state.display();
    format!(
        "\
Rendez is running: the relay at {url}, and this machine as executor `{id}`.

In another terminal:

  {rendez} exec {id} -- uname -a
  {rendez} env ls

From scripts, or with stock Codex as orchestrator:

  export RENDEZ_RELAY={url} RENDEZ_TOKEN={token}
  export CODEX_EXEC_SERVER_NOISE_REGISTRY_URL={url}
  export CODEX_EXEC_SERVER_NOISE_ENVIRONMENT_ID={id}
  export CODEX_EXEC_SERVER_NOISE_AUTH_TOKEN={token}

State and keys are in {state} and are removed when this process ends.
Ctrl-C stops it."
    )
}

/// `rendez` if the shell finds this program under that name, else its path.
fn command_name() -> String {
    let Ok(this) = std::env::current_exe() else { return "rendez".to_owned() };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|directory| directory.join("rendez"))
        .find(|candidate| candidate.is_file());
    let is_this = found.is_some_and(|found| found.canonicalize().is_ok_and(|found| found == this));
    if is_this { "rendez".to_owned() } else { this.display().to_string() }
}
