//! Throughput of one stream over a path with a round trip and loss, compared with a
//! plain TCP connection over the same path, and its CPU time.
//!
//! ```sh
//! cargo build --release --bins
//! tests/netns.sh cargo bench -p rendez-tests --bench paths --offline
//! ```
//!
//! Relay and agent are on one side of a link, the orchestrator on the other, in a
//! network namespace. The link is `wire`; it needs root and /dev/net/tun. TCP
//! buffers may grow to [`TCP_BUFFER_BYTES`], which a path of 200 ms and 1 Gbit/s
//! needs in the kernel. Figures cover [`MEASURED`] after [`WARM_UP`]; compare the
//! ratio to TCP.

mod wire;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rendez_orchestrator::{Client, Command, ProcessEvent};
use rendez_tests::process::usage::cpu_seconds;
use rendez_tests::process::{IsolatedCommand, Process, run};
use rendez_tests::rendez::{OurAgent, OurRelay};
use wire::LinkProfile;

/// Time for windows and TCP to reach their size.
const WARM_UP: Duration = Duration::from_secs(4);
/// Duration of a measurement.
const MEASURED: Duration = Duration::from_secs(6);
/// Longest wait for a helper program, or a measurement.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Maximum size of TCP buffers.
const TCP_BUFFER_BYTES: u64 = 64 << 20;
const MIB: f64 = 1048576.0;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let args: Vec<&str> = args[1..].iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match args[..] {
        ["far", "stream", direction, url, token] => {
            runtime.block_on(far_stream(direction, url, token))
        }
        ["far", "tcp", direction, address] => far_tcp(direction, address),
        ["wire", number, round_trip, loss] => hold_wire(number, round_trip, loss),
        _ => runtime.block_on(matrix()),
    }
}

async fn matrix() -> Result<()> {
    println!("one stream, MiB/s ({} s after {} s)", MEASURED.as_secs(), WARM_UP.as_secs());
    println!("round trip  loss       down  plain TCP  ratio        up  plain TCP  ratio");
    let profiles = [(0, 0), (80, 0), (200, 0), (0, 10), (80, 10), (200, 10)];
    for (number, (round_trip, loss)) in profiles.into_iter().enumerate() {
        let far = RemoteEnd::start(number, round_trip, loss).await?;
        let mut cells = String::new();
        for direction in ["down", "up"] {
            let ours = far.stream(direction).await?;
            let tcp = far.tcp(direction).await?;
            cells += &format!("{ours:10.1} {tcp:10.1} {:6.2}", ours / tcp);
        }
        println!("{round_trip:7} ms {:4.1}% {cells}", f64::from(loss) / 10.0);
    }
    near().await
}

/// Measures CPU time on one machine, without a link.
async fn near() -> Result<()> {
    let mut relay = OurRelay::start().await?;
    let mut agent = OurAgent::start(relay.url(), "box", &relay.token("executor").await?).await?;
    let token = relay.token("orchestrator").await?;
    println!("without a link, CPU seconds per GiB: relay, agent, orchestrator, together");
    for direction in ["down", "up"] {
        let [relay_id, agent_id] = [relay.process().id(), agent.process().id()]
            .map(|id| id.context("the process has ended"));
        let (relay_id, agent_id) = (relay_id?, agent_id?);
        let before = [cpu_seconds(relay_id)?, cpu_seconds(agent_id)?];
        let far = std::env::current_exe()?;
        let mut command = IsolatedCommand::new(far)?;
        command.args(["far", "stream", direction, relay.url(), &token]).stdin(Stdio::null());
        let output = run(command, b"", TIMEOUT).await?;
        let after = [cpu_seconds(relay_id)?, cpu_seconds(agent_id)?];
        let text = output.stdout_text();
        let numbers: Vec<f64> = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{text:?} {}", output.stderr_text()))?;
        let [rate, gib, own] = numbers[..] else { bail!("three numbers, not {text:?}") };
        let all = [after[0] - before[0], after[1] - before[1], own].map(|seconds| seconds / gib);
        println!(
            "  {direction:4}  {rate:8.1} MiB/s  {:.2} {:.2} {:.2}  {:.2}",
            all[0],
            all[1],
            all[2],
            all.iter().sum::<f64>()
        );
    }
    Ok(())
}

/// The remote end of a link, and the local processes that talk to it.
struct RemoteEnd {
    holder: Process,
    relay: OurRelay,
    outside: String,
    _agent: OurAgent,
    _wire: Process,
    token: String,
}

impl RemoteEnd {
    async fn start(number: usize, round_trip_ms: u32, loss_per_mille: u32) -> Result<Self> {
        let mut unshare = IsolatedCommand::new("unshare")?;
        unshare.args(["--net", "sh", "-c", "echo up; exec cat"]);
        let holder = Process::spawn(unshare)?;
        let up = |line: &str| (line == "up").then_some(());
        holder.stdout_line(TIMEOUT, up).await.context("no network namespace")?;

        let mut wire = IsolatedCommand::new(std::env::current_exe()?)?;
        wire.args([
            "wire",
            &number.to_string(),
            &round_trip_ms.to_string(),
            &loss_per_mille.to_string(),
        ]);
        let wire = Process::spawn(wire)?;
        wire.stdout_line(TIMEOUT, up).await.context("no TUN devices: this needs root")?;
        let pid = holder.id().context("it was not waited for")?.to_string();
        // The previous link disappears a moment after the end of its process.
        let (outside, inside) = (format!("10.124.{number}.1"), format!("10.124.{number}.2"));
        let near = format!(
            "ip link set rendez{number}b netns {pid} && ip addr add {outside}/24 dev rendez{number}a && \
             ip link set rendez{number}a mtu {mtu} txqueuelen 10000 up && \
             sysctl -qw net.ipv4.tcp_rmem='4096 131072 {TCP_BUFFER_BYTES}' \
             net.ipv4.tcp_wmem='4096 65536 {TCP_BUFFER_BYTES}'",
            mtu = wire::MTU,
        );
        shell(&near).await?;
        shell(&format!(
            "nsenter --net=/proc/{pid}/ns/net sh -c \"ip link set lo up && \
             ip addr add {inside}/24 dev rendez{number}b && \
             ip link set rendez{number}b mtu {mtu} txqueuelen 10000 up && \
             sysctl -qw net.ipv4.tcp_rmem='4096 131072 {TCP_BUFFER_BYTES}' \
             net.ipv4.tcp_wmem='4096 65536 {TCP_BUFFER_BYTES}'\"",
            mtu = wire::MTU,
        ))
        .await?;

        let relay = OurRelay::start_at(&format!("{outside}:0"), &[] as &[&str]).await?;
        let agent = OurAgent::start(relay.url(), "box", &relay.token("executor").await?).await?;
        let token = relay.token("orchestrator").await?;
        Ok(Self { holder, relay, outside, _agent: agent, _wire: wire, token })
    }

    fn enter(&self) -> Result<IsolatedCommand> {
        let mut command = IsolatedCommand::new("nsenter")?;
        let pid = self.holder.id().context("it was not waited for")?;
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(std::env::current_exe()?);
        Ok(command)
    }

    async fn stream(&self, direction: &str) -> Result<f64> {
        let mut command = self.enter()?;
        command.args(["far", "stream", direction, self.relay.url(), &self.token]);
        first_number(command).await
    }

    async fn tcp(&self, direction: &str) -> Result<f64> {
        let listener = TcpListener::bind((self.outside.as_str(), 0))?;
        let address = listener.local_addr()?.to_string();
        let up = direction == "up";
        std::thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            if up {
                let _ = count(&mut stream).map(|rate| stream.write_all(&rate.to_be_bytes()));
            } else {
                while stream.write_all(&[0; 65536]).is_ok() {}
            }
            Ok(())
        });
        let mut command = self.enter()?;
        command.args(["far", "tcp", direction, &address]);
        first_number(command).await
    }
}

async fn first_number(command: IsolatedCommand) -> Result<f64> {
    let output = run(command, b"", TIMEOUT).await?;
    let text = output.stdout_text();
    let number = text.split_whitespace().next().and_then(|number| number.parse().ok());
    number.with_context(|| format!("no number: {text} {}", output.stderr_text()))
}

async fn shell(script: &str) -> Result<()> {
    let mut command = IsolatedCommand::new("sh")?;
    command.args(["-c", script]);
    let output = run(command, b"", TIMEOUT).await?;
    anyhow::ensure!(output.status.success(), "{script}: {}", output.stderr_text());
    Ok(())
}

fn hold_wire(number: &str, round_trip_ms: &str, loss_per_mille: &str) -> Result<()> {
    let round_trip = Duration::from_millis(round_trip_ms.parse()?);
    let profile = LinkProfile { round_trip, loss_per_mille: loss_per_mille.parse()? };
    let names = [format!("rendez{number}a"), format!("rendez{number}b")];
    wire::connect_devices([&names[0], &names[1]], profile)?;
    println!("up");
    loop {
        std::thread::park();
    }
}

// ---- the far side ------------------------------------------------------------

/// Measures one stream. Prints MiB/s, GiB in total, and its own CPU seconds.
async fn far_stream(direction: &str, url: &str, token: &str) -> Result<()> {
    let client = Client::new(url, token.to_owned().into())?;
    let executor = client.connect(&"box".parse()?).await?;
    let mut meter = Meter::default();
    if direction == "down" {
        let mut process = executor.spawn(Command::new("cat").arg("/dev/zero")).await?;
        while let Some(event) = process.next().await? {
            if let ProcessEvent::Stdout(chunk) = event
                && meter.add(chunk.len())
            {
                break;
            }
        }
    } else {
        // Only bytes that the remote end has accepted count.
        let script = "exec cat > /dev/null";
        let command = Command::new("sh").args(["-c", script]).stdin(true);
        let mut process = executor.spawn(command).await?;
        let mut stdin = process.stdin.take().context("it was asked for")?;
        let block = vec![0; 1024 * 1024];
        loop {
            stdin.write_all(&block).await?;
            if meter.add(block.len()) {
                break;
            }
        }
    }
    println!(
        "{} {} {}",
        meter.rate(),
        meter.total as f64 / MIB / 1024.0,
        cpu_seconds(std::process::id())?
    );
    executor.close().await;
    Ok(())
}

fn far_tcp(direction: &str, address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    if direction == "down" {
        println!("{}", count(&mut stream)?);
        return Ok(());
    }
    let mut reader = stream.try_clone()?;
    let writer = std::thread::spawn(move || while stream.write_all(&[0; 65536]).is_ok() {});
    let mut rate = [0; 8];
    reader.read_exact(&mut rate)?;
    println!("{}", f64::from_be_bytes(rate));
    drop((reader, writer));
    std::process::exit(0);
}

fn count(stream: &mut TcpStream) -> Result<f64> {
    let mut meter = Meter::default();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let len = stream.read(&mut buffer)?;
        anyhow::ensure!(len > 0, "the other end closed");
        if meter.add(len) {
            return Ok(meter.rate());
        }
    }
}

/// Counts bytes from the end of the warm-up on.
#[derive(Default)]
struct Meter {
    began: Option<Instant>,
    total: u64,
    counted: u64,
    over: Duration,
}

impl Meter {
    /// Counts bytes. Returns whether the measurement is complete.
    fn add(&mut self, bytes: usize) -> bool {
        let began = *self.began.get_or_insert_with(Instant::now);
        self.total += bytes as u64;
        let elapsed = began.elapsed();
        if elapsed >= WARM_UP {
            self.counted += bytes as u64;
            self.over = elapsed - WARM_UP;
        }
        elapsed >= WARM_UP + MEASURED
    }

    fn rate(&self) -> f64 {
        self.counted as f64 / MIB / self.over.as_secs_f64()
    }
}
