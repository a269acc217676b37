//! `rendez probe`: is it there, and how fast?
//!
//! Everything that users need is used: registry, websockets, handshake,
//! encrypted messages. With an environment its own executor answers; without
//! one, a throw-away executor in this very process, which lets in nobody but
//! this probe.

mod pair;
mod report;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use rendez_orchestrator::{Client, EnvironmentId, Timings};

use self::pair::Pair;
use self::report::{Report, Samples};
use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;

/// Prints percentiles of connecting and of round trips. Without an environment
/// it needs an admin token, or the relay's state directory: it makes tokens for
/// itself, which it revokes, and registers a throw-away executor.
#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArgs {
    #[command(flatten)]
    relay: RelayOptions,

    /// How many connections are opened, one after the other
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connects: u32,

    /// How many round trips are made on each of them
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,

    /// How long all of it may take, such as 10s
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
    timeout: Duration,

    /// Make the tokens in this state directory of a relay
    #[arg(long, value_name = "DIR")]
    state: Option<std::path::PathBuf>,

    /// The id that the throw-away executor takes
    #[arg(long, default_value = "rendez-probe", value_name = "ID")]
    probe_environment: EnvironmentId,

    /// Print one JSON object; durations are in milliseconds
    #[arg(long)]
    json: bool,

    /// An environment, or the URL of a relay [default: the relay alone]
    #[arg(value_name = "ENVIRONMENT|URL")]
    target: Option<Target>,
}

/// What is probed.
#[derive(Debug, Clone)]
enum Target {
    /// This relay.
    Relay(String),
    /// An executor that is there.
    Environment(EnvironmentId),
}

impl std::str::FromStr for Target {
    type Err = rendez_proto::ids::InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok(Self::Relay(text.to_owned()));
        }
        text.parse().map(Self::Environment)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

/// Runs the command.
pub(crate) async fn run(args: ProbeArgs) -> Result<ExitCode, Exit> {
    let deadline = tokio::time::Instant::now() + args.timeout;
    let late = || Exit::unavailable(format!("the probe was not done within {:?}", args.timeout));
    let (options, environment) = match args.target.clone() {
        Some(Target::Relay(url)) => (args.relay.clone().at(url), None),
        Some(Target::Environment(environment)) => (args.relay.clone(), Some(environment)),
        None => (args.relay.clone(), None),
    };
    let relay = options.url()?;
    let (measured, register, environment) = match environment {
        Some(environment) => {
            let client = options.client(Purpose::Orchestrate)?;
            let measured = tokio::time::timeout_at(deadline, measure(&client, &environment, &args));
            (measured.await.map_err(|_| late())??, None, environment)
        }
        None => {
            let environment = args.probe_environment.clone();
            let pair = Pair::prepare(&options, args.state.as_deref(), &environment);
            let pair = tokio::time::timeout_at(deadline, pair).await.map_err(|_| late())??;
            let probing = async {
                let register = pair.register().await?;
                let measured = measure(pair.client(), &environment, &args).await?;
                Ok::<_, Exit>((measured, register))
            };
            let outcome = tokio::time::timeout_at(deadline, probing).await;
            pair.dissolve().await;
            let (measured, register) = outcome.map_err(|_| late())??;
            (measured, Some(register), environment)
        }
    };
    let report = Report { relay, environment, register, measured };
    if args.json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    Ok(ExitCode::SUCCESS)
}

/// What was measured over all connections.
#[derive(Default)]
struct Measured {
    profile: &'static str,
    ask: Samples,
    dial: Samples,
    handshake: Samples,
    connect: Samples,
    round_trip: Samples,
}

async fn measure(
    client: &Client,
    environment: &EnvironmentId,
    args: &ProbeArgs,
) -> Result<Measured, Exit> {
    let mut measured = Measured::default();
    for _ in 0..args.connects {
        let executor = client.connect(environment).await?;
        let Timings { ask, dial, handshake, session } = executor.timings();
        measured.profile = executor.profile().name();
        measured.ask.add(ask);
        measured.dial.add(dial);
        measured.handshake.add(handshake);
        measured.connect.add(ask + dial + handshake + session);
        for _ in 0..args.count {
            let since = Instant::now();
            executor.ping().await.map_err(Exit::io)?;
            measured.round_trip.add(since.elapsed());
        }
        executor.close().await;
    }
    Ok(measured)
}
