//! Real binaries under test: their paths, their start and their output.
//!
//! - Dropping a [`Process`] kills it.
//! - Its output is read continuously, so a child never blocks on a full pipe, and
//!   kept, so a line is found even if the wait for it begins later.
//! - Every wait has a deadline, and its error carries the end of stderr.

mod capture;
mod isolated;
pub mod usage;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin};
use tokio::time::timeout;

pub use capture::Capture;
pub use isolated::IsolatedCommand;

/// The variable that names another directory with the binaries to test, such as that
/// of the release profile for measurements.
pub const BINARY_DIR_VARIABLE: &str = "RENDEZ_BINARY_DIR";

/// How much of stderr an error message repeats, in bytes.
const TAIL_BYTES: usize = 4096;
/// Longest wait for a child to read what was written to it.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// After a failed wait for a line, the time for stderr to end: a child that fails
/// closes stdout and writes the reason at about the same time.
const STDERR_GRACE: Duration = Duration::from_millis(200);

/// The path of a binary of this workspace, such as `rendez`.
///
/// Cargo builds only the binaries of the tested package itself. Build the others
/// first; an outdated one is not detected.
pub fn workspace_binary(name: &str) -> Result<PathBuf> {
    let directory = match env::var_os(BINARY_DIR_VARIABLE) {
        Some(directory) => PathBuf::from(directory),
        None => profile_directory()?,
    };
    let binary = directory.join(format!("{name}{}", env::consts::EXE_SUFFIX));
    ensure!(
        binary.is_file(),
        "{} is not there: `cargo build` the package that makes it first",
        binary.display()
    );
    Ok(binary)
}

/// A directory for throw-away files below cargo's target directory.
pub fn scratch_directory() -> Result<PathBuf> {
    let profile = profile_directory()?;
    let scratch = profile.parent().unwrap_or(&profile).join("tmp");
    std::fs::create_dir_all(&scratch)
        .with_context(|| format!("cannot make {}", scratch.display()))?;
    Ok(scratch)
}

/// The directory that cargo builds this profile's binaries into: test
/// executables are in `deps` below it.
fn profile_directory() -> Result<PathBuf> {
    let executable = env::current_exe().context("cannot tell the path of this test")?;
    executable
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "deps" || name == "examples"))
        .and_then(Path::parent)
        .map(Path::to_owned)
        .with_context(|| format!("{} is not where cargo puts tests", executable.display()))
}

/// A running child with piped standard streams.
pub struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Capture,
    stderr: Capture,
    _directories: TempDir,
}

impl Process {
    /// Starts `command` with all three standard streams piped.
    pub fn spawn(command: IsolatedCommand) -> Result<Self> {
        let (name, mut command, directories) = command.into_parts();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("stdout was piped")?;
        let stderr = child.stderr.take().context("stderr was piped")?;
        Ok(Self {
            name,
            stdin: child.stdin.take(),
            stdout: Capture::read(stdout),
            stderr: Capture::read(stderr),
            child,
            _directories: directories,
        })
    }

    /// Its output on stdout.
    pub fn stdout(&self) -> &Capture {
        &self.stdout
    }

    /// Its output on stderr.
    pub fn stderr(&self) -> &Capture {
        &self.stderr
    }

    /// The process id, until the process was waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Writes to the child's stdin. Waits while the pipe is full, for ten
    /// seconds at most.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{}: stdin closed", self.name))?;
        match timeout(WRITE_MAX, stdin.write_all(bytes)).await {
            Ok(written) => written.with_context(|| self.describe("closed its stdin")),
            Err(_) => bail!(self.describe("does not read its stdin")),
        }
    }

    /// Closes the child's stdin: it reads end of file after what was written.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until `find` accepts a line of stdout, from the first line on.
    pub async fn stdout_line<T>(
        &self,
        within: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        match self.stdout.line(within, find).await {
            Ok(found) => Ok(found),
            Err(error) => {
                let _ = timeout(STDERR_GRACE, self.stderr.closed()).await;
                Err(error.context(self.describe("awaited line missing on stdout")))
            }
        }
    }

    /// Waits until `find` accepts a line of stderr, from the first line on.
    pub async fn stderr_line<T>(
        &self,
        within: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        match self.stderr.line(within, find).await {
            Ok(found) => Ok(found),
            Err(error) => {
                let _ = timeout(STDERR_GRACE, self.stderr.closed()).await;
                Err(error.context(self.describe("awaited line missing on stderr")))
            }
        }
    }

    /// Sends a signal. Nothing happens if the process was already waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) =
            self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
        else {
            return Ok(());
        };
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for the process to end by itself.
    pub async fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        match timeout(within, self.child.wait()).await {
            Ok(status) => status.with_context(|| format!("cannot wait for {}", self.name)),
            Err(_) => bail!(self.describe(&format!("still running after {within:?}"))),
        }
    }

    /// Asks the process to end (SIGTERM) and waits until it has.
    pub async fn stop(mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within).await
    }

    /// Waits for the process to end and its output with it.
    async fn output(&mut self, within: Duration) -> Result<Output> {
        let whole = async {
            let status = self.child.wait().await?;
            self.stdout.closed().await;
            self.stderr.closed().await;
            anyhow::Ok(status)
        };
        let status = match timeout(within, whole).await {
            Ok(status) => status?,
            Err(_) => bail!(self.describe(&format!("not done after {within:?}"))),
        };
        Ok(Output { status, stdout: self.stdout.bytes(), stderr: self.stderr.bytes() })
    }

    fn describe(&self, what: &str) -> String {
        let stderr = self.stderr.bytes();
        let tail = &stderr[stderr.len().saturating_sub(TAIL_BYTES)..];
        format!("{}: {what}; its stderr ends:\n{}", self.name, String::from_utf8_lossy(tail))
    }
}

/// The result of a process that has ended.
#[derive(Debug)]
pub struct Output {
    /// The exit status.
    pub status: ExitStatus,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Stdout as text, with invalid UTF-8 replaced.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Stderr as text, with invalid UTF-8 replaced.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Runs `command` to its end with `input` on its stdin, reading while writing.
/// A child may close its stdin early.
pub async fn run(command: IsolatedCommand, input: &[u8], within: Duration) -> Result<Output> {
    let mut process = Process::spawn(command)?;
    let mut stdin = process.stdin.take().context("stdin was piped")?;
    let feed = async move {
        // The pipe is broken if the child has ended or does not read. That, and a
        // deadline missed here, show in the output.
        let _ = timeout(within, stdin.write_all(input)).await;
    };
    let (output, ()) = tokio::join!(process.output(within), feed);
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT_TIMEOUT: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> IsolatedCommand {
        let mut command = IsolatedCommand::new("/bin/sh").unwrap();
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn run_keeps_streams_and_status_apart() {
        let output = run(shell("cat; echo err >&2; exit 7"), b"in\n", SHORT_TIMEOUT).await.unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(output.stdout_text(), "in\n");
        assert_eq!(output.stderr_text(), "err\n");
    }

    #[tokio::test]
    async fn run_carries_more_than_pipe_capacity() {
        let input: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let output = run(shell("cat"), &input, SHORT_TIMEOUT).await.unwrap();
        assert!(output.stdout == input, "bytes came back changed");
    }

    #[tokio::test]
    async fn run_accepts_child_that_ignores_stdin() {
        let output = run(shell("exec true"), &[0; 1_000_000], SHORT_TIMEOUT).await.unwrap();
        assert!(output.status.success());
    }

    #[tokio::test]
    async fn run_times_out_when_orphan_holds_output() {
        let error = run(shell("sleep 2 & exit 0"), b"", Duration::from_millis(300)).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("not done after"), "{error}");
    }

    #[tokio::test]
    async fn line_is_found_before_and_after_printing() {
        let mut process = Process::spawn(shell("read x; echo got $x; read y")).unwrap();
        let got = |line: &str| line.strip_prefix("got ").map(str::to_owned);
        process.write(b"one\n").await.unwrap();
        assert_eq!(process.stdout_line(SHORT_TIMEOUT, got).await.unwrap(), "one");
        assert_eq!(process.stdout_line(SHORT_TIMEOUT, got).await.unwrap(), "one");
        process.close_stdin();
        process.wait(SHORT_TIMEOUT).await.unwrap();
    }

    #[tokio::test]
    async fn missing_line_is_reported_when_process_ends() {
        let process = Process::spawn(shell("echo other; exec >&-; echo reason >&2")).unwrap();
        let error =
            process.stdout_line(Duration::from_secs(3600), |_| None::<()>).await.unwrap_err();
        assert!(format!("{error:#}").contains("reason"), "{error:#}");
    }

    #[tokio::test]
    async fn stop_sends_sigterm() {
        let process =
            Process::spawn(shell("trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done"))
                .unwrap();
        process.stdout_line(SHORT_TIMEOUT, |line| (line == "up").then_some(())).await.unwrap();
        assert_eq!(process.stop(SHORT_TIMEOUT).await.unwrap().code(), Some(3));
    }

    #[tokio::test]
    async fn dropped_process_is_killed() {
        let mut process = Process::spawn(shell("echo up; read x")).unwrap();
        process.stdout_line(SHORT_TIMEOUT, |line| (line == "up").then_some(())).await.unwrap();
        let stdout = process.stdout().clone();
        // The child waits for a stdin that stays open: only a kill ends it.
        let _stdin = process.stdin.take();
        drop(process);
        timeout(SHORT_TIMEOUT, stdout.closed()).await.unwrap();
    }

    #[test]
    fn missing_binary_error_names_cargo_build() {
        let error = workspace_binary("no-such-binary").unwrap_err();
        assert!(error.to_string().contains("cargo build"), "{error}");
    }
}
