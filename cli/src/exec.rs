//! `rendez exec`: run a command on an executor as if it were here.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use rendez_orchestrator::error::ProcessError;
use rendez_orchestrator::{
    Command, Control, EnvironmentId, Grace, LinkState, Process, ProcessEvent,
    STDIN_WRITE_MAX_BYTES, Stdin,
};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};

use crate::context::{Purpose, RelayOptions};
use crate::exit::Exit;
use crate::out::{tell, unwritten};

/// Bytes of standard input that are read at once. A pipe is asked to hold as
/// much: so many writes are under way on a long path, and no more.
const STDIN_BYTES: usize = STDIN_WRITE_MAX_BYTES;

/// Standard input, output, error and the exit code are the command's. Ctrl-C
/// interrupts it, a second one kills it.
#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    relay: RelayOptions,

    /// Working directory on the executor [default: the executor's own]
    #[arg(short = 'C', long, value_name = "DIR")]
    cwd: Option<String>,

    /// Set a variable for the command; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = assignment)]
    env: Vec<(String, String)>,

    /// Give the command an empty standard input
    #[arg(short = 'n', long)]
    no_stdin: bool,

    /// How long to wait for a lost connection before giving up, 1s to 1h. The
    /// executor may give up earlier
    #[arg(long, env = "RENDEZ_GRACE", default_value_t, value_name = "DURATION")]
    grace: Grace,

    /// The environment to run in
    environment: EnvironmentId,

    /// The command and its arguments, run without a shell
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// Runs the command.
pub(crate) async fn run(args: ExecArgs) -> Result<ExitCode, Exit> {
    let client = args.relay.client(Purpose::Orchestrate)?.with_grace(args.grace);
    let executor = client.connect(&args.environment).await?;
    if std::io::stderr().is_terminal() {
        tokio::spawn(tell_about_the_link(executor.link()));
    }
    let mut process = executor.spawn(command(&args)).await?;
    if let Some(stdin) = process.stdin.take() {
        tokio::spawn(forward_stdin(stdin));
    }
    let code = follow(&mut process).await;
    executor.close().await;
    code
}

fn command(args: &ExecArgs) -> Command {
    let mut command = Command::new(args.command[0].clone())
        .args(args.command[1..].iter().cloned())
        .stdin(!args.no_stdin);
    if let Some(cwd) = &args.cwd {
        command = command.current_dir(cwd);
    }
    for (name, value) in &args.env {
        command = command.env(name, value);
    }
    command
}

/// Passes output on until the process has ended.
async fn follow(process: &mut Process) -> Result<ExitCode, Exit> {
    let mut interrupts = signal(SignalKind::interrupt()).map_err(Exit::software)?;
    let control = process.control();
    let mut interrupted = 0;
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut code, mut missed) = (0, false);
    loop {
        let event = tokio::select! {
            event = process.next() => event,
            _ = interrupts.recv() => {
                interrupted += 1;
                tokio::spawn(interrupt(control.clone(), interrupted));
                continue;
            }
        };
        let event = match event {
            Err(error @ ProcessError::Missed(_)) => {
                tell(format_args!("rendez: {error}"));
                missed = true;
                continue;
            }
            event => event?,
        };
        let written = match event {
            None if missed => return Err(Exit::io("the output is not complete")),
            None => return Ok(ExitCode::from(code)),
            Some(ProcessEvent::Exited(status)) => {
                // A status has eight bits everywhere we run.
                code = (status & 0xff) as u8;
                Ok(())
            }
            Some(ProcessEvent::Stdout(chunk)) => pass(&mut stdout, &chunk).await,
            Some(ProcessEvent::Stderr(chunk)) => pass(&mut stderr, &chunk).await,
        };
        if let Err(error) = written {
            // Nobody reads the output any more: end it, as a pipe would.
            let _ = control.terminate().await;
            return Err(unwritten(&error));
        }
    }
}

async fn pass(sink: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> std::io::Result<()> {
    sink.write_all(chunk).await?;
    sink.flush().await
}

async fn interrupt(control: Control, times: u32) {
    match times {
        1 => drop(control.interrupt().await),
        2 => drop(control.terminate().await),
        // The executor does not react: leave.
        _ => std::process::exit(130),
    }
}

async fn forward_stdin(mut stdin: Stdin) {
    // No pipe, or no permission: then reads are smaller.
    let _ = rustix::pipe::fcntl_setpipe_size(std::io::stdin(), STDIN_BYTES);
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; STDIN_BYTES];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => match stdin.write_all(&buffer[..read]).await {
                Ok(()) => {}
                // A process that stopped reading is no failure; its exit code
                // counts. A lost connection is told by whoever reads output.
                Err(ProcessError::StdinClosed | ProcessError::Lost) => return,
                Err(error) => {
                    tell(format_args!("rendez: standard input is not passed on any more: {error}"));
                    return;
                }
            },
            Err(error) => {
                tell(format_args!("rendez: cannot read standard input: {error}"));
                break;
            }
        }
    }
    if let Err(ProcessError::Unsupported(_)) = stdin.close().await {
        tell(
            "rendez: this stock executor cannot be told that standard input has ended; \
             a command that waits for that goes on waiting (Ctrl-C interrupts it)",
        );
    }
}

async fn tell_about_the_link(mut link: tokio::sync::watch::Receiver<LinkState>) {
    while link.changed().await.is_ok() {
        match *link.borrow_and_update() {
            LinkState::Resuming => tell("rendez: connection lost, resuming"),
            LinkState::Up => tell("rendez: resumed"),
            LinkState::Down => return,
        }
    }
}
