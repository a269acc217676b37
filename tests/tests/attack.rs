//! Attacks on a relay, each while a victim exchanges frames continuously.
//!
//! Every test requires that the victim loses nothing, and that the relay afterwards
//! has the same number of sockets, hubs, streams, tasks and descriptors as before.
//! It prints the victim's round trips, quiet and attacked, and the memory that the
//! attack cost (`--nocapture`). Times are not asserted, because the machine may be
//! busy.
//!
//! Replayed, forged and foreign tickets, stolen stream ids and single protocol
//! violations are in `bad_input.rs`; peers that vanish silently are simulated in
//! `tests/sim`, and on real links in `survive_netns.rs`.

use std::fmt::Debug;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use parking_lot::Mutex;
use rendez_proto::frame::{Body, Frame};
use rendez_proto::ids::StreamId;
use rendez_proto::limits;
use rendez_proto::peek::{Kind, peek};
use rendez_proto::registry::admin::Role;
use rendez_relay::Quotas;
use rendez_relay::config::MaybeMax;
use rendez_relay::connections::{End, StrangerClosed};
use rendez_relay_core::{Dropped, Quota, RATE_BURST};
use rendez_tests::poll::poll;
use rendez_tests::process::usage::memory_kib;
use rendez_tests::relay::{
    Counter, SHORT_TIMEOUT, TestRelay, Websocket, Witness, data_frame, key, token_id,
};
use rendez_tests::survive::random::Random;
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as WsFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// The victim's environment.
const VICTIM: &str = "victim";
/// The environment of the attacker's own executor.
const HOSTILE: &str = "hostile";
/// Round trips that are measured before an attack.
const QUIET_ROUNDS: usize = 200;
/// Longest wait for anything on a busy machine.
const LONG_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two checks of the footprint.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Descriptors belong to the whole process and tasks to the whole runtime, so all
/// attacks run on this runtime, one at a time, and each must leave it empty.
static RUNTIME: LazyLock<Mutex<Runtime>> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Mutex::new(builder.worker_threads(2).enable_all().build().expect("a runtime"))
});

/// Runs an attack alone on the runtime, and requires that nothing of it is left.
fn exclusively(attack: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = RUNTIME.lock();
    runtime.block_on(async {
        let look = || anyhow::Ok((tasks(), descriptors(|_| true)?));
        let empty = look()?;
        attack.await?;
        back_to(&empty, look).await.context("after the relay's end")
    })
}

/// Waits until `look` returns its earlier value.
async fn back_to<T: PartialEq + Debug>(before: &T, look: impl Fn() -> Result<T>) -> Result<()> {
    poll(LONG_TIMEOUT, async || {
        let now = look()?;
        Ok(if now == *before { Ok(()) } else { Err(format!("{now:?}; before: {before:?}")) })
    })
    .await
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// The number of open descriptors whose target counts.
fn descriptors(counts: impl Fn(&Path) -> bool) -> Result<usize> {
    let open = std::fs::read_dir("/proc/self/fd")?;
    // A descriptor that is closed meanwhile is not counted.
    Ok(open.flatten().flat_map(|entry| entry.path().read_link()).filter(|on| counts(on)).count())
}

/// A relay, the victim, and the state before the attack.
struct AttackRun {
    relay: TestRelay,
    stop: oneshot::Sender<()>,
    victim: JoinHandle<Result<(Witness, Vec<Duration>)>>,
    quiet: Vec<Duration>,
    before: Footprint,
}

/// The resources that an attack must not leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Footprint {
    connected: (usize, usize),
    hubs: usize,
    streams: usize,
    tasks: usize,
    descriptors: usize,
}

impl AttackRun {
    async fn start() -> Result<Self> {
        Self::with(Quotas::default()).await
    }

    async fn with(quotas: Quotas) -> Result<Self> {
        let relay = TestRelay::start().await?;
        relay.set_quotas(quotas);
        let mut witness = Witness::start(&relay, VICTIM).await?;
        let mut quiet = Vec::new();
        for _ in 0..QUIET_ROUNDS {
            quiet.push(timed(&mut witness).await?);
        }
        let (stop, mut stopped) = oneshot::channel();
        let before = settled(&relay).await?;
        let victim = tokio::spawn(async move {
            let mut rounds = Vec::new();
            while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
                rounds.push(timed(&mut witness).await.context("the victim was disturbed")?);
            }
            Ok((witness, rounds))
        });
        // The victim's own task is new.
        let before = Footprint { tasks: before.tasks + 1, ..before };
        Ok(Self { relay, stop, victim, quiet, before })
    }

    /// Ends the attack: no resource may be leaked, and the victim still works.
    async fn end(self, attack: &str) -> Result<()> {
        back_to(&self.before, || footprint(&self.relay)).await.context(attack.to_owned())?;
        let _ = self.stop.send(());
        let (mut witness, attacked) = timeout(LONG_TIMEOUT, self.victim).await???;
        witness.exchange().await?;
        ensure!(!attacked.is_empty(), "the victim exchanged no frames meanwhile");
        let line = |what: &str, mut rounds: Vec<Duration>| {
            rounds.sort_unstable();
            let at = |percent: usize| rounds[(rounds.len() - 1) * percent / 100];
            eprintln!(
                "{attack}: {what} {} rounds, p50 {:?}, p99 {:?}",
                rounds.len(),
                at(50),
                at(99)
            );
        };
        line("quiet", self.quiet);
        line("attacked", attacked);
        eprintln!(
            "{attack}: {} KiB of memory at the end",
            memory_kib(std::process::id(), "VmRSS")?
        );
        Ok(())
    }
}

async fn timed(witness: &mut Witness) -> Result<Duration> {
    let began = Instant::now();
    witness.exchange().await?;
    Ok(began.elapsed())
}

/// The footprint once it has stopped changing: the connection of the last request
/// may be about to close.
async fn settled(relay: &TestRelay) -> Result<Footprint> {
    const LOOKS: u32 = 10;
    let mut look = interval(LOOK_INTERVAL);
    let (mut last, mut same) = (footprint(relay)?, 0);
    let settling = async {
        while same < LOOKS {
            look.tick().await;
            let now = footprint(relay)?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        anyhow::Ok(last)
    };
    timeout(LONG_TIMEOUT, settling).await?
}

fn footprint(relay: &TestRelay) -> Result<Footprint> {
    let counts = relay.connection_counts();
    Ok(Footprint {
        connected: (counts.executors, counts.orchestrators),
        hubs: counts.hubs,
        streams: counts.streams,
        tasks: tasks(),
        // The database's pool opens connections on demand and keeps them.
        descriptors: descriptors(|on| !on.starts_with(relay.state()))?,
    })
}

fn stream(n: u64) -> StreamId {
    let mut bytes = [0xaa; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    StreamId::from_random(bytes)
}

/// Waits for an audit row about this limit that names this token.
async fn audited(relay: &TestRelay, limit: &str, token: &str) -> Result<()> {
    let admin = relay.token(Role::Admin, "*").await?;
    poll(LONG_TIMEOUT, async || {
        let request = relay.request(Method::GET, "/v1/audit").bearer_auth(admin.expose());
        let log = request.send().await?.text().await?;
        let found = log.contains(limit) && log.contains(token);
        Ok(if found { Ok(()) } else { Err(format!("no row in the audit log: {log}")) })
    })
    .await
}

#[test]
fn hostile_handshakes_are_limited_per_token() -> Result<()> {
    exclusively(async {
        const ATTEMPTS: u64 = 10_000;
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        // Like a stock executor, it answers each bad handshake with a reset.
        let mut executor = relay.executor(HOSTILE).await?;
        let token = relay.token(Role::Orchestrator, HOSTILE).await?;
        let (done, mut over) = oneshot::channel();
        let refusing = tokio::spawn(async move {
            let mut seen = 0;
            loop {
                let frame = tokio::select! {
                    frame = executor.receive_without_timeout() => frame?,
                    _ = &mut over => return anyhow::Ok((executor, seen)),
                };
                let parsed = peek(&frame)?;
                if parsed.kind == Kind::Handshake {
                    seen += 1;
                    let reset = Body::Reset { reason: "noise_relay_protocol_error".into() };
                    let reset = Frame::bare(parsed.stream.parse()?, reset).encode();
                    executor.send_binary(reset).await?;
                }
            }
        });
        let reply = relay.connect_with(HOSTILE, key(66), token.expose()).await?;
        let mut hostile = Websocket::open(reply.url.expose()).await?;
        let message = Bytes::from(vec![7; 3_500]);
        for n in 0..ATTEMPTS {
            let body = Body::Handshake { message: message.clone(), profile: String::new() };
            hostile.send_binary(Frame::bare(stream(n), body).encode()).await?;
            // Every attempt is answered, by the executor or by the relay.
            let answer = hostile.receive().await?;
            ensure!(peek(&answer)?.kind == Kind::Reset);
        }
        // A handshake with another token gets through meanwhile.
        let other = relay.token(Role::Orchestrator, HOSTILE).await?;
        let reply = relay.connect_with(HOSTILE, key(67), other.expose()).await?;
        let mut honest = Websocket::open(reply.url.expose()).await?;
        let body = Body::Handshake { message, profile: String::new() };
        honest.send_binary(Frame::bare(stream(u64::MAX), body).encode()).await?;
        honest.receive().await?;
        let _ = done.send(());
        let (executor, seen) = timeout(LONG_TIMEOUT, refusing).await???;
        ensure!(
            seen == limits::HANDSHAKE_FAILURES_PER_TOKEN + 1,
            "{seen} handshakes reached the executor, which turns deaf after {}",
            limits::HANDSHAKE_FAILURES
        );
        drop((hostile, honest, executor));
        run.end("10,000 handshakes").await
    })
}

#[test]
fn random_frames_do_not_disturb_others() -> Result<()> {
    exclusively(async {
        const FRAMES: u64 = 1_000_000;
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        let mut executor = relay.executor(HOSTILE).await?;
        let mut random = Random::new(1);
        let good = data_frame(&stream(1), 1, b"a record of some length, to have bytes to change");
        for n in 0..FRAMES {
            let mut frame = good.to_vec();
            if n % 2 == 0 {
                let length = random.next_u64() % 64;
                frame = (0..length).map(|_| random.next_u64() as u8).collect();
            } else {
                for _ in 0..=random.next_u64() % 4 {
                    let at = random.next_u64() as usize % frame.len();
                    frame[at] = random.next_u64() as u8;
                }
            }
            executor.feed_binary(frame).await?;
        }
        executor.flush().await?;
        // The relay is stricter with orchestrators: the first frame that cannot be
        // routed closes their websocket.
        let mut closed = 0;
        for n in 0..50 {
            let mut hostile = relay.orchestrator(HOSTILE, key(n)).await?;
            let _ = hostile.send_binary(vec![0xff, n, 0xff]).await;
            closed += u32::from(hostile.closed().await?.0 == 1002);
        }
        ensure!(closed == 50, "{closed} websockets were closed");
        drop(executor);
        run.end("1,000,000 frames").await
    })
}

#[test]
fn unfinished_requests_and_websockets_time_out() -> Result<()> {
    exclusively(async {
        const CONNECTIONS: usize = 200;
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut socket = TcpStream::connect(relay.address()).await?;
            socket.write_all(b"GET /livez HTTP/1.1\r\nhost: relay\r\nx-slow: ").await?;
            slow.push(socket);
        }
        // Upgraded, then half a frame.
        let mut half = Vec::new();
        for n in 0..20 {
            let reply = relay.connect(VICTIM, key(n)).await?;
            let url = reply.url.expose().to_owned();
            let path = url.split_once(relay.address()).context("its own address")?.1.to_owned();
            let mut socket = TcpStream::connect(relay.address()).await?;
            let upgrade = format!(
                "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
                relay.address()
            );
            socket.write_all(upgrade.as_bytes()).await?;
            let mut head = [0; 12];
            socket.read_exact(&mut head).await?;
            ensure!(&head == b"HTTP/1.1 101");
            socket.write_all(&[0x82, 0xfe, 0xff, 0xff, 1, 2]).await?;
            half.push(socket);
        }
        // Sends single bytes until the relay closes, which its own timeout decides.
        let mut hung_up = 0;
        for mut socket in slow {
            let gone = async {
                let mut drip = interval(Duration::from_millis(200));
                let mut rest = [0; 64];
                loop {
                    tokio::select! {
                        read = socket.read(&mut rest) => return read.map_or(0, |read| read),
                        _ = drip.tick() => {}
                    }
                    if socket.write_all(b"a").await.is_err() {
                        return 0;
                    }
                }
            };
            ensure!(timeout(LONG_TIMEOUT, gone).await? == 0, "an unfinished request was answered");
            hung_up += 1;
        }
        ensure!(hung_up == CONNECTIONS);
        drop(half);
        run.end("slow requests and websockets").await
    })
}

#[test]
fn compression_is_neither_negotiated_nor_decoded() -> Result<()> {
    exclusively(async {
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        let reply = relay.connect(VICTIM, key(9)).await?;
        let url = reply.url.expose().replacen("ws://", "http://", 1);
        let path = url.split_once(relay.address()).context("its own address")?.1;
        let offered = relay
            .request(Method::GET, path)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-extensions", "permessage-deflate; client_max_window_bits")
            .send()
            .await?;
        ensure!(offered.status() == StatusCode::SWITCHING_PROTOCOLS);
        ensure!(!offered.headers().contains_key("sec-websocket-extensions"));
        drop(offered);
        // A body that claims to be compressed is not decompressed.
        let zeros = vec![0; limits::REGISTRY_BODY_MAX_BYTES / 2];
        let answered = relay
            .call(VICTIM, "register")
            .bearer_auth(relay.executor_token())
            .header("content-encoding", "gzip")
            .header("content-type", "application/json")
            .body(zeros)
            .send()
            .await?;
        ensure!(answered.status().is_client_error(), "{}", answered.status());
        drop(answered);
        run.end("compression").await
    })
}

#[test]
fn oversized_headers_and_queries_are_refused() -> Result<()> {
    exclusively(async {
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        let many: String = (0..5_000).map(|n| format!("x-{n}: y\r\n")).collect();
        let long = "q".repeat(200_000);
        for round in 0..100 {
            let request = match round % 2 {
                0 => format!("GET /livez HTTP/1.1\r\nhost: relay\r\n{many}\r\n"),
                _ => format!("GET /v1/rendezvous?ticket={long} HTTP/1.1\r\nhost: relay\r\n\r\n"),
            };
            let mut socket = TcpStream::connect(relay.address()).await?;
            // The relay may answer and close before it has read all of it.
            let _ = socket.write_all(request.as_bytes()).await;
            let mut answer = Vec::new();
            let _ = timeout(SHORT_TIMEOUT, socket.read_to_end(&mut answer)).await?;
            let text = String::from_utf8_lossy(&answer);
            ensure!(
                answer.is_empty() || text.starts_with("HTTP/1.1 4"),
                "answered with {}",
                text.lines().next().unwrap_or_default()
            );
        }
        let fine = relay.request(Method::GET, "/livez").send().await?;
        ensure!(fine.status() == StatusCode::OK);
        drop(fine);
        run.end("headers and queries").await
    })
}

#[test]
fn frame_rate_is_limited_per_token() -> Result<()> {
    exclusively(async {
        const RATE: u64 = 1_000;
        const STORM: u64 = 4_000;
        let quotas = Quotas::default();
        let token = Quota { frames_per_second: RATE, ..quotas.token };
        // The victim's tokens are exempt, the attacker's is not.
        let run = AttackRun::with(quotas.clone()).await?;
        let relay = &run.relay;
        let hostile = relay.token(Role::Orchestrator, HOSTILE).await?;
        let mut limited = quotas;
        limited.tokens.insert(token_id(hostile.expose())?, token);
        relay.set_quotas(limited);

        let mut executor = relay.executor(HOSTILE).await?;
        let reply = relay.connect_with(HOSTILE, key(66), hostile.expose()).await?;
        let mut storm = Websocket::open(reply.url.expose()).await?;
        let began = Instant::now();
        let sending = tokio::spawn(async move {
            for seq in 0..STORM as u32 {
                storm.feed_binary(data_frame(&stream(1), seq, &[7; 100])).await?;
            }
            storm.flush().await?;
            anyhow::Ok(storm)
        });
        for _ in 0..STORM {
            executor.receive_without_timeout().await?;
        }
        let took = began.elapsed();
        // A burst of one second passes at once.
        let least = Duration::from_secs(STORM / RATE) - RATE_BURST - Duration::from_millis(50);
        ensure!(took >= least, "{STORM} frames in {took:?}");
        ensure!(relay.held_back() > 0);
        drop((timeout(LONG_TIMEOUT, sending).await???, executor));
        run.end("a storm of frames").await
    })
}

/// A new websocket, ticket and stream for each attempt does not help the attacker.
#[test]
fn reconnecting_does_not_reset_handshake_limit() -> Result<()> {
    exclusively(async {
        const ATTEMPTS: u64 = 30;
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        let mut executor = relay.executor(HOSTILE).await?;
        let token = relay.token(Role::Orchestrator, HOSTILE).await?;
        let mut reached = 0;
        for n in 0..ATTEMPTS {
            let reply = relay.connect_with(HOSTILE, key(66), token.expose()).await?;
            let mut hostile = Websocket::open(reply.url.expose()).await?;
            let body = Body::Handshake { message: vec![7; 3_500].into(), profile: String::new() };
            hostile.send_binary(Frame::bare(stream(n), body).encode()).await?;
            // A stock executor sends a reset; the relay sends one itself when it
            // refuses.
            let refused = tokio::select! {
                answer = hostile.receive() => peek(&answer?)?.kind == Kind::Reset,
                seen = executor.receive_without_timeout() => {
                    ensure!(peek(&seen?)?.kind == Kind::Handshake);
                    let reset = Body::Reset { reason: "noise_relay_protocol_error".into() };
                    executor.send_binary(Frame::bare(stream(n), reset).encode()).await?;
                    ensure!(peek(&hostile.receive().await?)?.kind == Kind::Reset);
                    reached += 1;
                    true
                }
            };
            ensure!(refused);
            drop(hostile);
        }
        ensure!(
            reached == limits::HANDSHAKE_FAILURES_PER_TOKEN,
            "{reached} handshakes reached the executor"
        );
        drop(executor);
        run.end("reconnecting for each handshake").await
    })
}

/// A connection beyond the quota is refused with the reason, and audited.
#[test]
fn websockets_are_limited_per_token() -> Result<()> {
    exclusively(async {
        let run = AttackRun::start().await?;
        let relay = &run.relay;
        let greedy = relay.token(Role::Orchestrator, VICTIM).await?;
        let id = token_id(greedy.expose())?;
        let mut quotas = Quotas::default();
        quotas.tokens.insert(id.clone(), Quota { connections: 3, ..quotas.token });
        relay.set_quotas(quotas);
        let mut open = Vec::new();
        for n in 0..3 {
            let reply = relay.connect_with(VICTIM, key(n), greedy.expose()).await?;
            open.push(Websocket::open(reply.url.expose()).await?);
        }
        let reply = relay.connect_with(VICTIM, key(9), greedy.expose()).await?;
        let (status, body) = relay.refused_upgrade(reply.url.expose()).await?;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
        ensure!(body.error.message.contains("the token's quota of connections"), "{body:?}");
        audited(relay, "connections of the token", &id).await?;
        drop(open);
        run.end("more websockets than a token has").await
    })
}

#[test]
fn stalled_reader_uses_bounded_memory() -> Result<()> {
    exclusively(async {
        const MEMORY: u64 = 8 << 20;
        let quotas = Quotas {
            environment: Quota { memory_bytes: MEMORY, ..Quota::UNLIMITED },
            ..Quotas::default()
        };
        let run = AttackRun::with(quotas).await?;
        let relay = &run.relay;
        let mut executor = relay.executor(HOSTILE).await?;
        let reader = relay.orchestrator(HOSTILE, key(66)).await?;
        let mut reader = reader;
        reader.send_binary(data_frame(&stream(1), 0, b"hello")).await?;
        executor.receive().await?;
        // The Codex profile cannot resend: the relay pauses reading from the
        // executor, then resets the stream, and every other stream goes on.
        let record = vec![7; 60_000];
        let mut most = 0;
        let flood = async {
            loop {
                most = most.max(relay.memory_used());
                executor.send_without_timeout(data_frame(&stream(1), 1, &record)).await?;
                if relay.counters().get(Counter::Dropped(Dropped::Overloaded)) > 0 {
                    return anyhow::Ok(());
                }
            }
        };
        timeout(LONG_TIMEOUT, flood).await??;
        ensure!(
            (MEMORY as usize / 4..=MEMORY as usize + limits::MESSAGE_MAX_BYTES).contains(&most),
            "at most {most} bytes waited in the relay"
        );
        drop((executor, reader));
        run.end("a reader that reads nothing").await
    })
}

/// A relay for 50 connections, 50 clients that say nothing, and one that asks it.
async fn lock_strangers_out(
    strangers: MaybeMax,
) -> Result<(TestRelay, Vec<TcpStream>, impl Future<Output = Result<StatusCode>>)> {
    const CONNECTIONS: usize = 50;
    let relay = TestRelay::start_with(|config| {
        config.connections_max = CONNECTIONS;
        config.strangers_max = strangers;
    })
    .await?;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(relay.address()).await?);
    }
    let request = relay.request(Method::GET, "/livez");
    let asked = async move { anyhow::Ok(request.send().await?.status()) };
    Ok((relay, silent, asked))
}

#[test]
fn silent_strangers_lock_nobody_out() -> Result<()> {
    exclusively(async {
        let (relay, silent, asked) = lock_strangers_out(MaybeMax::Max(10_000)).await?;
        ensure!(timeout(SHORT_TIMEOUT, asked).await?? == StatusCode::OK);
        // Those that have shown a token stay, and no stranger takes their place.
        let mut witness = Witness::start(&relay, VICTIM).await?;
        let mut more = Vec::new();
        for _ in 0..100 {
            more.push(TcpStream::connect(relay.address()).await?);
            witness.exchange().await?;
        }
        let closed = relay.strangers_closed(StrangerClosed::Full);
        ensure!(closed >= 75, "{closed} strangers were closed");
        drop((silent, more, witness, relay));
        Ok(())
    })
}

/// Without a bound, strangers keep their places until they time out.
#[test]
fn silent_strangers_lock_others_out_without_bounds() -> Result<()> {
    exclusively(async {
        let (relay, mut silent, asked) = lock_strangers_out(MaybeMax::None).await?;
        let mut asked = Box::pin(asked);
        ensure!(timeout(Duration::from_secs(2), &mut asked).await.is_err(), "it was answered");
        silent.clear();
        ensure!(timeout(SHORT_TIMEOUT, asked).await?? == StatusCode::OK);
        drop(relay);
        Ok(())
    })
}

/// Quotas of a small relay.
fn small_quotas() -> Quotas {
    let with = |mib: u64| Quota { memory_bytes: mib << 20, ..Quota::UNLIMITED };
    Quotas {
        node: with(2),
        environment: with(2),
        token: with(1),
        connection: with(1),
        ..Quotas::default()
    }
}

/// What a relay with small quotas may hold.
const SMALL_NODE_BYTES: usize = 2 << 20;

fn no_quotas() -> Quotas {
    let none = Quota::UNLIMITED;
    Quotas { node: none, environment: none, token: none, connection: none, ..Quotas::default() }
}

/// A token's websockets begin messages and do not end them.
async fn leave_messages_unfinished(quotas: Quotas) -> Result<(AttackRun, Vec<Websocket>, String)> {
    const WEBSOCKETS: u8 = 100;
    let run = AttackRun::with(quotas).await?;
    let relay = &run.relay;
    let token = relay.token(Role::Orchestrator, VICTIM).await?;
    let mut open = Vec::new();
    for n in 0..WEBSOCKETS {
        let reply = relay.connect_with(VICTIM, key(n), token.expose()).await?;
        let mut websocket = Websocket::open(reply.url.expose()).await?;
        let begun = vec![7; limits::MESSAGE_MAX_BYTES - 16];
        let fragment = WsFrame::message(begun, OpCode::Data(Data::Binary), false);
        websocket.send(Message::Frame(fragment)).await?;
        open.push(websocket);
    }
    Ok((run, open, token_id(token.expose())?))
}

#[test]
fn unfinished_messages_stay_within_the_quota() -> Result<()> {
    exclusively(async {
        let (run, mut open, token) = leave_messages_unfinished(small_quotas()).await?;
        let relay = &run.relay;
        let ended = Counter::Ended(End::MessageTimeout);
        let mut most = 0;
        poll(LONG_TIMEOUT, async || {
            most = most.max(relay.memory_used());
            let ended = relay.counters().get(ended);
            Ok(if ended > 0 { Ok(()) } else { Err(format!("{ended} were ended")) })
        })
        .await?;
        ensure!((1..=SMALL_NODE_BYTES).contains(&most), "{most} bytes were charged");
        let mut closed = 0;
        for websocket in &mut open {
            let waits = websocket.closed_within(Duration::from_millis(100)).await;
            closed += u32::from(waits.is_ok_and(|(code, _)| code == 1008));
        }
        ensure!(closed > 0, "no websocket was told why it was closed");
        audited(relay, "memory for an unfinished message", &token).await?;
        audited(relay, "time for one message", &token).await?;
        drop(open);
        run.end("messages that do not end").await
    })
}

/// The same without quotas: the relay holds two buffers for each of them.
#[test]
fn unfinished_messages_use_memory_without_quotas() -> Result<()> {
    exclusively(async {
        let (run, open, _) = leave_messages_unfinished(no_quotas()).await?;
        let least = open.len() * 2 * (limits::MESSAGE_MAX_BYTES - 16);
        poll(LONG_TIMEOUT, async || {
            let charged = run.relay.memory_used();
            Ok(if charged >= least { Ok(()) } else { Err(format!("{charged} bytes")) })
        })
        .await?;
        drop(open);
        run.end("messages that do not end, without quotas").await
    })
}

/// An executor sends frames to accomplices who read nothing. Returns the most memory that
/// they used.
async fn flood_idle_readers(run: &AttackRun, body: &Body, padding: usize) -> Result<usize> {
    const READERS: u64 = 10;
    const FRAMES: u64 = 20_000;
    let relay = &run.relay;
    let mut executor = relay.executor(HOSTILE).await?;
    let mut readers = Vec::new();
    for n in 0..READERS {
        let mut reader = relay.orchestrator(HOSTILE, key(n as u8)).await?;
        reader.send_binary(data_frame(&stream(n), 0, b"hello")).await?;
        executor.receive().await?;
        readers.push(reader);
    }
    let mut most = 0;
    let flood = async {
        for n in 0..FRAMES {
            let mut frame = Frame::bare(stream(n % READERS), body.clone()).encode().to_vec();
            // an unknown field of this length
            frame.extend([0xfa, 0x7f, (padding & 0x7f) as u8 | 0x80, (padding >> 7) as u8]);
            frame.resize(frame.len() + padding, 0);
            executor.send_without_timeout(frame).await?;
            most = most.max(relay.memory_used());
        }
        anyhow::Ok(())
    };
    // Without room the relay may stop to read.
    let _ = timeout(SHORT_TIMEOUT, flood).await;
    drop((executor, readers));
    Ok(most)
}

#[test]
fn frames_for_idle_readers_stay_within_the_quota() -> Result<()> {
    exclusively(async {
        for (body, padding) in [(Body::Ack, 1_900), (Body::Heartbeat, 1_900), (Body::Ack, 9_000)] {
            let run = AttackRun::with(small_quotas()).await?;
            let most = flood_idle_readers(&run, &body, padding).await?;
            ensure!(most <= SMALL_NODE_BYTES * 11 / 10, "{body:?} of {padding}: {most} bytes");
            run.end("frames for readers that read nothing").await?;
        }
        let run = AttackRun::with(no_quotas()).await?;
        let most = flood_idle_readers(&run, &Body::Ack, 9_000).await?;
        ensure!(most > 2 * SMALL_NODE_BYTES, "{most} bytes without quotas");
        run.end("frames for readers that read nothing, without quotas").await
    })
}
