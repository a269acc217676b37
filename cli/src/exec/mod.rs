//! `rendez exec`: run a command on an executor as if it were local.
//!
//! The reader of the output may pause, and a full pipe must not block anything
//! else: signals are handled while output waits, and notes on standard error are
//! written by other threads.

mod stdin;

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use rendez_orchestrator::error::ProcessError;
use rendez_orchestrator::{
    Command, ConnectionState, Control, Environment, EnvironmentId, Grace, Process, ProcessEvent,
    Stdin,
};
use rendez_program::signals::{SignalListener, SignalRequest};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use self::stdin::feed_stdin;
use crate::exit::Exit;
use crate::output::{note, write_error};
use crate::relay_options::RelayOptions;

/// How long to wait for the end of a command that was asked to terminate: long
/// enough for a busy executor on a slow path, short enough for a user who waits for
/// the prompt.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    relay: RelayOptions,

    /// Working directory on the executor [default: the executor's own]
    #[arg(short = 'C', long, value_name = "DIR")]
    cwd: Option<String>,

    /// Set an environment variable for the command; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = assignment)]
    env: Vec<(String, String)>,

    /// Give the command an empty standard input
    #[arg(short = 'n', long)]
    no_stdin: bool,

    /// How long to keep trying to resume a lost connection, 1s to 1h. The executor
    /// may give up earlier
    #[arg(long, env = "RENDEZ_GRACE", default_value_t, value_name = "DURATION")]
    grace: Grace,

    /// The environment to run the command in
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
    let client = args.relay.client()?.with_grace(args.grace);
    let executor = client.connect(&args.environment).await?;
    if std::io::stderr().is_terminal() {
        tokio::spawn(report_link_state(executor.connection_state()));
    }
    let mut signals = SignalListener::listen().map_err(Exit::software)?;
    let mut process = spawn(&executor, command(&args), &mut signals).await?;
    let stdin = process.stdin.take();
    let code = run_to_end(process, stdin, signals).await;
    executor.close().await;
    code
}

/// Starts the command. A signal during the call may arrive after the process has
/// started: wait for the reply, then terminate the process.
async fn spawn(
    executor: &Environment,
    command: Command,
    signals: &mut SignalListener,
) -> Result<Process, Exit> {
    let mut spawning = pin!(executor.spawn(command));
    let asked = match signals.run_until_signal(&mut spawning).await {
        Ok(spawned) => return Ok(spawned?),
        Err(asked) => asked,
    };
    let ending = async {
        let control = spawning.await?.control();
        control.terminate().await
    };
    let ended = matches!(timeout(TERMINATE_TIMEOUT, ending).await, Ok(Ok(_)));
    Err(match asked {
        SignalRequest::Terminate(signal) if ended => Exit::terminated_by(signal),
        SignalRequest::Terminate(signal) => Exit::gave_up_after(signal),
        SignalRequest::Interrupt => Exit::interrupted(),
    })
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

/// Copies output until the process has ended, or until a signal or a failure of
/// standard input stops the wait.
///
/// A task that terminates the process stores in `verdict` the exit to report once
/// the process has ended.
async fn run_to_end(
    process: Process,
    stdin: Option<Stdin>,
    signals: SignalListener,
) -> Result<ExitCode, Exit> {
    let control = process.control();
    let verdict = Cell::new(None);
    tokio::select! {
        code = copy_output(process) => verdict.take().map_or(code, Err),
        exit = handle_signals(signals, control.clone(), &verdict) => Err(exit),
        exit = feed_stdin(stdin, control, &verdict) => Err(exit),
    }
}

async fn copy_output(mut process: Process) -> Result<ExitCode, Exit> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut code, mut missed) = (0, false);
    loop {
        let written = match process.next().await {
            Err(error @ ProcessError::Missed(_)) => {
                missed = true;
                pass(&mut stderr, format!("rendez: {error}\n").as_bytes()).await
            }
            Err(error) => return Err(error.into()),
            Ok(None) if missed => return Err(Exit::io("the output is incomplete")),
            Ok(None) => return Ok(ExitCode::from(code)),
            Ok(Some(ProcessEvent::Exited(status))) => {
                // An exit status has eight bits on every supported system.
                code = (status & 0xff) as u8;
                Ok(())
            }
            Ok(Some(ProcessEvent::Stdout(chunk))) => pass(&mut stdout, &chunk).await,
            Ok(Some(ProcessEvent::Stderr(chunk))) => pass(&mut stderr, &chunk).await,
        };
        if let Err(error) = written {
            return Err(end_after_write_error(process, &error).await);
        }
    }
}

async fn pass(sink: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> std::io::Result<()> {
    sink.write_all(chunk).await?;
    sink.flush().await
}

/// Terminates the process after its output could not be written, as a closed pipe
/// would.
async fn end_after_write_error(process: Process, error: &std::io::Error) -> Exit {
    let control = process.control();
    // The reply waits behind output: dropping the process discards that output.
    drop(process);
    match timeout(TERMINATE_TIMEOUT, control.terminate()).await {
        Ok(Ok(_)) => write_error(error),
        Ok(Err(_)) | Err(_) => {
            Exit::io(format!("cannot write the output: {error}; the command may still be running"))
        }
    }
}

/// Forwards the first Ctrl-C, terminates the process at the next signal, and
/// returns when the wait for its end is over.
async fn handle_signals(
    mut signals: SignalListener,
    control: Control,
    verdict: &Cell<Option<Exit>>,
) -> Exit {
    let mut asked = signals.recv().await;
    if asked == SignalRequest::Interrupt {
        let first = control.clone();
        // The reply may wait behind output; the next Ctrl-C must not.
        tokio::spawn(async move { first.interrupt().await });
        asked = signals.recv().await;
    }
    tokio::spawn(async move { control.terminate().await });
    match asked {
        SignalRequest::Interrupt => {
            let _ = timeout(TERMINATE_TIMEOUT, signals.recv()).await;
            Exit::interrupted()
        }
        SignalRequest::Terminate(signal) => {
            verdict.set(Some(Exit::terminated_by(signal)));
            sleep(TERMINATE_TIMEOUT).await;
            Exit::gave_up_after(signal)
        }
    }
}

async fn report_link_state(mut link: tokio::sync::watch::Receiver<ConnectionState>) {
    while link.changed().await.is_ok() {
        let state = *link.borrow_and_update();
        match state {
            ConnectionState::Reconnecting => {
                note_from_task("rendez: connection lost, resuming").await
            }
            ConnectionState::Connected => note_from_task("rendez: resumed").await,
            ConnectionState::Closed => return,
        }
    }
}

/// Prints a note from another thread, because standard error may be blocked.
async fn note_from_task(text: impl Into<String>) {
    let text = text.into();
    let _ = tokio::task::spawn_blocking(move || note(text)).await;
}
