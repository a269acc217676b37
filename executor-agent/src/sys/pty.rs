//! Starts a child on a terminal of its own.
//!
//! The terminal has 24 rows and 80 columns; the client sets TERM
//! (docs/codex-wire.md#processes). The child leads a session, and the terminal is
//! its controlling terminal.

use std::io;
use std::os::fd::AsFd as _;

use rendez_proto::rpc::process::Stream;

use super::child::{Launch, Launched};
use super::process_group::ProcessGroup;

/// Rows of a new terminal.
const ROWS: u16 = 24;
/// Columns of a new terminal.
const COLUMNS: u16 = 80;

/// Starts a child. Needs the context of a runtime, and blocks during the fork.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn launch(launch: &Launch) -> io::Result<Launched> {
    let (terminal, child_end) = pty_process::open().map_err(plain)?;
    terminal.resize(pty_process::Size::new(ROWS, COLUMNS)).map_err(plain)?;
    let child = pty_process::Command::new(&launch.program)
        .arg0(&launch.arg0)
        .args(&launch.args)
        .env_clear()
        .envs(&launch.env)
        .current_dir(&launch.cwd)
        .kill_on_drop(true)
        .spawn(child_end)
        .map_err(plain)?;
    let control = terminal.as_fd().try_clone_to_owned()?;
    let (output, input) = terminal.into_split();
    Ok(Launched {
        group: ProcessGroup::of(&child, Some(control))?,
        outputs: vec![(Stream::Pty, Box::new(output))],
        stdin: Some(Box::new(input)),
        child,
    })
}

fn plain(error: pty_process::Error) -> io::Error {
    match error {
        pty_process::Error::Io(error) => error,
        pty_process::Error::Rustix(error) => error.into(),
        other => io::Error::other(other.to_string()),
    }
}
