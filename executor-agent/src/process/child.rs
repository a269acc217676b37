//! One child: how it is started, and the task that lives as long as it does.
//!
//! A child leads a process group of its own, so that signals reach what it
//! started, too. Its task reads the outputs into the log, waits for the end
//! and closes the log; a full log of an attached peer stops the reading, and
//! so the child ([`OutputLog::read_size`](super::output_log::OutputLog::read_size)).

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

use super::process_handle::ProcessHandle;
use super::stdin::StdinFeeder;
use super::{env, path_search};
use crate::sys::child::{Launch, Launched, Reader, Writer, exit_code};
use crate::sys::{pipes, pty};

/// Starts what `start` says; blocks, and needs a runtime's context. The child
/// inherits no variable of `withheld`.
///
/// # Errors
/// -32602 for parameters that no program could be started with, -32603 with
/// the operating system's text.
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
        // NUL in an argument or a variable
        io::ErrorKind::InvalidInput => RpcError::invalid_params(error.to_string()),
        _ => RpcError::internal(error.to_string()),
    }
}

/// The child's life: ends when it has ended and all its outputs are closed.
pub(super) async fn run(
    mut child: Child,
    outputs: Vec<(Stream, Reader)>,
    input: Option<(StdinFeeder, Writer)>,
    process: Arc<ProcessHandle>,
) {
    let terminal = outputs.iter().any(|(stream, _)| *stream == Stream::Pty);
    let feeder_task =
        input.map(|(feeder, writer)| AbortOnDrop(tokio::spawn(feeder.run(writer, terminal))));
    let end = async {
        let code = match child.wait().await {
            Ok(status) => exit_code(status),
            Err(error) => {
                tracing::warn!(%error, "cannot learn how a child ended");
                -1
            }
        };
        // writes that still wait are answered: nobody will read them
        drop(feeder_task);
        process.exited(code);
    };
    let readers = outputs.into_iter().map(|(stream, output)| read_output(stream, output, &process));
    tokio::join!(end, join_all(readers));
    process.closed();
}

async fn read_output(stream: Stream, mut output: Reader, process: &Arc<ProcessHandle>) {
    // most children write little: the buffer grows when one read fills it
    let mut buffer = vec![0; limits::PROCESS_CHUNK_MAX_BYTES];
    loop {
        let max = process.read_size().await;
        let end = buffer.len().min(max);
        match output.read(&mut buffer[..end]).await {
            // a terminal says EIO when its last user is gone
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

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
