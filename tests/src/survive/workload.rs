//! The commands that run under faults: four `rendez exec` processes at once.
//!
//! | flow | command on the executor | proves |
//! | --- | --- | --- |
//! | up | `cat >up` | standard input, byte by byte |
//! | down | `cat down` | standard output, byte by byte |
//! | lines | `seq`, padded | each line once and in order |
//! | clock | the time, every 20 ms | when data arrived again |
//!
//! Each of them records its start in a file, and ends with an exit code of its own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::random::{ExpectedBytes, Random};
use super::terminal::Terminal;
use super::testbed::Testbed;
use crate::process::{Capture, IsolatedCommand};

/// Bytes per read or write.
const PIECE_BYTES: usize = 64 * 1024;
/// Number of lines in the flow `lines`.
pub const LINES: u64 = 200_000;
/// Digits of a padded line; with its end, 100 bytes.
const LINE_DIGITS: usize = 99;
/// The file in which commands record their start.
const STARTS: &str = "starts";
/// The flows that carry a fixed amount.
const CARRIERS: [&str; 3] = ["up", "down", "lines"];

/// Exit codes that identify the commands.
const UP_CODE: i32 = 3;
const DOWN_CODE: i32 = 4;
const LINES_CODE: i32 = 5;
const CLOCK_CODE: i32 = 6;

/// Microseconds since 1970: the clock that a shell has as well.
pub fn now_micros() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// One tick of the clock flow.
#[derive(Debug, Clone, Copy)]
struct Tick {
    /// When the command on the executor printed it.
    printed: u64,
    /// When it came out of `rendez exec`.
    arrived: u64,
}

/// The progress that a flow is allowed to make, and has made.
#[derive(Clone)]
struct Gate {
    /// The fraction of its total that each flow may carry.
    open: watch::Receiver<f64>,
    done: Arc<AtomicU64>,
    total: u64,
}

impl Gate {
    /// Reports `done` as carried, and waits until the flow may go on.
    async fn pass(&mut self, done: u64) -> Result<()> {
        self.done.store(done, Ordering::Relaxed);
        let total = self.total as f64;
        let open = self.open.wait_for(|fraction| (done as f64) < fraction * total || done == 0);
        open.await.context("the test is over").map(drop)
    }
}

/// All flows. Dropping it kills their processes.
pub struct Workload {
    open: watch::Sender<f64>,
    /// The progress of `down` and `lines`.
    read: [Arc<AtomicU64>; 2],
    bytes: u64,
    directory: PathBuf,
    carriers: Vec<(&'static str, JoinHandle<Result<()>>)>,
    clock: JoinHandle<Result<()>>,
    clock_stdin: Option<ChildStdin>,
    terminal: Terminal,
    ticks: watch::Receiver<Vec<Tick>>,
    processes: Vec<Pid>,
}

impl Workload {
    /// Starts the commands, with `bytes` bytes up and as many down.
    pub async fn start(testbed: &Testbed, seed: u64, bytes: u64) -> Result<Self> {
        let directory = testbed.directory().to_owned();
        let (up_seed, down_seed) = (seed ^ 1, seed ^ 2);
        write_random(&directory.join("down"), down_seed, bytes)?;
        let (open, gate) = watch::channel(0.0);
        let gate = |total| Gate { open: gate.clone(), done: Arc::default(), total };
        let (down_gate, lines_gate) = (gate(bytes), gate(LINES));
        let read = [down_gate.done.clone(), lines_gate.done.clone()];
        let mut processes = Vec::new();

        let mut up = Exec::start(testbed, &script("up", "cat >up", UP_CODE), &mut processes)?;
        let stdin = up.child.stdin.take().context("stdin was piped")?;
        let fed = feed(stdin, up_seed, gate(bytes));
        let file = directory.join("up");
        let up = tokio::spawn(async move {
            fed.await?;
            up.end(UP_CODE).await?;
            compare_file(&file, up_seed, bytes)
        });

        let mut down =
            Exec::start(testbed, &script("down", "cat down", DOWN_CODE), &mut processes)?;
        let down = tokio::spawn(async move {
            let stdout = down.stdout()?;
            read_random(stdout, down_seed, down_gate).await?;
            down.end(DOWN_CODE).await
        });

        let seq = format!("seq -f %0{LINE_DIGITS}.0f {LINES}");
        let mut lines = Exec::start(testbed, &script("lines", &seq, LINES_CODE), &mut processes)?;
        let lines = tokio::spawn(async move {
            let stdout = lines.stdout()?;
            read_lines(stdout, lines_gate).await?;
            lines.end(LINES_CODE).await
        });

        let ticking = "n=0; while :; do read -r -t 0.02; [ $? -gt 128 ] || break; \
            n=$((n+1)); echo \"$n $EPOCHREALTIME\"; done";
        let (terminal, stderr) = Terminal::open()?;
        let command = script("clock", ticking, CLOCK_CODE);
        let mut clock = Exec::start_with(testbed, &command, stderr, &mut processes)?;
        let clock_stdin = clock.child.stdin.take();
        let (tick_sender, ticks) = watch::channel(Vec::new());
        let clock = tokio::spawn(async move {
            let stdout = clock.stdout()?;
            read_ticks(stdout, tick_sender).await?;
            clock.end(CLOCK_CODE).await
        });
        let carriers = CARRIERS.into_iter().zip([up, down, lines]).collect();
        Ok(Self {
            open,
            read,
            bytes,
            directory,
            carriers,
            clock,
            clock_stdin,
            terminal,
            ticks,
            processes,
        })
    }

    /// Allows every flow this fraction of its total.
    pub fn open(&self, fraction: f64) {
        self.open.send_replace(fraction);
    }

    /// The fractions of up, down and lines that have arrived.
    pub fn passed(&self) -> [f64; 3] {
        let up = std::fs::metadata(self.directory.join("up")).map_or(0, |file| file.len());
        let [down, lines] = &self.read;
        let of = |done: u64, total: u64| done as f64 / total as f64;
        [
            of(up, self.bytes),
            of(down.load(Ordering::Relaxed), self.bytes),
            of(lines.load(Ordering::Relaxed), LINES),
        ]
    }

    /// Whether a flow has ended. None does before all gates are open, unless it
    /// failed.
    pub fn any_ended(&self) -> bool {
        self.clock.is_finished() || self.carriers.iter().any(|(_, task)| task.is_finished())
    }

    /// Waits for output that the executor printed at or after `printed` and that
    /// arrived at or after `from`, both in microseconds. Returns the time from
    /// `from` until then.
    pub async fn recovered(&self, printed: u64, from: u64, within: Duration) -> Result<Duration> {
        let mut ticks = self.ticks.clone();
        let fits = |tick: &&Tick| tick.printed >= printed && tick.arrived >= from;
        let found = ticks.wait_for(|ticks| ticks.iter().rev().any(|tick| fits(&tick)));
        let ticks = timeout(within, found)
            .await
            .with_context(|| format!("nothing came through for {within:?}"))?
            .context("the clock has ended")?;
        let first = ticks.iter().find(fits).context("it was found")?;
        Ok(Duration::from_micros(first.arrived - from))
    }

    /// Sends a signal to every orchestrator.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        for process in &self.processes {
            kill_process(*process, signal).context("an orchestrator is gone")?;
        }
        Ok(())
    }

    /// Opens all gates and waits for every command to end successfully. Returns the
    /// messages that the clock's orchestrator printed on its terminal.
    pub async fn finish(mut self, within: Duration) -> Result<String> {
        self.open(1.0);
        for (name, task) in self.carriers {
            let ended = timeout(within, task).await;
            ended
                .with_context(|| format!("{name} did not end within {within:?}"))??
                .context(name)?;
        }
        self.clock_stdin = None;
        let ended = timeout(within, self.clock).await;
        ended.context("the clock did not end")??.context("clock")?;
        ensure!(!self.ticks.borrow().is_empty(), "the clock never ticked");

        let starts = std::fs::read_to_string(self.directory.join(STARTS))?;
        let mut starts: Vec<&str> = starts.lines().collect();
        starts.sort_unstable();
        ensure!(starts == ["clock", "down", "lines", "up"], "commands started: {starts:?}");
        Ok(self.terminal.into_text())
    }

    /// The outcome of the flows that have ended, to explain a failure.
    pub async fn explain(self) -> String {
        let mut words = Vec::new();
        let clock = ("clock", self.clock);
        for (name, task) in self.carriers.into_iter().chain([clock]) {
            if !task.is_finished() {
                words.push(format!("{name}: still runs"));
                continue;
            }
            match task.await {
                Ok(Ok(())) => words.push(format!("{name}: has ended well")),
                Ok(Err(error)) => words.push(format!("{name}: {error:#}")),
                Err(error) => words.push(format!("{name}: {error}")),
            }
        }
        words.join("\n")
    }
}

/// A script that records its start and ends with `code`.
fn script(name: &str, command: &str, code: i32) -> String {
    format!("echo {name} >>{STARTS}; {command}; exit {code}")
}

/// One `rendez exec`. Dropping it kills it.
struct Exec {
    child: Child,
    /// Must be empty: scripts get no messages about lost connections.
    stderr: Option<Capture>,
    /// Its directories last as long as it runs.
    _command: IsolatedCommand,
}

impl Exec {
    fn start(testbed: &Testbed, script: &str, processes: &mut Vec<Pid>) -> Result<Self> {
        Self::start_with(testbed, script, Stdio::piped(), processes)
    }

    fn start_with(
        testbed: &Testbed,
        script: &str,
        stderr: Stdio,
        processes: &mut Vec<Pid>,
    ) -> Result<Self> {
        let mut command = testbed.exec(["bash", "-c", script])?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        processes.push(pid.context("it runs")?);
        let stderr = child.stderr.take().map(Capture::read);
        Ok(Self { child, stderr, _command: command })
    }

    fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().context("stdout was piped")
    }

    async fn end(mut self, code: i32) -> Result<()> {
        let status = self.child.wait().await?;
        let stderr = match self.stderr {
            Some(stderr) => {
                stderr.closed().await;
                stderr.text()
            }
            None => String::new(),
        };
        // A real link is not loopback, so the warning about missing TLS is expected.
        let unexpected = stderr.lines().find(|line| !line.ends_with("over plain HTTP"));
        ensure!(
            status.code() == Some(code) && unexpected.is_none(),
            "{status} instead of {code}; stderr: {stderr:?}"
        );
        Ok(())
    }
}

async fn feed(mut stdin: ChildStdin, seed: u64, mut gate: Gate) -> Result<()> {
    let mut random = Random::new(seed);
    let mut piece = vec![0; PIECE_BYTES];
    let mut fed = 0;
    while fed < gate.total {
        gate.pass(fed).await?;
        let length = (gate.total - fed).min(PIECE_BYTES as u64) as usize;
        random.fill(&mut piece[..length]);
        stdin.write_all(&piece[..length]).await.context("the input was not taken")?;
        fed += length as u64;
    }
    Ok(())
}

async fn read_random(mut stdout: ChildStdout, seed: u64, mut gate: Gate) -> Result<()> {
    let mut expected = ExpectedBytes::new(seed);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        gate.pass(expected.matched()).await?;
        match stdout.read(&mut piece).await? {
            0 => break,
            length => check(expected.take(&piece[..length]))?,
        }
        if expected.matched() == gate.total {
            gate.done.store(gate.total, Ordering::Relaxed);
            ensure!(stdout.read(&mut piece).await? == 0, "more came than was sent");
            return Ok(());
        }
    }
    bail!("{} of {} bytes came", expected.matched(), gate.total)
}

async fn read_lines(stdout: ChildStdout, mut gate: Gate) -> Result<()> {
    let mut lines = BufReader::with_capacity(PIECE_BYTES, stdout).lines();
    for number in 1..=gate.total {
        gate.pass(number - 1).await?;
        let line = lines.next_line().await?;
        let line = line.with_context(|| format!("line {number} did not come"))?;
        let right = line.len() == LINE_DIGITS && line.parse() == Ok(number);
        ensure!(right, "line {number} is {line:?}");
    }
    gate.done.store(gate.total, Ordering::Relaxed);
    ensure!(lines.next_line().await?.is_none(), "more lines came than were printed");
    Ok(())
}

async fn read_ticks(stdout: ChildStdout, tick_sender: watch::Sender<Vec<Tick>>) -> Result<()> {
    let mut lines = BufReader::new(stdout).lines();
    let mut expected = 1u64;
    while let Some(line) = lines.next_line().await? {
        let arrived = now_micros();
        let (number, printed) = line.split_once(' ').context("a tick has two words")?;
        ensure!(number.parse() == Ok(expected), "tick {expected} is {line:?}");
        expected += 1;
        let printed = printed.replace('.', "").parse().context("a tick's time")?;
        tick_sender.send_modify(|ticks| ticks.push(Tick { printed, arrived }));
    }
    Ok(())
}

fn write_random(path: &Path, seed: u64, bytes: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut piece = vec![0; PIECE_BYTES];
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let length = left.min(PIECE_BYTES as u64) as usize;
        random.fill(&mut piece[..length]);
        file.write_all(&piece[..length])?;
        left -= length as u64;
    }
    Ok(())
}

fn compare_file(path: &Path, seed: u64, bytes: u64) -> Result<()> {
    let mut expected = ExpectedBytes::new(seed);
    let mut piece = vec![0; PIECE_BYTES];
    let mut file = File::open(path)?;
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => check(expected.take(&piece[..length]))?,
        }
    }
    ensure!(expected.matched() == bytes, "{} of {bytes} bytes arrived", expected.matched());
    Ok(())
}

fn check(taken: Result<(), u64>) -> Result<()> {
    taken.map_err(|at| anyhow::anyhow!("byte {at} is wrong"))
}
