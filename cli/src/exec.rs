//! `rendez exec`: run a command on an executor as if it were here.
//!
//! Whoever reads our output may pause or leave, and a full pipe must not keep us
//! from anything else: signals are heard while output waits, and what is told
//! meanwhile is written by other threads.

use std::cell::Cell;
use std::future::pending;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use rendez_orchestrator::error::ProcessError;
use rendez_orchestrator::{
    Command, ConnectionState, Control, Environment, EnvironmentId, Grace, Process, ProcessEvent,
    STDIN_WRITE_MAX_BYTES, Stdin,
};
use rendez_program::signals::{Asked, Signals};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{sleep, timeout};

use crate::context::RelayOptions;
use crate::exit::Exit;
use crate::out::{tell, unwritten};
use crate::sys;

/// Bytes of standard input that are read at once. A pipe is asked to hold as
/// much: so many writes are under way on a long path, and no more.
const STDIN_BYTES: usize = STDIN_WRITE_MAX_BYTES;

/// How long the end of a command is waited for that was told to end. Long enough
/// for a busy executor on a long path; somebody waits for the prompt.
const END_WITHIN: Duration = Duration::from_secs(5);

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
    let client = args.relay.client()?.with_grace(args.grace);
    let executor = client.connect(&args.environment).await?;
    if std::io::stderr().is_terminal() {
        tokio::spawn(tell_about_the_link(executor.connection_state()));
    }
    let mut signals = Signals::listen().map_err(Exit::software)?;
    let mut process = spawn(&executor, command(&args), &mut signals).await?;
    let stdin = process.stdin.take();
    let code = follow(process, stdin, signals).await;
    executor.close().await;
    code
}

/// Starts the command. Who does not want it any more meanwhile may have started
/// it, and only the answer tells: it is waited for, and then the command ended.
async fn spawn(
    executor: &Environment,
    command: Command,
    signals: &mut Signals,
) -> Result<Process, Exit> {
    let mut spawning = pin!(executor.spawn(command));
    let asked = match signals.or(&mut spawning).await {
        Ok(spawned) => return Ok(spawned?),
        Err(asked) => asked,
    };
    let ending = async {
        let control = spawning.await?.control();
        control.terminate().await
    };
    let ended = matches!(timeout(END_WITHIN, ending).await, Ok(Ok(_)));
    Err(match asked {
        Asked::End(signal) if ended => Exit::ended_by(signal),
        Asked::End(signal) => Exit::ended_alone_by(signal),
        Asked::Interrupt => Exit::interrupted(),
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

/// Passes output on until the process has ended, or until somebody does not want
/// to wait for that.
///
/// Whoever ends the process from here says in `verdict` what that comes to if it
/// does end.
async fn follow(
    process: Process,
    stdin: Option<Stdin>,
    signals: Signals,
) -> Result<ExitCode, Exit> {
    let control = process.control();
    let verdict = Cell::new(None);
    tokio::select! {
        code = pass_on(process) => verdict.take().map_or(code, Err),
        exit = interrupted(signals, control.clone(), &verdict) => Err(exit),
        exit = not_fed(stdin, control, &verdict) => Err(exit),
    }
}

async fn pass_on(mut process: Process) -> Result<ExitCode, Exit> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut code, mut missed) = (0, false);
    loop {
        let written = match process.next().await {
            Err(error @ ProcessError::Missed(_)) => {
                missed = true;
                pass(&mut stderr, format!("rendez: {error}\n").as_bytes()).await
            }
            Err(error) => return Err(error.into()),
            Ok(None) if missed => return Err(Exit::io("the output is not complete")),
            Ok(None) => return Ok(ExitCode::from(code)),
            Ok(Some(ProcessEvent::Exited(status))) => {
                // A status has eight bits everywhere we run.
                code = (status & 0xff) as u8;
                Ok(())
            }
            Ok(Some(ProcessEvent::Stdout(chunk))) => pass(&mut stdout, &chunk).await,
            Ok(Some(ProcessEvent::Stderr(chunk))) => pass(&mut stderr, &chunk).await,
        };
        if let Err(error) = written {
            return Err(unread(process, &error).await);
        }
    }
}

async fn pass(sink: &mut (impl AsyncWrite + Unpin), chunk: &[u8]) -> std::io::Result<()> {
    sink.write_all(chunk).await?;
    sink.flush().await
}

/// Nobody reads the output any more: ends the process, as a pipe would.
async fn unread(process: Process, error: &std::io::Error) -> Exit {
    let control = process.control();
    // The answer comes behind output that has to go somewhere.
    drop(process);
    match timeout(END_WITHIN, control.terminate()).await {
        Ok(Ok(_)) => unwritten(error),
        Ok(Err(_)) | Err(_) => Exit::io(format!(
            "cannot write the output ({error}), and cannot tell whether the command has ended"
        )),
    }
}

/// Passes Ctrl-C on, ends the process if somebody asks for that, and says when to
/// wait no longer.
async fn interrupted(mut signals: Signals, control: Control, verdict: &Cell<Option<Exit>>) -> Exit {
    let mut asked = signals.recv().await;
    if asked == Asked::Interrupt {
        let first = control.clone();
        // The answers may wait behind output, and the next Ctrl-C must not.
        tokio::spawn(async move { first.interrupt().await });
        asked = signals.recv().await;
    }
    tokio::spawn(async move { control.terminate().await });
    match asked {
        Asked::Interrupt => {
            let _ = timeout(END_WITHIN, signals.recv()).await;
            Exit::interrupted()
        }
        Asked::End(signal) => {
            verdict.set(Some(Exit::ended_by(signal)));
            sleep(END_WITHIN).await;
            Exit::ended_alone_by(signal)
        }
    }
}

/// Passes standard input on. What cannot be read to its end is not an input that
/// ended: the process would take a part of it for the whole, and is ended instead.
async fn not_fed(stdin: Option<Stdin>, control: Control, verdict: &Cell<Option<Exit>>) -> Exit {
    let Some(stdin) = stdin else { return pending().await };
    let Ok(Err(error)) = tokio::spawn(forward_stdin(stdin)).await else { return pending().await };
    tokio::spawn(async move { control.terminate().await });
    let failed = format!("cannot read standard input: {error}");
    verdict.set(Some(Exit::io(format!("{failed}; the command was ended"))));
    sleep(END_WITHIN).await;
    Exit::io(format!("{failed}; the command was told to end, whether it did is unknown"))
}

/// Until the input has ended, or the process takes no more.
async fn forward_stdin(mut stdin: Stdin) -> std::io::Result<()> {
    sys::enlarge_stdin_pipe(STDIN_BYTES);
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; STDIN_BYTES];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => match stdin.write_all(&buffer[..read]).await {
                Ok(()) => {}
                // A process that stopped reading is no failure; its exit code
                // counts. A lost connection is told by whoever reads output.
                Err(ProcessError::StdinClosed | ProcessError::Lost) => return Ok(()),
                Err(error) => {
                    say(format!("rendez: standard input is not passed on any more: {error}")).await;
                    return Ok(());
                }
            },
            // One that is gone, or belongs to the programs in its foreground: there
            // is nothing to be read that anybody typed.
            Err(_) if std::io::stdin().is_terminal() => break,
            Err(error) => return Err(error),
        }
    }
    if let Err(ProcessError::Unsupported(_)) = stdin.close().await {
        say("rendez: this stock executor cannot be told that standard input has ended; \
             a command that waits for that goes on waiting (Ctrl-C interrupts it)")
        .await;
    }
    Ok(())
}

async fn tell_about_the_link(mut link: tokio::sync::watch::Receiver<ConnectionState>) {
    while link.changed().await.is_ok() {
        let state = *link.borrow_and_update();
        match state {
            ConnectionState::Reconnecting => say("rendez: connection lost, resuming").await,
            ConnectionState::Connected => say("rendez: resumed").await,
            ConnectionState::Closed => return,
        }
    }
}

/// Tells people something while output may be under way to where nobody reads.
async fn say(text: impl Into<String>) {
    let text = text.into();
    let _ = tokio::task::spawn_blocking(move || tell(text)).await;
}
