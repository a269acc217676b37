//! `rendez dev` and the commands that users run through it, end to end: real
//! processes and a real relay.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rendez_orchestrator::{Client, Command};
use rendez_tests::poll::wait_until;
use rendez_tests::process::{IsolatedCommand, Process, run};
use rendez_tests::relay::token_id;
use rendez_tests::rendez::{Dev, OurAgent, OurRelay, TIMEOUT, rendez};
use rendez_tests::survive::random::Random;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

/// Time between two interrupts of an impatient user.
const INTERRUPT_INTERVAL: Duration = Duration::from_millis(5);

/// Bytes that are not text.
fn random_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Random::new(1).fill(&mut bytes);
    bytes
}

#[tokio::test]
async fn exec_keeps_streams_and_exit_code() -> Result<()> {
    let dev = Dev::start().await?;
    let script = "echo out; echo err >&2; exit 7";
    let output = dev.run(["exec", "dev", "--", "sh", "-c", script], b"").await?;
    assert_eq!(output.stdout_text(), "out\n");
    assert_eq!(output.stderr_text(), "err\n");
    assert_eq!(output.status.code(), Some(7));

    let killed = dev.run(["exec", "dev", "--", "sh", "-c", "kill -9 $$"], b"").await?;
    assert_eq!(killed.status.code(), Some(128 + 9));
    Ok(())
}

#[tokio::test]
async fn ten_megabytes_of_binary_input_round_trip() -> Result<()> {
    let dev = Dev::start().await?;
    let input = random_bytes(10_000_000);
    let output = dev.run(["exec", "dev", "--", "cat"], &input).await?;
    assert!(output.status.success(), "{}", output.stderr_text());
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
    Ok(())
}

/// As with `std::process` and `tokio::process`.
#[tokio::test]
async fn waiting_for_a_process_closes_its_stdin() -> Result<()> {
    let relay = OurRelay::start().await?;
    let token = relay.token("executor").await?;
    let agent = OurAgent::start(relay.url(), "box", &token).await?;
    let client = Client::new(relay.url(), relay.token("orchestrator").await?.into())?;
    let executor = client.connect(&"box".parse()?).await?;
    let cat = || executor.spawn(Command::new("cat").stdin(true));
    let code = timeout(TIMEOUT, cat().await?.wait()).await??;
    assert_eq!(code, 0);

    // more than `cat` accepts while its output is not read
    let input = random_bytes(16_000_000);
    let mut process = cat().await?;
    let stdin = process.stdin.as_mut().context("it was asked for")?;
    timeout(TIMEOUT, stdin.write_all(&input)).await??;
    let output = timeout(TIMEOUT, process.output()).await??;
    assert_eq!(output.exit_code, 0);
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
    executor.close().await;
    agent.stop().await
}

#[tokio::test]
async fn directory_and_variables_reach_the_command() -> Result<()> {
    let dev = Dev::start().await?;
    let args = ["exec", "-C", "/", "-e", "GREETING=hello world", "dev", "--", "sh", "-c"];
    let script = "pwd; echo \"$GREETING\"";
    let output = dev.run(args.into_iter().chain([script]), b"").await?;
    assert_eq!(output.stdout_text(), "/\nhello world\n");
    Ok(())
}

#[tokio::test]
async fn no_stdin_means_end_of_file() -> Result<()> {
    let dev = Dev::start().await?;
    let mut command = dev.command(["exec", "-n", "dev", "--", "cat"])?;
    command.stdin(std::process::Stdio::piped());
    let output = run(command, b"not for the command", TIMEOUT).await?;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    Ok(())
}

#[tokio::test]
async fn ctrl_c_interrupts_the_remote_command() -> Result<()> {
    let dev = Dev::start().await?;
    let script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done";
    let command = dev.command(["exec", "dev", "--", "sh", "-c", script])?;
    let mut process = Process::spawn(command)?;
    process.stdout_line(TIMEOUT, |line| (line == "ready").then_some(())).await?;
    process.signal(Signal::INT)?;
    let status = process.wait(TIMEOUT).await?;
    assert_eq!(status.code(), Some(3));
    process.stdout_line(TIMEOUT, |line| (line == "caught").then_some(())).await?;
    Ok(())
}

#[tokio::test]
async fn ended_second_dev_restores_the_first() -> Result<()> {
    let first = Dev::start().await?;
    let mut second = Process::spawn(first.command(["dev", "--listen", "127.0.0.1:0"])?)?;
    second.stdout_line(TIMEOUT, |line| line.contains("the relay at ").then_some(())).await?;
    second.signal(Signal::TERM)?;
    assert!(second.wait(TIMEOUT).await?.success());
    let output = first.run(["exec", "dev", "--", "echo", "here"], b"").await?;
    assert_eq!(output.stdout_text(), "here\n", "{}", output.stderr_text());
    Ok(())
}

/// For example a cancelled job, `timeout 60 rendez exec`, or a closed terminal.
#[tokio::test]
async fn sigterm_and_sighup_terminate_remote_command() -> Result<()> {
    let dev = Dev::start().await?;
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let command = dev.command(["exec", "dev", "--", "sh", "-c", "echo $$; exec sleep 1000"])?;
        let mut process = Process::spawn(command)?;
        let pid = process.stdout_line(TIMEOUT, |line| line.parse().ok()).await?;
        process.signal(signal)?;
        assert_eq!(process.wait(TIMEOUT).await?.code(), Some(code));
        process.stderr_line(TIMEOUT, |line| line.contains("received SIG").then_some(())).await?;
        gone(pid).await?;
    }
    Ok(())
}

/// For example under nohup.
#[tokio::test]
async fn ignored_sighup_stays_ignored() -> Result<()> {
    let dev = Dev::start().await?;
    let script = "trap '' HUP; exec \"$RENDEZ\" exec dev -- sh -c 'echo ready; read line; exit 5'";
    let mut process = Process::spawn(dev.shell(script)?)?;
    process.stdout_line(TIMEOUT, |line| (line == "ready").then_some(())).await?;
    process.signal(Signal::HUP)?;
    process.write(b"on\n").await?;
    assert_eq!(process.wait(TIMEOUT).await?.code(), Some(5));
    Ok(())
}

/// Partial input must not be taken for complete input.
#[tokio::test]
async fn unreadable_stdin_is_not_end_of_file() -> Result<()> {
    let dev = Dev::start().await?;
    let script = "\"$RENDEZ\" exec dev -- sh -c 'cat; echo complete' < /";
    let output = run(dev.shell(script)?, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(74), "{}", output.stderr_text());
    assert!(output.stderr_text().contains("cannot read standard input"));
    assert_eq!(output.stdout_text(), "");
    Ok(())
}

#[tokio::test]
async fn closed_stdout_ends_the_remote_command() -> Result<()> {
    let dev = Dev::start().await?;
    let directory = tempfile::tempdir()?;
    let pid = directory.path().join("pid");
    let script = format!("echo $$ > {}; exec yes", pid.display());
    let mut shell = dev.shell("\"$RENDEZ\" exec dev -- sh -c \"$SCRIPT\" | head -1")?;
    shell.env("SCRIPT", script);
    let output = run(shell, b"", TIMEOUT).await?;
    assert_eq!(output.stdout_text(), "y\n");
    gone(std::fs::read_to_string(pid)?.trim().parse()?).await
}

async fn gone(pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/comm");
    wait_until(TIMEOUT, "the end of the command", || !Path::new(&path).exists()).await
}

/// `rendez exec … yes` whose output is not read.
struct UnreadCommand {
    exec: Child,
    stdout: ChildStdout,
    /// The process id of the remote command.
    pid: i32,
    /// Its directories last as long as it runs.
    _command: IsolatedCommand,
}

/// The executor retains at least this much, so the command has begun.
const UNREAD_MIN_BYTES: u64 = rendez_executor_agent::PROCESS_OUTPUT_RETAINED_BYTES as u64;

/// Number of complete round trips during which the unread command writes nothing.
/// Then every buffer is full, on a machine of any speed.
const FULL_FOR_COMMANDS: u32 = 4;

impl UnreadCommand {
    /// Starts it and waits until every buffer between its ends is full.
    async fn start(dev: &Dev) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("pid");
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec yes", path.display());
        let mut command = dev.command(["exec", "-n", "dev", "--", "sh", "-c", &script])?;
        let mut exec = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = exec.stdout.take().context("stdout was piped")?;
        let full = async {
            wait_until(TIMEOUT, "a file with the process id", || path.exists()).await?;
            let pid: i32 = std::fs::read_to_string(&path)?.trim().parse()?;
            let (mut before, mut unchanged) = (0, 0);
            while unchanged < FULL_FOR_COMMANDS {
                dev.run(["exec", "-n", "dev", "--", "true"], b"").await?;
                let now = written(pid)?;
                let full = now >= UNREAD_MIN_BYTES && now == before;
                unchanged = if full { unchanged + 1 } else { 0 };
                before = now;
            }
            anyhow::Ok(pid)
        };
        let pid = timeout(2 * TIMEOUT, full).await??;
        Ok(Self { exec, stdout, pid, _command: command })
    }

    fn interrupt(&self) -> Result<()> {
        let pid = self.exec.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        Ok(kill_process(pid.context("it still runs")?, Signal::INT)?)
    }

    /// Its exit code and its messages.
    async fn end(self) -> Result<(Option<i32>, String)> {
        let output = timeout(TIMEOUT, self.exec.wait_with_output()).await??;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// Bytes that a process has written so far.
fn written(pid: i32) -> Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))?;
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    Ok(written.context("no count of what was written")?.parse()?)
}

/// For example `rendez exec … | less`, and `q` on the first page.
#[tokio::test]
async fn stdout_closed_after_pause_ends_the_command() -> Result<()> {
    let dev = Dev::start().await?;
    let UnreadCommand { exec, mut stdout, pid, _command } = UnreadCommand::start(&dev).await?;
    let mut page = [0; 2];
    stdout.read_exact(&mut page).await?;
    assert_eq!(page, *b"y\n");
    drop(stdout);
    let output = timeout(TIMEOUT, exec.wait_with_output()).await??;
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    gone(pid).await
}

#[tokio::test]
async fn ctrl_c_works_with_unread_output() -> Result<()> {
    let dev = Dev::start().await?;
    let unread = UnreadCommand::start(&dev).await?;
    unread.interrupt()?;
    gone(unread.pid).await?;
    // The command has ended. Its output still waits: a second interrupt abandons it.
    unread.interrupt()?;
    let (code, stderr) = unread.end().await?;
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.starts_with("rendez: gave up waiting"), "{stderr}");
    Ok(())
}

#[tokio::test]
async fn exec_can_leave_a_frozen_executor() -> Result<()> {
    let mut dev = Dev::start().await?;
    let UnreadCommand { exec, stdout, _command, .. } = UnreadCommand::start(&dev).await?;
    let mut unread = UnreadCommand::start(&dev).await?;
    dev.process().signal(Signal::STOP)?;

    drop(stdout);
    let output = timeout(TIMEOUT, exec.wait_with_output()).await??;
    assert_eq!(output.status.code(), Some(74));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the command may still be running"), "{said}");

    let pressed_until_it_ends = async {
        loop {
            unread.interrupt()?;
            if timeout(INTERRUPT_INTERVAL, unread.exec.wait()).await.is_ok() {
                return anyhow::Ok(());
            }
        }
    };
    timeout(TIMEOUT, pressed_until_it_ends).await??;
    assert_eq!(unread.end().await?.0, Some(130));
    Ok(())
}

#[tokio::test]
async fn exit_codes_tell_failures_apart() -> Result<()> {
    let mut dev = Dev::start().await?;
    let code = async |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = dev.run(args, b"").await?;
        Ok((output.status.code(), output.stderr_text()))
    };
    let (status, stderr) = code(&["exec", "nowhere", "--", "true"]).await?;
    assert_eq!(status, Some(68));
    assert!(stderr.starts_with("rendez: unknown environment"), "{stderr}");

    let here = "/";
    for (directory, program, expected, message) in [
        (here, "nosuchprog", 127, "nosuchprog: not found on the executor"),
        (here, "/no/such/program", 127, "/no/such/program: not found on the executor"),
        (here, "", 127, "'': not found on the executor"),
        (here, "/etc/passwd", 126, "/etc/passwd: the executor cannot start it: Permission denied"),
        ("/nonexist", "true", 126, "working directory /nonexist: no such directory"),
        ("/nonexist", "nosuchprog", 126, "working directory /nonexist: no such directory"),
        ("/etc/passwd", "true", 126, "working directory /etc/passwd: not a directory"),
        ("relative", "true", 126, "working directory relative: "),
    ] {
        let (status, stderr) = code(&["exec", "-C", directory, "dev", "--", program]).await?;
        assert_eq!(status, Some(expected), "{directory} {program}: {stderr}");
        assert!(stderr.starts_with(&format!("rendez: {message}")), "{stderr}");
    }
    let (status, stderr) = code(&["exec", "not an id", "--", "true"]).await?;
    assert_eq!(status, Some(64), "{stderr}");
    assert!(stderr.contains("allowed are letters"), "{stderr}");

    let mut refused = dev.command(["exec", "dev", "--", "true"])?;
    refused.env("RENDEZ_TOKEN", "rdz_o_0000000000000000_nothing");
    let output = run(refused, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(77));
    assert!(!output.stderr_text().contains("nothing"), "the token was shown");

    let mut nowhere = rendez()?;
    nowhere.args(["exec", "dev", "--", "true"]);
    let output = run(nowhere, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(64));
    assert!(output.stderr_text().contains("RENDEZ_RELAY"), "{}", output.stderr_text());

    // the relay stops for good
    let url = dev.url().to_owned();
    dev.process().signal(Signal::TERM)?;
    assert_eq!(dev.process().wait(TIMEOUT).await?.code(), Some(0));
    let mut unreachable = rendez()?;
    unreachable
        .args(["exec", "dev", "--", "true"])
        .env("RENDEZ_RELAY", url)
        .env("RENDEZ_TOKEN", "rdz_o_0000000000000000_nothing");
    let output = run(unreachable, b"", TIMEOUT).await?;
    assert_eq!(output.status.code(), Some(75), "{}", output.stderr_text());
    Ok(())
}

/// For example in the background of a script, or under nohup.
#[tokio::test]
async fn commands_do_not_inherit_ignored_signals() -> Result<()> {
    let dev = Dev::start_ignoring("HUP INT QUIT").await?;
    for (signal, code) in [("HUP", 129), ("INT", 130), ("QUIT", 131)] {
        let script = format!("kill -{signal} $$; echo survived");
        let output = dev.run(["exec", "dev", "--", "sh", "-c", &script], b"").await?;
        assert_eq!(output.stdout_text(), "", "{signal}");
        assert_eq!(output.status.code(), Some(code), "{signal}");
    }
    Ok(())
}

#[tokio::test]
async fn outcome_is_unknown_after_grace_period() -> Result<()> {
    let mut dev = Dev::start().await?;
    let refused = dev.run(["exec", "--grace", "2", "dev", "--", "true"], b"").await?;
    assert_eq!(refused.status.code(), Some(64));
    assert!(refused.stderr_text().contains("such as 90s or 5m"), "{}", refused.stderr_text());

    let script = "echo started; exec sleep 1000";
    let command = dev.command(["exec", "--grace", "2s", "dev", "--", "sh", "-c", script])?;
    let mut process = Process::spawn(command)?;
    process.stdout_line(TIMEOUT, |line| (line == "started").then_some(())).await?;
    let cut = std::time::Instant::now();
    dev.process().signal(Signal::KILL)?;
    let status = process.wait(TIMEOUT).await?;
    assert_eq!(status.code(), Some(74));
    assert!(cut.elapsed() >= Duration::from_secs(2), "it gave up before its grace was over");
    process.stderr_line(TIMEOUT, |line| line.contains("lost").then_some(())).await?;
    Ok(())
}

#[tokio::test]
async fn environments_and_tokens_are_administered() -> Result<()> {
    let dev = Dev::start().await?;
    let listed = dev.run(["env", "ls"], b"").await?.stdout_text();
    assert!(listed.contains("dev") && listed.contains("connected"), "{listed}");

    let create =
        ["token", "create", "--role", "orchestrator", "--environments", "dev", "--label", "ci"];
    let token = dev.run(create, b"").await?.stdout_text();
    let token = token.trim();
    let try_token = async || -> Result<Option<i32>> {
        let mut command = dev.command(["exec", "dev", "--", "true"])?;
        command.env("RENDEZ_TOKEN", token);
        Ok(run(command, b"", TIMEOUT).await?.status.code())
    };
    assert_eq!(try_token().await?, Some(0));
    let id = &token_id(token)?;
    let listed = dev.run(["token", "ls"], b"").await?.stdout_text();
    assert!(listed.contains(id.as_str()) && !listed.contains(token), "{listed}");
    assert!(dev.run(["token", "revoke", id], b"").await?.status.success());
    assert_eq!(try_token().await?, Some(77));
    Ok(())
}

#[tokio::test]
async fn state_flag_overrides_the_environment() -> Result<()> {
    let state = tempfile::tempdir()?;
    let mut command = rendez()?;
    command
        .args(["token", "create", "--role", "admin", "--state"])
        .arg(state.path())
        .env("RENDEZ_RELAY", "http://127.0.0.1:1")
        .env("RENDEZ_TOKEN", "");
    let output = run(command, b"", TIMEOUT).await?;
    assert!(output.status.success(), "{}", output.stderr_text());
    assert!(output.stdout_text().starts_with("rdz_a_"));
    Ok(())
}
