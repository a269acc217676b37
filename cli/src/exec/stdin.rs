//! The standard input of `rendez exec`, passed on to the command.

use std::cell::Cell;
use std::future::pending;
use std::io::IsTerminal as _;

use rendez_orchestrator::error::ProcessError;
use rendez_orchestrator::{Control, STDIN_WRITE_MAX_BYTES, Stdin};
use tokio::io::AsyncReadExt as _;
use tokio::time::sleep;

use super::{TERMINATE_TIMEOUT, note_from_task};
use crate::exit::Exit;
use crate::sys;

/// Bytes of standard input per read. The pipe is enlarged to the same size, which
/// bounds the writes in flight on a slow path.
const STDIN_BYTES: usize = STDIN_WRITE_MAX_BYTES;

/// Forwards standard input. If reading fails, the process is terminated: an end of
/// input would make it take a part for the whole.
pub(super) async fn feed_stdin(
    stdin: Option<Stdin>,
    control: Control,
    verdict: &Cell<Option<Exit>>,
) -> Exit {
    let Some(stdin) = stdin else { return pending().await };
    let Ok(Err(error)) = tokio::spawn(forward_stdin(stdin)).await else { return pending().await };
    tokio::spawn(async move { control.terminate().await });
    let failed = format!("cannot read standard input: {error}");
    verdict.set(Some(Exit::io(format!("{failed}; the command was terminated"))));
    sleep(TERMINATE_TIMEOUT).await;
    Exit::io(format!("{failed}; the command was asked to terminate but may still be running"))
}

/// Forwards input until it ends or the process closes its standard input.
async fn forward_stdin(mut stdin: Stdin) -> std::io::Result<()> {
    sys::enlarge_stdin_pipe(STDIN_BYTES);
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; STDIN_BYTES];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => match stdin.write_all(&buffer[..read]).await {
                Ok(()) => {}
                // A process may stop reading: its exit code counts. The task that
                // copies output reports a lost connection.
                Err(ProcessError::StdinClosed | ProcessError::Lost) => return Ok(()),
                Err(error) => {
                    note_from_task(format!(
                        "rendez: standard input is no longer forwarded: {error}"
                    ))
                    .await;
                    return Ok(());
                }
            },
            // The terminal is gone, or another process group is in its foreground:
            // there is no typed input to read.
            Err(_) if std::io::stdin().is_terminal() => break,
            Err(error) => return Err(error),
        }
    }
    if let Err(ProcessError::Unsupported(_)) = stdin.close().await {
        note_from_task(
            "rendez: this stock executor does not support closing standard input; a command \
             that waits for its end keeps waiting (Ctrl-C interrupts it)",
        )
        .await;
    }
    Ok(())
}
