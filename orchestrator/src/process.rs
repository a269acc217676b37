//! Processes on an executor.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::ids::StreamId;
use rendez_proto::limits;
use rendez_proto::rpc::process::{ProcessId, Signal, SignalName, Start, Stream, Terminate};
use rendez_proto::rpc::{RpcError, code};
use rendez_rpc::CallError;
use tokio::sync::mpsc;

use crate::error::{FileError, ProcessError};
use crate::event_sequencer::Event;
use crate::files::Files;
use crate::random::random;
use crate::session::Session;
use crate::stdin::Stdin;

/// The size limit for coalescing received output into one event.
const COALESCE_BYTES: usize = 256 * 1024;

/// A process on an executor.
///
/// The owner must read it, with [`next`](Self::next), [`wait`](Self::wait) or
/// [`output`](Self::output). Unread output holds back everything else of the
/// [`Environment`](crate::Environment), including replies to calls; see [the crate
/// documentation](crate#read-every-process-that-you-keep).
///
/// Dropping it discards its output. The process continues to run; see
/// [`Environment`](crate::Environment) for how long.
pub struct Process {
    session: Arc<Session>,
    id: ProcessId,
    events: mpsc::Receiver<Event>,
    /// Standard input, if the command connects it. Take it out to write while
    /// reading: a process whose output is not read stops reading its input. Only
    /// [`wait`](Self::wait) and [`output`](Self::output) close it if it is still
    /// here.
    pub stdin: Option<Stdin>,
    /// An event that was received while coalescing output.
    peeked: Option<Event>,
    exit_code: Option<i32>,
    /// Whether all events were returned.
    finished: bool,
}

/// An event of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// Output on standard output or on the terminal.
    Stdout(Vec<u8>),
    /// Output on standard error.
    Stderr(Vec<u8>),
    /// The exit code, or 128 plus the number of the signal that killed the process.
    /// Output of its remaining children may follow.
    Exited(i32),
}

/// The exit code and all output of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exit code, or 128 plus the number of the signal that killed the process.
    pub exit_code: i32,
    /// All output on standard output or on the terminal.
    pub stdout: Vec<u8>,
    /// All output on standard error.
    pub stderr: Vec<u8>,
}

impl Process {
    pub(crate) async fn start(
        session: Arc<Session>,
        mut start: Start,
    ) -> Result<Self, ProcessError> {
        let id = start.process_id.clone();
        // A resumable session keeps writes in flight to send them again, so they
        // should be small.
        if session.extensions.stdin_window && !session.is_resumable() && start.pipe_stdin {
            start.stdin_window = Some(limits::STDIN_WINDOW_MAX_BYTES as u64);
        }
        // Subscribe before the call, because events may overtake its response.
        let events = session.events.subscribe(id.clone());
        let piped = start.pipe_stdin || start.tty;
        let stdin = piped.then(|| Stdin::new(session.clone(), id.clone()));
        let mut process =
            Self { session, id, events, stdin, peeked: None, exit_code: None, finished: false };
        let sent = process.session.request::<Start>(&start).await;
        let (stream, answer) = sent?;
        let reply = match answer.wait().await {
            Ok(reply) => reply,
            Err(error) => return Err(start_error(&process.session, &start, error).await),
        };
        process.session.events.started(&process.id, stream.epoch);
        if let (Some(stdin), Some(window)) = (&mut process.stdin, reply.stdin_window) {
            stdin.set_window(window);
        }
        Ok(process)
    }

    /// Returns the next event, in the order in which they occurred. Returns `None`
    /// after the process has ended and all its output was returned.
    ///
    /// # Errors
    /// [`ProcessError::Lost`] if the connection was lost before that.
    /// [`ProcessError::Missed`] where output is missing; more events follow.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>, ProcessError> {
        if self.finished {
            return Ok(None);
        }
        let event = match self.peeked.take() {
            Some(event) => Some(event),
            None => self.events.recv().await,
        };
        match event {
            Some(Event::Output(stream, chunk)) => Ok(Some(match stream {
                Stream::Stdout | Stream::Pty => ProcessEvent::Stdout(self.coalesce(stream, chunk)),
                Stream::Stderr => ProcessEvent::Stderr(self.coalesce(stream, chunk)),
            })),
            Some(Event::Exited(code)) => {
                self.exit_code = Some(code);
                Ok(Some(ProcessEvent::Exited(code)))
            }
            Some(Event::Closed) => {
                self.finished = true;
                Ok(None)
            }
            Some(Event::Gap) => {
                Err(ProcessError::Malformed("process events are missing".to_owned()))
            }
            Some(Event::Missed(pieces)) => Err(ProcessError::Missed(pieces)),
            None => Err(ProcessError::Lost),
        }
    }

    /// Appends output of the same stream that has already arrived. The caller then
    /// forwards it in one write instead of many.
    fn coalesce(&mut self, stream: Stream, chunk: Bytes) -> Vec<u8> {
        let mut chunk = Vec::from(chunk); // no copy: the only owner
        while chunk.len() < COALESCE_BYTES {
            match self.events.try_recv() {
                Ok(Event::Output(same, more)) if same == stream => chunk.extend_from_slice(&more),
                Ok(other) => {
                    self.peeked = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        chunk
    }

    /// Waits for the end of the process, discarding all output.
    ///
    /// Closes [`stdin`](Self::stdin) if it was not taken out. A stock executor
    /// cannot close standard input; a process that reads to its end does not end
    /// there.
    ///
    /// # Errors
    /// See [`next`](Self::next).
    pub async fn wait(self) -> Result<i32, ProcessError> {
        self.drain(drop).await
    }

    /// Waits for the end of the process, collecting all output in memory. Closes
    /// [`stdin`](Self::stdin) as [`wait`](Self::wait) does.
    ///
    /// # Errors
    /// See [`next`](Self::next).
    pub async fn output(self) -> Result<Output, ProcessError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let collect = |event| match event {
            ProcessEvent::Stdout(chunk) => stdout.extend(chunk),
            ProcessEvent::Stderr(chunk) => stderr.extend(chunk),
            ProcessEvent::Exited(_) => {}
        };
        let exit_code = self.drain(collect).await?;
        Ok(Output { exit_code, stdout, stderr })
    }

    /// Passes all remaining events to `on_event` and returns the exit code.
    async fn drain(mut self, on_event: impl FnMut(ProcessEvent)) -> Result<i32, ProcessError> {
        let stdin = self.stdin.take();
        // Concurrently: a process whose output is not read stops reading its input.
        tokio::select! {
            code = self.read_to_end(on_event) => code,
            never = close_stdin(stdin) => match never {},
        }
    }

    async fn read_to_end(
        &mut self,
        mut on_event: impl FnMut(ProcessEvent),
    ) -> Result<i32, ProcessError> {
        while let Some(event) = self.next().await? {
            on_event(event);
        }
        self.exit_code.ok_or(ProcessError::Lost)
    }

    /// Returns a handle for signals, which other tasks can use.
    pub fn control(&self) -> Control {
        Control { session: self.session.clone(), id: self.id.clone() }
    }
}

/// Closes standard input and then never returns: the end of the process is
/// awaited elsewhere.
async fn close_stdin(stdin: Option<Stdin>) -> Infallible {
    if let Some(stdin) = stdin {
        // If this fails, the process may still end by itself.
        let _ = stdin.close().await;
    }
    std::future::pending().await
}

impl Drop for Process {
    fn drop(&mut self) {
        self.session.events.unsubscribe(&self.id);
    }
}

/// Sends signals to a process.
///
/// A signal overtakes unread output, but its response comes behind that output. So
/// read the [`Process`] while waiting for the response, or drop it first;
/// otherwise the wait may never end.
#[derive(Clone)]
pub struct Control {
    session: Arc<Session>,
    id: ProcessId,
}

impl Control {
    /// Interrupts the process and its children, as Ctrl-C does.
    ///
    /// # Errors
    /// The call failed.
    pub async fn interrupt(&self) -> Result<(), ProcessError> {
        let signal = Signal { process_id: self.id.clone(), signal: SignalName::Interrupt };
        Ok(self.session.call::<Signal>(&signal).await.map(drop)?)
    }

    /// Kills the process and its children. Returns whether it was still running.
    ///
    /// # Errors
    /// The call failed.
    pub async fn terminate(&self) -> Result<bool, ProcessError> {
        let terminate = Terminate { process_id: self.id.clone() };
        Ok(self.session.call::<Terminate>(&terminate).await?.running)
    }
}

/// Finds out why a process was not started.
///
/// An executor reports its system's error message as an internal error, without
/// naming the program or the directory. The messages are part of the protocol
/// (docs/codex-wire.md#processes), and stock executors send no others. The working
/// directory is checked only after a failure, which neither delays successful
/// starts nor races with them.
async fn start_error(session: &Session, start: &Start, error: CallError) -> ProcessError {
    let (code, message) = match error {
        CallError::Refused(RpcError {
            code: code @ (code::INTERNAL | code::INVALID_PARAMS),
            message,
        }) => (code, message),
        other => return other.into(),
    };
    if code == code::INTERNAL
        && let Some(why) = directory_error(session, start.cwd.path()).await
    {
        return ProcessError::Directory { path: start.cwd.path().to_owned(), why };
    }
    let program = match start.argv.first() {
        Some(program) if !program.is_empty() => program.clone(),
        _ => "''".to_owned(),
    };
    if code == code::INTERNAL && message.starts_with("No such file or directory") {
        ProcessError::NotFound(program)
    } else {
        ProcessError::CannotStart { program, why: message }
    }
}

/// Returns why no process can run in this directory, if the executor reports a
/// reason.
async fn directory_error(session: &Session, path: &str) -> Option<String> {
    match Files::new(session).metadata(path).await {
        Ok(metadata) if metadata.is_directory => None,
        Ok(_) => Some("not a directory".to_owned()),
        Err(FileError::NotFound(_)) => Some("no such directory".to_owned()),
        Err(FileError::Refused(error)) if error.code == code::INTERNAL => Some(error.message),
        Err(_) => None,
    }
}

/// Generates a process id.
pub(crate) fn random_id() -> Result<String, ProcessError> {
    let bytes = random().map_err(|_| ProcessError::NoRandomness)?;
    Ok(StreamId::from_random(bytes).as_str().to_owned())
}
