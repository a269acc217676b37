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

/// Bytes of standard input that are read at once. A pipe is asked to hold as
/// much: so many writes are under way on a long path, and no more.
const STDIN_BYTES: usize = STDIN_WRITE_MAX_BYTES;

/// Passes standard input on. What cannot be read to its end is not an input that
/// ended: the process would take a part of it for the whole, and is ended instead.
pub(super) async fn feed_stdin(
    stdin: Option<Stdin>,
    control: Control,
    verdict: &Cell<Option<Exit>>,
) -> Exit {
    let Some(stdin) = stdin else { return pending().await };
    let Ok(Err(error)) = tokio::spawn(forward_stdin(stdin)).await else { return pending().await };
    tokio::spawn(async move { control.terminate().await });
    let failed = format!("cannot read standard input: {error}");
    verdict.set(Some(Exit::io(format!("{failed}; the command was ended"))));
    sleep(TERMINATE_TIMEOUT).await;
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
                    note_from_task(format!(
                        "rendez: standard input is not passed on any more: {error}"
                    ))
                    .await;
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
        note_from_task(
            "rendez: this stock executor cannot be told that standard input has ended; \
             a command that waits for that goes on waiting (Ctrl-C interrupts it)",
        )
        .await;
    }
    Ok(())
}
