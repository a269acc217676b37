//! The relay's command line, shared by `rendez relay` and `rendez-relay`.

use std::net::SocketAddr;
use std::path::PathBuf;

use rendez_registry::PublicUrl;
use rendez_transport::telemetry::LogLevel;

use crate::ledger::Quotas;
use crate::server::Config;

/// Run a relay: the registry and the rendezvous, on SQLite.
#[allow(rustdoc::bare_urls, reason = "the comments are the help text")]
#[derive(Debug, Clone, clap::Args)]
pub struct RelayArgs {
    /// Address and port to listen on, without TLS. Put a proxy that ends TLS
    /// in front before you let it be reached from elsewhere
    #[arg(long, env = "RENDEZ_LISTEN", default_value = "127.0.0.1:7700", value_name = "IP:PORT")]
    pub listen: SocketAddr,

    /// Directory of the database and the signing key; made if missing
    #[arg(long, env = "RENDEZ_STATE", default_value = "rendez-state", value_name = "DIR")]
    pub state: PathBuf,

    /// How clients reach this relay, such as https://relay.example.com.
    /// Default: wherever their request went to
    #[arg(long, env = "RENDEZ_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<PublicUrl>,

    /// Most TCP connections at once; further ones wait
    #[arg(long, env = "RENDEZ_CONNECTIONS_MAX", default_value_t = 20_000, value_name = "N")]
    pub connections_max: usize,

    /// How much to log to stderr: off, error, warn, info, debug or trace
    #[arg(long, env = "RENDEZ_LOG", default_value = "info", value_name = "LEVEL")]
    pub log: LogLevel,
}

impl From<RelayArgs> for Config {
    fn from(args: RelayArgs) -> Self {
        Self {
            listen: args.listen,
            state_dir: args.state,
            public_url: args.public_url.unwrap_or_default(),
            connections_max: args.connections_max,
            quotas: Quotas::default(),
        }
    }
}
