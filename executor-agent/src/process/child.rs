//! Starts a child, and runs the task that reads its output and awaits its exit.
//!
//! A child leads a process group of its own, so that signals also reach the
//! processes that it starts. The task appends the output to the log and closes the
//! log at the end. While too much output waits for an attached peer, the task does
//! not read: backpressure for the child
//! ([`OutputLog::read_size`](super::output_log::OutputLog::read_size)).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use rendez_proto::limits;
use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::process::{Start, Stream};
use tokio::io::AsyncReadExt as _;
use tokio::process::Child;
use tokio_util::task::AbortOnDropHandle;

use super::process_handle::ProcessHandle;
use super::stdin::StdinFeeder;
use super::{env, path_search};
use crate::sys::child::{Launch, Launched, Reader, Writer, exit_code};
use crate::sys::{pipes, pty};

/// Starts the child that `start` describes, which inherits no variable of
/// `withheld`. Blocks, and needs the context of a runtime.
///
/// # Errors
/// -32602 for invalid parameters, -32603 with the text of the operating system for
/// all other failures.
pub(super) fn launch(start: Start, withheld: &[&str]) -> Result<Launched, RpcError> {
    let own = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let env = env::resolve(start.env_policy.as_ref(), &start.env, own, withheld)?;
    let mut argv = start.argv.into_iter();
    let program = argv.next().ok_or_else(|| RpcError::invalid_params("argv must not be empty"))?;
    let cwd = PathBuf::from(start.cwd.path());
    let found = path_search::find_program(&program, env.get("PATH").map(String::as_str), &cwd);
    let launch = Launch {
        program: found.map_err(launch_error)?,
        arg0: start.arg0.unwrap_or(program),
        args: argv.collect(),
        env,
        cwd,
    };
    let launched = match start.tty {
        true => pty::launch(&launch),
        false => pipes::launch(&launch, start.pipe_stdin),
    };
    launched.map_err(launch_error)
}

fn launch_error(error: io::Error) -> RpcError {
    match error.kind() {
        // a NUL in an argument or a variable
        io::ErrorKind::InvalidInput => RpcError::invalid_params(error.to_string()),
        _ => RpcError::internal(error.to_string()),
    }
}

/// Runs until the child has exited and all its outputs are closed. Then closes the
/// log.
pub(super) async fn run(
    mut child: Child,
    outputs: Vec<(Stream, Reader)>,
    input: Option<(StdinFeeder, Writer)>,
    process: Arc<ProcessHandle>,
) {
    let terminal = outputs.iter().any(|(stream, _)| *stream == Stream::Pty);
    let feeder_task = input
        .map(|(feeder, writer)| AbortOnDropHandle::new(tokio::spawn(feeder.run(writer, terminal))));
    let end = async {
        let code = match child.wait().await {
            Ok(status) => exit_code(status),
            Err(error) => {
                tracing::warn!(%error, "cannot get the exit status of a child");
                -1
            }
        };
        // the child will not read waiting writes: this answers them
        drop(feeder_task);
        process.exited(code);
    };
    let readers = outputs.into_iter().map(|(stream, output)| read_output(stream, output, &process));
    tokio::join!(end, join_all(readers));
    process.closed();
}

async fn read_output(stream: Stream, mut output: Reader, process: &Arc<ProcessHandle>) {
    // most children write little: the buffer grows once a read fills it
    let mut buffer = vec![0; limits::PROCESS_CHUNK_MAX_BYTES];
    loop {
        let max = process.read_size().await;
        let end = buffer.len().min(max);
        match output.read(&mut buffer[..end]).await {
            // a terminal returns EIO after its last process has closed it
            Ok(0) | Err(_) => return,
            Ok(len) => {
                process.output(stream, Bytes::copy_from_slice(&buffer[..len]));
                if len == buffer.len() && len < max {
                    buffer = vec![0; max];
                }
            }
        }
    }
}
