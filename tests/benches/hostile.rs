//! Honest environments beside a hostile orchestrator token and a flood of strangers:
//! their throughput, the time that `/livez` takes, and what the relay holds in memory.
//!
//! ```sh
//! cargo build --release -p rendez
//! cargo bench -p rendez-tests --bench hostile          # attacks for 60 s
//! cargo bench -p rendez-tests --bench hostile -- 10
//! ```
//!
//! First the honest pairs send as fast as they can: what the relay carries alone. Then
//! they send half of that, for as long without attacks as with them. The relay runs on
//! one core and all clients on the other. Attackers have a process of their own, whose
//! priority is the lowest, so that they do not take the honest pairs' own core.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use rendez_proto::frame::{Body, Frame};
use rendez_proto::ids::StreamId;
use rendez_proto::registry::{ConnectReply, ConnectRequest, RegisterReply};
use rendez_tests::process::usage::{memory_kib, pin};
use rendez_tests::relay::{Websocket, answer, data_frame, http_client, key, register_request};
use rendez_tests::rendez::OurRelay;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// Honest environments, with one stream each.
const PAIRS: usize = 8;
/// Bytes of an honest frame.
const FRAME_BYTES: usize = 16 * 1024;
/// How long the honest pairs send as fast as they can.
const ALONE: Duration = Duration::from_secs(5);
/// Default for how long the attacks last.
const ATTACK_SECS: u64 = 60;
/// Connections of strangers per second.
const STRANGERS: u64 = 1_000;
/// Strangers that are connected at once at most; the oldest leaves for a new one.
const STRANGERS_AT_ONCE: usize = 4_000;
/// Websockets that the hostile token opens with a message that never ends.
const UNFINISHED: u8 = 100;
/// Lists that the hostile token has in flight.
const LISTS: usize = 60;
/// Time between two requests for `/livez`.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// How long the relay may take to give everything back.
const SETTLE: Duration = Duration::from_secs(90);
/// The charged bytes of the relay.
const CHARGED: &str = "rendez_relay_queue_bytes ";

/// The first argument of the attackers' process. The others are the members of
/// [`Clients`].
const ATTACKERS: &str = "--attackers";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [ATTACKERS, url, address, executor, orchestrator] =
        &*words.iter().map(String::as_str).collect::<Vec<_>>()
    {
        return runtime.block_on(attack(Clients {
            http: http_client(url)?,
            url: (*url).to_owned(),
            address: address.parse()?,
            executor: (*executor).to_owned(),
            orchestrator: (*orchestrator).to_owned(),
        }));
    }
    pin(std::process::id(), "1")?;
    let seconds = words.iter().find_map(|word| word.parse().ok());
    runtime.block_on(measure(Duration::from_secs(seconds.unwrap_or(ATTACK_SECS))))
}

/// Starts the attackers' process; it inherits the core.
fn attackers(hostile: &Clients) -> Result<Attackers> {
    let mut command = Command::new("nice");
    command.args(["-n", "19"]).arg(std::env::current_exe()?).arg(ATTACKERS);
    command.args([&hostile.url, &hostile.address.to_string()]);
    Ok(Attackers(command.args([&hostile.executor, &hostile.orchestrator]).spawn()?))
}

/// The attackers' process; dropping it ends it.
struct Attackers(Child);

impl Drop for Attackers {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn measure(seconds: Duration) -> Result<()> {
    let mut relay = OurRelay::start_with(["--admin-listen", "127.0.0.1:0"]).await?;
    let id = relay.process().id().context("the relay has ended")?;
    pin(id, "0")?;
    let clients = Clients {
        http: http_client(relay.url())?,
        url: relay.url().to_owned(),
        address: relay.address(),
        executor: relay.token("executor").await?,
        orchestrator: relay.token("orchestrator").await?,
    };
    let hostile = Clients {
        http: http_client(relay.url())?,
        url: relay.url().to_owned(),
        address: relay.address(),
        executor: relay.token("executor").await?,
        orchestrator: relay.token("orchestrator").await?,
    };

    let alone = honest(&clients, None, ALONE).await?.bytes_per_second;
    println!("{PAIRS} honest pairs, frames of {FRAME_BYTES} bytes");
    println!("  alone, as fast as they can  {:8.1} MB/s", alone / 1e6);
    let offered = alone / 2.0;
    let quiet = honest(&clients, Some(offered), seconds).await?;
    let charged = charged(&relay).await?;
    let resident = memory_kib(id, "VmRSS")?;
    report("quiet", &quiet, offered);

    let attackers = attackers(&hostile)?;
    let attacked = honest(&clients, Some(offered), seconds).await?;
    report("attacked", &attacked, offered);
    let resident_attacked = memory_kib(id, "VmRSS")?;
    drop(attackers);

    let kept = attacked.bytes_per_second / quiet.bytes_per_second;
    println!("  kept                        {:8.1} %", 100.0 * kept);
    let began = Instant::now();
    let mut after = self::charged(&relay).await?;
    while after > charged && began.elapsed() < SETTLE {
        sleep(Duration::from_secs(1)).await;
        after = self::charged(&relay).await?;
    }
    println!(
        "  charged bytes before, after {charged:8} {after}, {:.0} s after the attacks",
        began.elapsed().as_secs_f64()
    );
    let ratio = |kib: u64| kib as f64 / resident as f64;
    println!(
        "  RSS before, at the end of the attacks, after: {:.1} MB, {:.2}x, {:.2}x",
        resident as f64 / 1e3,
        ratio(resident_attacked),
        ratio(memory_kib(id, "VmRSS")?),
    );
    Ok(())
}

fn report(what: &str, measured: &Measured, offered: f64) {
    println!(
        "  {what:9} offered {:.1} MB/s   {:8.1} MB/s, /livez p50 {:.1} ms, p99 {:.1} ms, {} without \
         an answer",
        offered / 1e6,
        measured.bytes_per_second / 1e6,
        measured.percentile(50),
        measured.percentile(99),
        measured.unanswered,
    );
}

async fn charged(relay: &OurRelay) -> Result<u64> {
    let metrics = relay.metrics().await?;
    let line = metrics.lines().find_map(|line| line.strip_prefix(CHARGED));
    Ok(line.with_context(|| format!("no {CHARGED}in the metrics"))?.trim().parse()?)
}

// ---- honest pairs --------------------------------------------------------

struct Measured {
    bytes_per_second: f64,
    /// Times of `/livez` in milliseconds, sorted.
    livez: Vec<f64>,
    unanswered: usize,
}

impl Measured {
    fn percentile(&self, share: usize) -> f64 {
        self.livez.get(self.livez.len() * share / 100).copied().unwrap_or(f64::NAN)
    }
}

/// Honest pairs that send for `lasting`, together `offered` bytes per second or as
/// many as they can.
async fn honest(clients: &Clients, offered: Option<f64>, lasting: Duration) -> Result<Measured> {
    let received = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..PAIRS {
        let environment = format!("honest-{n}");
        let mut receiver = clients.register(&environment).await?;
        let sender = clients.connect(&environment, 7).await?;
        let count = received.clone();
        tasks.spawn(async move {
            loop {
                let bytes = receiver.receive_without_timeout().await?.len() as u64;
                count.fetch_add(bytes, Relaxed);
            }
        });
        tasks.spawn(send(sender, offered.map(|offered| offered / PAIRS as f64)));
    }
    let began = Instant::now();
    let (livez, unanswered) = probe(clients.address, lasting).await;
    let bytes_per_second = received.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
    if let Some(ended) = tasks.try_join_next() {
        ended?.context("an honest connection ended")?;
    }
    Ok(Measured { bytes_per_second, livez, unanswered })
}

async fn send(mut sender: Websocket, rate: Option<f64>) -> Result<()> {
    let frame = data_frame(&stream(1), 1, &vec![7; FRAME_BYTES]);
    let began = Instant::now();
    let mut sent = 0.0;
    loop {
        sender.send_without_timeout(frame.clone()).await?;
        sent += frame.len() as f64;
        match rate {
            None => tokio::task::yield_now().await,
            Some(rate) => {
                // The timer counts milliseconds: a sender that is late sleeps no time.
                let early = Duration::from_secs_f64(sent / rate).saturating_sub(began.elapsed());
                if early.is_zero() {
                    tokio::task::yield_now().await;
                } else {
                    sleep(early).await;
                }
            }
        }
    }
}

/// Requests `/livez` over new connections. Returns the times in milliseconds, and how
/// many had no answer.
async fn probe(address: SocketAddr, lasting: Duration) -> (Vec<f64>, usize) {
    let began = Instant::now();
    let (mut times, mut unanswered) = (Vec::new(), 0);
    let mut tick = interval(PROBE_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while began.elapsed() < lasting {
        tick.tick().await;
        let asked = Instant::now();
        match timeout(Duration::from_secs(10), livez(address)).await {
            Ok(Ok(true)) => times.push(asked.elapsed().as_secs_f64() * 1e3),
            _ => unanswered += 1,
        }
    }
    times.sort_by(f64::total_cmp);
    (times, unanswered)
}

async fn livez(address: SocketAddr) -> Result<bool> {
    let mut tcp = TcpStream::connect(address).await?;
    tcp.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
    let mut response = String::new();
    tcp.read_to_string(&mut response).await?;
    Ok(response.starts_with("HTTP/1.1 200"))
}

/// Tokens for the relay.
struct Clients {
    http: reqwest::Client,
    url: String,
    address: SocketAddr,
    executor: String,
    orchestrator: String,
}

impl Clients {
    async fn register(&self, environment: &str) -> Result<Websocket> {
        let url = format!("{}/cloud/environment/{environment}/register", self.url);
        let call = self.http.post(url).bearer_auth(&self.executor).json(&register_request());
        let reply: RegisterReply = answer(call).await?;
        Websocket::open(reply.url.expose()).await
    }

    async fn connect(&self, environment: &str, key_number: u8) -> Result<Websocket> {
        let url = format!("{}/cloud/environment/{environment}/connect", self.url);
        let body = ConnectRequest { harness_public_key: key(key_number), rendez: None };
        let call = self.http.post(url).bearer_auth(&self.orchestrator).json(&body);
        let reply: ConnectReply = answer(call).await?;
        Websocket::open(reply.url.expose()).await
    }
}

fn stream(n: u8) -> StreamId {
    StreamId::from_random([n; 16])
}

// ---- attacks -------------------------------------------------------------

/// All attacks, for ever. The relay may end their connections and refuse their requests
/// meanwhile.
async fn attack(hostile: Clients) -> Result<()> {
    let (hostile, mut tasks) = (Arc::new(hostile), JoinSet::new());
    for n in 0..UNFINISHED {
        tasks.spawn(repeat(hostile.clone(), move |clients| unfinished(clients, n)));
    }
    for _ in 0..LISTS {
        tasks.spawn(repeat(hostile.clone(), list));
    }
    tasks.spawn(repeat(hostile.clone(), unread));
    tasks.spawn(repeat(hostile.clone(), handshakes));
    tasks.spawn(repeat(hostile.clone(), random_frames));
    tasks.spawn(repeat(hostile.clone(), reconnects));
    tasks.spawn(strangers(hostile.address));
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

/// Repeats an attack; when it fails, after a pause.
async fn repeat<F: Future<Output = Result<()>>>(
    clients: Arc<Clients>,
    attack: impl Fn(Arc<Clients>) -> F,
) {
    loop {
        if attack(clients.clone()).await.is_err() {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A message that never ends, kept alive by pongs.
async fn unfinished(clients: Arc<Clients>, n: u8) -> Result<()> {
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
    let _executor = match n {
        0 => Some(clients.register("hostile").await?),
        _ => None,
    };
    let mut socket = clients.connect("hostile", n).await?;
    let fragment = Frame::message(vec![7; 256 * 1024 - 16], OpCode::Data(Data::Binary), false);
    socket.send(Message::Frame(fragment)).await?;
    loop {
        sleep(Duration::from_secs(1)).await;
        socket.send(Message::Pong(Bytes::new())).await?;
    }
}

/// A list with a pattern that matches nothing.
async fn list(clients: Arc<Clients>) -> Result<()> {
    let url = format!("{}/v1/environments?pattern=nothing-*", clients.url);
    let reply = clients.http.get(url).bearer_auth(&clients.orchestrator).send().await?;
    reply.error_for_status()?.bytes().await?;
    Ok(())
}

/// Large acks and data for orchestrators that do not read.
async fn unread(clients: Arc<Clients>) -> Result<()> {
    let mut executor = clients.register("hostile-unread").await?;
    let mut readers = Vec::new();
    for n in 0..10 {
        let mut reader = clients.connect("hostile-unread", n).await?;
        reader.send_binary(data_frame(&stream(n), 0, b"hello")).await?;
        readers.push(reader);
    }
    let padding = vec![7; 1_800];
    loop {
        for n in 0..10 {
            executor.feed_binary(data_frame(&stream(n), 1, &padding)).await?;
        }
        executor.flush().await?;
    }
}

/// Handshakes that cannot succeed.
async fn handshakes(clients: Arc<Clients>) -> Result<()> {
    let mut socket = clients.connect("hostile", 200).await?;
    let message = Bytes::from(vec![7; 3_500]);
    for n in 0..u8::MAX {
        let body = Body::Handshake { message: message.clone(), profile: String::new() };
        socket.send_binary(Frame::bare(stream(n), body).encode()).await?;
        socket.receive().await?;
    }
    Ok(())
}

/// Bytes that are no frames.
async fn random_frames(clients: Arc<Clients>) -> Result<()> {
    let mut socket = clients.connect("hostile", 201).await?;
    socket.send_binary(vec![0xff, 7, 0xff]).await?;
    socket.closed().await?;
    Ok(())
}

/// Opens and closes websockets.
async fn reconnects(clients: Arc<Clients>) -> Result<()> {
    clients.connect("hostile", 202).await.map(drop)
}

/// Strangers that connect, send half a request, and stay.
async fn strangers(address: SocketAddr) {
    let mut connected = std::collections::VecDeque::new();
    let mut tick = interval(Duration::from_micros(1_000_000 / STRANGERS));
    loop {
        tick.tick().await;
        let Ok(Ok(mut tcp)) = timeout(Duration::from_secs(1), TcpStream::connect(address)).await
        else {
            continue;
        };
        let _ = tcp.try_write(b"GET /v1/environments HTTP/1.1\r\nhost: ");
        let _ = tcp.flush().await;
        connected.push_back(tcp);
        if connected.len() > STRANGERS_AT_ONCE {
            connected.pop_front();
        }
    }
}
