//! Starts a child on pipes.

use std::io;
use std::process::Stdio;

use rendez_proto::rpc::process::Stream;
use tokio::process::Command;

use super::child::{Launch, Launched, Reader, Writer};
use super::process_group::ProcessGroup;

/// Starts a child that leads a process group of its own; without `pipe_stdin` it
/// reads nothing. Needs the context of a runtime.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn launch(launch: &Launch, pipe_stdin: bool) -> io::Result<Launched> {
    let mut child = Command::new(&launch.program)
        .arg0(&launch.arg0)
        .args(&launch.args)
        .env_clear()
        .envs(&launch.env)
        .current_dir(&launch.cwd)
        .stdin(if pipe_stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut outputs: Vec<(Stream, Reader)> = Vec::with_capacity(2);
    if let Some(stdout) = child.stdout.take() {
        outputs.push((Stream::Stdout, Box::new(stdout)));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.push((Stream::Stderr, Box::new(stderr)));
    }
    let stdin = child.stdin.take().map(|stdin| Box::new(stdin) as Writer);
    Ok(Launched { group: ProcessGroup::of(&child, None)?, outputs, stdin, child })
}
