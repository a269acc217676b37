//! The relays that are compared, and how a pair connects through each.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use rendez_proto::registry::{ConnectReply, ConnectRequest, RegisterReply};
use rendez_tests::poll::poll;
use rendez_tests::process::usage::{cpu_seconds, memory_kib, pin};
use rendez_tests::process::{IsolatedCommand, Process};
use rendez_tests::relay::{Websocket, answer, http_client, key, register_request};
use rendez_tests::rendez::{OurRelay, TIMEOUT};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::load::{End, Pair};
use crate::{Pinned, bare};

/// A relay to measure.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Relay {
    Rendez,
    BareAxum,
    Haproxy,
}

pub(crate) const RELAYS: [Relay; 3] = [Relay::Rendez, Relay::BareAxum, Relay::Haproxy];

impl Relay {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Relay::Rendez => "rendez",
            Relay::BareAxum => "bare axum",
            Relay::Haproxy => "haproxy",
        }
    }
}

/// A running relay.
pub(crate) enum Peer {
    Rendez { relay: Box<OurRelay>, http: reqwest::Client, executor: String, orchestrator: String },
    BareAxum { process: Pinned, address: SocketAddr },
    Haproxy { process: Pinned, address: SocketAddr, behind: TcpListener, _config: TempDir },
}

/// Where a connection can be opened, with everything prepared that is not part of it.
pub(crate) enum Place {
    Url(String),
    Address(SocketAddr),
}

impl Place {
    pub(crate) async fn open(self) -> Result<End> {
        Ok(match self {
            Place::Url(url) => End::Websocket(Box::new(Websocket::open(&url).await?)),
            Place::Address(address) => End::Tcp(connect(address).await?),
        })
    }
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

impl Peer {
    /// Starts a relay for so many pairs.
    pub(crate) async fn start(relay: Relay, pairs: usize) -> Result<Self> {
        match relay {
            Relay::Rendez => {
                let unlimited = "connections=none streams=none";
                let mut relay = OurRelay::start_with([
                    format!("--connections-max={}", 4 * pairs),
                    format!("--quota-token={unlimited}"),
                    format!("--quota-node={unlimited}"),
                ])
                .await?;
                pin(relay.process().id().context("the relay has ended")?, crate::RELAY_CORE)?;
                let http = http_client(relay.url())?;
                let executor = relay.token("executor").await?;
                let orchestrator = relay.token("orchestrator").await?;
                Ok(Self::Rendez { relay: Box::new(relay), http, executor, orchestrator })
            }
            Relay::BareAxum => {
                let mut command = IsolatedCommand::new(std::env::current_exe()?)?;
                command.args([bare::MODE, "127.0.0.1:0"]);
                let process = Process::spawn(command)?;
                let find = |line: &str| line.strip_prefix(bare::LISTENING)?.trim().parse().ok();
                let address = process.stdout_line(TIMEOUT, find).await?;
                Ok(Self::BareAxum { process: Pinned::new(process)?, address })
            }
            Relay::Haproxy => haproxy().await,
        }
    }

    /// Connects so many pairs.
    pub(crate) async fn pairs(&mut self, count: usize) -> Result<Vec<Pair>> {
        let mut pairs = Vec::with_capacity(count);
        for n in 0..count {
            pairs.push(match self {
                Self::Rendez { .. } => {
                    let receiver = self.register(n).await?.open().await?;
                    (self.orchestrator(n).await?.open().await?, receiver)
                }
                Self::BareAxum { address, .. } => {
                    let url = format!("ws://{address}/{n}");
                    (Place::Url(url.clone()).open().await?, Place::Url(url).open().await?)
                }
                Self::Haproxy { address, behind, .. } => {
                    let sender = connect(*address).await?;
                    (End::Tcp(sender), End::Tcp(behind.accept().await?.0))
                }
            });
        }
        Ok(pairs)
    }

    /// So many places for single connections.
    pub(crate) async fn places(&mut self, count: usize) -> Result<Vec<Place>> {
        let mut places = Vec::with_capacity(count);
        for n in 0..count {
            places.push(match self {
                Self::Rendez { .. } => self.register(n).await?,
                Self::BareAxum { address, .. } => Place::Url(format!("ws://{address}/{n}")),
                Self::Haproxy { address, .. } => Place::Address(*address),
            });
        }
        Ok(places)
    }

    async fn register(&self, n: usize) -> Result<Place> {
        let Self::Rendez { relay, http, executor, .. } = self else { unreachable!("ours only") };
        let url = format!("{}/cloud/environment/pair-{n}/register", relay.url());
        let call = http.post(url).bearer_auth(executor).json(&register_request());
        let reply: RegisterReply = answer(call).await?;
        Ok(Place::Url(reply.url.expose().to_owned()))
    }

    async fn orchestrator(&self, n: usize) -> Result<Place> {
        let Self::Rendez { relay, http, orchestrator, .. } = self else {
            unreachable!("ours only")
        };
        let url = format!("{}/cloud/environment/pair-{n}/connect", relay.url());
        let body = ConnectRequest { harness_public_key: key(7), rendez: None };
        let reply: ConnectReply =
            answer(http.post(url).bearer_auth(orchestrator).json(&body)).await?;
        Ok(Place::Url(reply.url.expose().to_owned()))
    }

    /// CPU time of the relay, user and system, in seconds.
    pub(crate) fn cpu(&mut self) -> Result<f64> {
        cpu_seconds(self.id()?)
    }

    /// Its largest resident memory.
    pub(crate) fn peak_memory_kib(&mut self) -> Result<u64> {
        memory_kib(self.id()?, "VmHWM")
    }

    fn id(&mut self) -> Result<u32> {
        match self {
            Self::Rendez { relay, .. } => relay.process().id().context("the relay has ended"),
            Self::BareAxum { process, .. } | Self::Haproxy { process, .. } => process.id(),
        }
    }
}

async fn haproxy() -> Result<Peer> {
    let behind = TcpListener::bind("127.0.0.1:0").await?;
    // Free when haproxy binds it, most likely.
    let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("haproxy.cfg");
    let mut config = String::new();
    write!(
        config,
        "global\n  nbthread 1\n  maxconn 4096\n  tune.bufsize 65536\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
         frontend public\n  bind {address}\n  default_backend load\n\
         backend load\n  server load {}\n",
        behind.local_addr()?
    )?;
    std::fs::write(&file, config)?;
    let mut command = IsolatedCommand::new("haproxy")?;
    command.args(["-db", "-f"]).arg(&file);
    let process = Process::spawn(command).context("haproxy is missing: apt-get install haproxy")?;
    let process = Pinned::new(process)?;
    let listens = poll(TIMEOUT, async || {
        Ok(TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string()))
    });
    listens.await.context("haproxy does not listen")?;
    // The probe's own connection.
    let probe = tokio::time::timeout(TIMEOUT, behind.accept()).await;
    ensure!(probe.is_ok(), "haproxy does not forward");
    Ok(Peer::Haproxy { process, address, behind, _config: directory })
}
