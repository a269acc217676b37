//! `rendez-relay`: the relay alone, for servers and images.

use clap::Parser as _;
use rendez_relay::{Relay, RelayArgs};
use rendez_transport::telemetry;

#[derive(clap::Parser)]
#[command(version, about = "The Rendez relay: registry and rendezvous, on SQLite")]
struct Cli {
    #[command(flatten)]
    relay: RelayArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Cli::parse().relay;
    telemetry::start(args.log);
    Relay::bind(args.into()).await?.serve(rendez_relay::server::until_signal()).await;
    Ok(())
}
