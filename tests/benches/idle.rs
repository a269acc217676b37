//! Thousands of idle executors on one relay process, each with its own registration:
//! their cost, and their reconnection when the relay restarts.
//!
//! ```sh
//! cargo build --release -p rendez
//! cargo bench -p rendez-tests --bench idle             # 20,000
//! cargo bench -p rendez-tests --bench idle -- 2000
//! ```
//!
//! The clients are tasks of this process. They register, dial, ping, back off and
//! register again as `rendez agent` does, with its dialler, pump and back-off, but
//! serve no streams. Each calls the registry over its own connection, as separate
//! processes would. They connect to several loopback addresses of the relay, so that
//! there are enough ports. Both processes raise their descriptor limit to the hard
//! limit; if that is too low, the bench prints this and uses fewer clients.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use rendez_proto::close::CloseFrame;
use rendez_proto::limits::PING_INTERVAL;
use rendez_proto::registry::RegisterReply;
use rendez_tests::process::usage::{cpu_seconds, memory_kib};
use rendez_tests::process::{Process, run};
use rendez_tests::relay::register_request;
use rendez_tests::rendez::{TIMEOUT, rendez};
use rendez_tests::tls::Authority;
use rendez_transport::backoff::{self, Backoff};
use rendez_transport::dial::{DialError, dial};
use rendez_transport::tls::{self, TlsFiles};
use rendez_transport::{Ended, Protocol, Violation, pump};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

const CLIENTS: usize = 20_000;
/// Descriptors of either process that are not idle websockets: registrations in
/// progress, the database, standard streams.
const SPARE_DESCRIPTORS: usize = 600;
/// Loopback addresses of the relay: each has 28,000 ports for clients.
const ADDRESSES: usize = 8;
/// Clients that start concurrently.
const STARTING: usize = 64;
/// Failed dials in a row before a client registers again, as in the agent.
const DIALS_PER_REGISTRATION: u32 = 3;
/// Longest wait for all of them to be connected.
const ALL_WITHIN: Duration = Duration::from_secs(600);
/// After this time, delayed writes are done and idle HTTP connections of clients are
/// closed.
const SETTLE: Duration = Duration::from_secs(12);

#[tokio::main]
async fn main() -> Result<()> {
    let wanted = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(CLIENTS);
    let descriptors = raise_descriptors()?;
    let count = wanted.min(descriptors.saturating_sub(SPARE_DESCRIPTORS));
    if count < wanted {
        println!(
            "the hard limit of {descriptors} descriptors (ulimit -Hn) is too low for {wanted} \
             clients and {SPARE_DESCRIPTORS} to spare; there are {count}"
        );
    }
    let authority = Authority::new()?;
    authority.issue_for("relay", "relay", (0..ADDRESSES).map(address).collect())?;
    let authorities = Some(authority.path("ca.pem"));
    tls::configure(&TlsFiles { authorities, identity: None })?;
    for tls in [None, Some(authority.directory())] {
        measure(count, descriptors, tls).await?;
    }
    Ok(())
}

/// Raises the soft limit to the hard one. The relay inherits it.
fn raise_descriptors() -> Result<usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX)))
}

async fn measure(count: usize, descriptors: usize, tls: Option<&Path>) -> Result<()> {
    println!("\n{count} idle executors, {}", if tls.is_some() { "TLS" } else { "plain" });
    let mut relay = Relay::start(descriptors.saturating_sub(SPARE_DESCRIPTORS / 4), tls).await?;
    let shared = Arc::new(Clients::new(&relay).await?);
    let before = relay.memory()?;
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for n in 0..count {
        clients.spawn(run_client(shared.clone(), n));
    }
    shared.all_connected(count).await?;
    let (took, cpu) = (began.elapsed().as_secs_f64(), relay.cpu()?);
    let each = |seconds: f64| seconds * 1e6 / count as f64;
    println!("  registered and connected      {took:8.1} s     relay CPU {:.0} us each", each(cpu));

    sleep(SETTLE).await;
    let after = relay.memory()?;
    println!(
        "  relay RSS before, after       {:8.1} MB    {:.1} MB, {:.2} KB per connection",
        before as f64 / 1e6,
        after as f64 / 1e6,
        after.saturating_sub(before) as f64 / 1e3 / count as f64
    );
    let cpu = relay.cpu()?;
    sleep(PING_INTERVAL).await;
    let cpu = relay.cpu()? - cpu;
    println!(
        "  idle for one ping interval    {:8.2} s CPU in {} s: {:.2} % of a core",
        cpu,
        PING_INTERVAL.as_secs(),
        cpu * 100.0 / PING_INTERVAL.as_secs_f64()
    );
    for signal in [Signal::TERM, Signal::KILL] {
        restart(&mut relay, &shared, count, signal).await?;
    }
    Ok(())
}

async fn restart(relay: &mut Relay, shared: &Clients, count: usize, signal: Signal) -> Result<()> {
    shared.clear_events();
    let began = Instant::now();
    relay.process.signal(signal)?;
    relay.process.wait(TIMEOUT).await?;
    let left = began.elapsed();
    relay.start_again().await?;
    let listening = began.elapsed();
    shared.all_connected(count).await?;
    let back = began.elapsed();
    let [dials, connects, registers] =
        [Event::Dial, Event::Connect, Event::Register].map(|event| shared.rate(event, began));
    let name = if signal == Signal::TERM { "SIGTERM" } else { "SIGKILL" };
    println!(
        "  after {name} all back in       {:8.1} s     half in {:.1} s, 99 % in {:.1} s; the relay \
         left after {:.1} s and listened after {:.1} s",
        back.as_secs_f64(),
        connects.half.as_secs_f64(),
        connects.most.as_secs_f64(),
        left.as_secs_f64(),
        listening.as_secs_f64(),
    );
    println!(
        "    connections {connects}, dials {dials}, registrations {registers}; relay CPU {:.1} s, \
         RSS {:.1} MB",
        relay.cpu()?,
        relay.memory()? as f64 / 1e6
    );
    Ok(())
}

// ---- the relay -----------------------------------------------------------

struct Relay {
    process: Process,
    flags: Vec<String>,
    state: TempDir,
    port: u16,
    scheme: &'static str,
}

impl Relay {
    async fn start(connections_max: usize, tls: Option<&Path>) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let mut flags = vec![format!("--connections-max={connections_max}")];
        if let Some(files) = tls {
            flags.push(format!("--tls-cert={}", files.join("relay.pem").display()));
            flags.push(format!("--tls-key={}", files.join("relay.key").display()));
        }
        let (process, port) = listening(state.path(), 0, &flags).await?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self { process, flags, state, port, scheme })
    }

    async fn start_again(&mut self) -> Result<()> {
        self.process = listening(self.state.path(), self.port, &self.flags).await?.0;
        Ok(())
    }

    /// Resident memory in bytes.
    fn memory(&self) -> Result<u64> {
        Ok(memory_kib(self.id()?, "VmRSS")? * 1024)
    }

    /// CPU time of the process, user and system, in seconds.
    fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.id()?)
    }

    fn id(&self) -> Result<u32> {
        self.process.id().context("the relay has ended")
    }
}

async fn listening(state: &Path, port: u16, flags: &[String]) -> Result<(Process, u16)> {
    let mut command = rendez()?;
    command.args(["relay", "--log", "info", &format!("--listen=0.0.0.0:{port}"), "--state"]);
    command.arg(state).args(flags);
    let process = Process::spawn(command)?;
    let find = |line: &str| line.split_once("listening address=0.0.0.0:")?.1.trim().parse().ok();
    let port = process.stderr_line(TIMEOUT, find).await?;
    Ok((process, port))
}

fn address(n: usize) -> String {
    format!("127.0.0.{}", n % ADDRESSES + 1)
}

// ---- clients -------------------------------------------------------------

/// The state that all clients share.
struct Clients {
    http: reqwest::Client,
    token: String,
    scheme: &'static str,
    port: u16,
    starting: Semaphore,
    connected: AtomicUsize,
    events: Mutex<EventLog>,
}

/// An event of a client.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    Dial,
    Connect,
    Register,
}

#[derive(Default)]
struct EventLog(Vec<(Instant, Event)>);

impl Clients {
    async fn new(relay: &Relay) -> Result<Self> {
        let mut command = rendez()?;
        command.args(["token", "create", "--role", "executor", "--state"]).arg(relay.state.path());
        let output = run(command, b"", TIMEOUT).await?;
        ensure!(output.status.success(), "{}", output.stderr_text());
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(rustls::ClientConfig::clone(&*tls::for_url("https:")?))
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .build()?;
        Ok(Self {
            http,
            token: output.stdout_text().trim().to_owned(),
            scheme: relay.scheme,
            port: relay.port,
            starting: Semaphore::new(STARTING),
            connected: AtomicUsize::new(0),
            events: Mutex::default(),
        })
    }

    async fn register(&self, n: usize) -> Result<String> {
        let (scheme, port) = (self.scheme, self.port);
        let url = format!("{scheme}://{}:{port}/cloud/environment/box-{n}/register", address(n));
        let call = self.http.post(url).bearer_auth(&self.token).json(&register_request());
        let reply: RegisterReply = call.send().await?.error_for_status()?.json().await?;
        self.note(Event::Register);
        Ok(reply.url.expose().to_owned())
    }

    fn note(&self, event: Event) {
        self.events.lock().0.push((Instant::now(), event));
    }

    fn connects(&self) -> usize {
        let events = self.events.lock();
        events.0.iter().filter(|(_, event)| *event == Event::Connect).count()
    }

    fn rate(&self, event: Event, since: Instant) -> Rate {
        self.events.lock().rate(event, since)
    }

    fn clear_events(&self) {
        self.events.lock().0.clear();
    }

    /// Waits until `count` clients are connected, and as many have connected since
    /// [`clear_events`](Self::clear_events).
    async fn all_connected(&self, count: usize) -> Result<()> {
        let all = async {
            while self.connected.load(Ordering::Relaxed) < count || self.connects() < count {
                sleep(Duration::from_millis(50)).await;
            }
        };
        let connected = || self.connected.load(Ordering::Relaxed);
        tokio::time::timeout(ALL_WITHIN, all)
            .await
            .with_context(|| format!("{} of {count} are connected", connected()))
    }
}

/// The number of events, the number in the busiest second, and when half and nearly
/// all had happened.
struct Rate {
    count: usize,
    peak: usize,
    half: Duration,
    most: Duration,
}

impl EventLog {
    fn rate(&self, event: Event, since: Instant) -> Rate {
        let times = self.0.iter().filter(|(_, what)| *what == event);
        let times = times.map(|(at, _)| at.saturating_duration_since(since));
        let mut times: Vec<Duration> = times.collect();
        times.sort();
        let seconds = times.chunk_by(|one, other| one.as_secs() == other.as_secs());
        let peak = seconds.map(<[_]>::len).max().unwrap_or_default();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        Rate { count: times.len(), peak, half: at(50), most: at(99) }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (at most {} in a second)", self.count, self.peak)
    }
}

/// The lifecycle of an agent without streams, as in
/// `executor-agent/src/agent/lifecycle.rs`.
async fn run_client(shared: Arc<Clients>, n: usize) {
    let mut backoff = Backoff::default();
    let mut registered: Option<String> = None;
    let mut failed_dials = 0;
    let mut starting = shared.starting.acquire().await.ok();
    loop {
        let url = match registered.take() {
            Some(url) if failed_dials < DIALS_PER_REGISTRATION => url,
            known => match shared.register(n).await {
                Ok(url) => {
                    failed_dials = 0;
                    url
                }
                Err(_) => {
                    registered = known;
                    failed_dials = 0;
                    wait(&mut backoff).await;
                    continue;
                }
            },
        };
        shared.note(Event::Dial);
        match dial(&url).await {
            Ok(socket) => {
                failed_dials = 0;
                starting = None;
                shared.note(Event::Connect);
                shared.connected.fetch_add(1, Ordering::Relaxed);
                let since = Instant::now();
                let ended = pump(socket, &mut Idle).await;
                shared.connected.fetch_sub(1, Ordering::Relaxed);
                backoff.connected_for(since.elapsed());
                if let Ended::ReconnectWithin(within) = ended {
                    backoff.reconnect_within(within);
                }
                registered = Some(url);
            }
            Err(error) => {
                failed_dials += 1;
                let useless = matches!(error, DialError::Refused(_) | DialError::Url(_));
                registered = (!useless).then_some(url);
            }
        }
        drop(starting.take());
        wait(&mut backoff).await;
    }
}

async fn wait(backoff: &mut Backoff) {
    let mut random = [0xff; 4];
    let _ = getrandom::fill(&mut random);
    sleep(backoff.next_delay(backoff::CAP, u32::from_le_bytes(random))).await;
}

/// An executor without streams; the pump sends and answers pings.
struct Idle;

impl Protocol for Idle {
    fn handle_message(&mut self, _: Instant, _: Bytes) -> Result<(), Violation> {
        Ok(())
    }

    fn wants_read(&self) -> bool {
        true
    }

    fn poll_transmit(&mut self, _: Instant, _: usize) -> Option<Bytes> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    fn handle_timeout(&mut self, _: Instant) {}

    fn register(&mut self, _: &Waker) {}

    fn closing(&self) -> Option<CloseFrame> {
        None
    }
}
