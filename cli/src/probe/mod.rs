//! `rendez probe`: measure whether a relay or an executor answers, and how fast.
//!
//! A probe uses everything that users need: registry, websockets, handshake and
//! encrypted messages. With an environment, its own executor answers; without one,
//! a temporary executor in this process, which accepts only this probe.

mod pair;
mod report;
mod tokens;

use std::process::ExitCode;
use std::time::Duration;

use rendez_orchestrator::{Client, EnvironmentId, Timings};
use tokio::time::{Instant, timeout_at};

use self::pair::ProbePair;
use self::report::{Report, Samples};
use self::tokens::ProbeTokens;
use crate::admin_access::{AdminOptions, StateDirectory};
use crate::exit::Exit;
use crate::format;
use crate::output::{note, print};

/// The longest `--timeout`. The probe's tokens live slightly longer.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// The most round trips of one probe, which keeps all of them for percentiles: 16
/// bytes each, twice.
const ROUND_TRIPS_MAX: u32 = 1_000_000;
/// The time limit for revoking one token.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The time limit for stopping the temporary executor.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints percentiles of connection times and round-trip times. Without an
/// environment it needs an admin token, or the relay's state directory: it creates
/// tokens, registers a temporary executor, and revokes the tokens at the end.
#[derive(Debug, clap::Args)]
pub(crate) struct ProbeArgs {
    #[command(flatten)]
    admin: AdminOptions,

    /// Number of connections, opened one after the other
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connects: u32,

    /// Number of round trips on each connection
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,

    /// Time limit for the whole probe, such as 10s; at most 24h
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = timeout)]
    timeout: Duration,

    /// The environment id of the temporary executor
    #[arg(long, default_value = "rendez-probe", value_name = "ID")]
    probe_environment: EnvironmentId,

    /// Print one JSON object; durations are in milliseconds
    #[arg(long)]
    json: bool,

    /// An environment, or the URL of a relay [default: the relay alone]
    #[arg(value_name = "ENVIRONMENT|URL")]
    target: Option<Target>,
}

/// The target of a probe.
#[derive(Debug, Clone)]
enum Target {
    /// This relay.
    Relay(String),
    /// An executor that is connected.
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

fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = format::parse_duration(text)?;
    if timeout > TIMEOUT_MAX {
        return Err("a probe may take at most 24h".to_owned());
    }
    if timeout.is_zero() { Err("must be more than 0s".to_owned()) } else { Ok(timeout) }
}

/// Runs the command.
pub(crate) async fn run(args: ProbeArgs) -> Result<ExitCode, Exit> {
    if args.connects.saturating_mul(args.count) > ROUND_TRIPS_MAX {
        let most = ROUND_TRIPS_MAX;
        return Err(Exit::usage(format!("--connects times --count may be at most {most}")));
    }
    let deadline = Instant::now() + args.timeout;
    let late = |_| Exit::unavailable(format!("the probe did not finish within {:?}", args.timeout));
    let (options, environment) = match args.target.clone() {
        Some(Target::Relay(url)) => (args.admin.clone().at(url), None),
        Some(Target::Environment(environment)) => (args.admin.clone(), Some(environment)),
        None => (args.admin.clone(), None),
    };
    let relay = options.relay().url()?;
    let (measured, register, environment) = match environment {
        Some(environment) => {
            let client = options.relay().client()?;
            let measured = timeout_at(deadline, measure(&client, &environment, &args));
            (measured.await.map_err(late)??, None, environment)
        }
        None => {
            let environment = args.probe_environment.clone();
            let admin = timeout_at(deadline, options.open(StateDirectory::Existing));
            let mut tokens = ProbeTokens::new(admin.await.map_err(late)??, args.timeout);
            let mut pair = None;
            let probing = async {
                let made = ProbePair::prepare(options.relay(), &mut tokens, &environment).await?;
                let pair = pair.insert(made);
                let register = pair.register().await?;
                Ok::<_, Exit>((measure(pair.client(), &environment, &args).await?, register))
            };
            let outcome = timeout_at(deadline, probing).await;
            // Tokens are revoked even if the executor does not stop in time.
            if let Some(pair) = &pair {
                pair.stop();
            }
            tokens.revoke(REVOKE_TIMEOUT).await.iter().for_each(note);
            if let Some(pair) = pair {
                pair.wait_until_stopped(STOP_TIMEOUT).await;
            }
            let (measured, register) = outcome.map_err(late)??;
            (measured, Some(register), environment)
        }
    };
    let report = Report { relay, environment, register, measured };
    if args.json {
        print(report.json())?
    } else {
        print(report)?
    }
    Ok(ExitCode::SUCCESS)
}

/// The measurements over all connections.
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
        let Timings { ticket, dial, handshake, session } = executor.timings();
        measured.profile = executor.profile().name();
        measured.ask.add(ticket);
        measured.dial.add(dial);
        measured.handshake.add(handshake);
        measured.connect.add(ticket + dial + handshake + session);
        for _ in 0..args.count {
            let since = Instant::now();
            executor.ping().await.map_err(Exit::io)?;
            measured.round_trip.add(since.elapsed());
        }
        executor.close().await;
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeout_is_bounded() {
        assert_eq!(timeout("24h"), Ok(TIMEOUT_MAX));
        assert!(timeout("0s").unwrap_err().contains("more than 0s"));
        assert!(timeout("25h").unwrap_err().contains("24h"));
        // An instant that far away cannot be represented.
        assert!(timeout("500000000000y").is_err());
        assert!(timeout("10").unwrap_err().contains("1h30m"));
    }
}
