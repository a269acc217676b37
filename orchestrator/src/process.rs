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

/// Bytes of output that are gathered into one event, if they are there.
const COALESCE_BYTES: usize = 256 * 1024;

/// A process on an executor.
///
/// As long as this is there somebody has to read it, by [`next`](Self::next),
/// [`wait`](Self::wait) or [`output`](Self::output): its output waits, and then
/// everything else of the [`Environment`](crate::Environment) does, answers to calls
/// included ([why](crate#read-every-process-that-you-keep)).
///
/// Dropping it throws its output away and lets the process run on; see
/// [`Environment`](crate::Environment) for how long.
pub struct Process {
    session: Arc<Session>,
    id: ProcessId,
    events: mpsc::Receiver<Event>,
    /// Standard input, if the command asked for it. Take it to write while
    /// reading: a process that is not read from stops reading. What is left here
    /// is closed by [`wait`](Self::wait) and [`output`](Self::output), and by
    /// nothing else.
    pub stdin: Option<Stdin>,
    /// An event that was met while gathering output.
    peeked: Option<Event>,
    exit_code: Option<i32>,
    /// Everything was told.
    finished: bool,
}

/// What a process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessEvent {
    /// It wrote to standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended: its code, or 128 plus the signal that killed it. Output of
    /// processes that it left behind may follow.
    Exited(i32),
}

/// All that a process did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its code, or 128 plus the signal that killed it.
    pub exit_code: i32,
    /// All of standard output, or of its terminal.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: Vec<u8>,
}

impl Process {
    pub(crate) async fn start(
        session: Arc<Session>,
        mut start: Start,
    ) -> Result<Self, ProcessError> {
        let id = start.process_id.clone();
        // Where a session outlives its stream, what is under way is kept to be
        // sent again, and is better small.
        if session.extensions.stdin_window && !session.is_resumable() && start.pipe_stdin {
            start.stdin_window = Some(limits::STDIN_WINDOW_MAX_BYTES as u64);
        }
        // Before the call: events may overtake its answer.
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

    /// What happened next, in the order in which it did; `None` once the
    /// process has ended and all its output was told.
    ///
    /// # Errors
    /// [`ProcessError::Lost`] if the connection was lost first.
    /// [`ProcessError::Missed`] where output is missing; more follows.
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

    /// Appends what has arrived of the same stream already: one write instead
    /// of many for whoever passes it on.
    fn coalesce(&mut self, stream: Stream, chunk: Bytes) -> Vec<u8> {
        let mut chunk = Vec::from(chunk); // no copy: nobody else has it
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

    /// Waits for the end, forgetting all output.
    ///
    /// Closes [`stdin`](Self::stdin) if it is still there. A stock executor cannot
    /// be told that; what reads there to the end of its input does not end.
    ///
    /// # Errors
    /// See [`next`](Self::next).
    pub async fn wait(self) -> Result<i32, ProcessError> {
        self.drain(drop).await
    }

    /// Waits for the end, collecting all output in memory. Closes
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

    /// Tells what happens until the process has ended, and gives its code.
    async fn drain(mut self, on_event: impl FnMut(ProcessEvent)) -> Result<i32, ProcessError> {
        let stdin = self.stdin.take();
        // Both at once: a process that is not read from stops reading.
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

    /// A handle for signals that can go to another task.
    pub fn control(&self) -> Control {
        Control { session: self.session.clone(), id: self.id.clone() }
    }
}

/// Closes the input of a process of which only the end is of interest, which does
/// not come from here.
async fn close_stdin(stdin: Option<Stdin>) -> Infallible {
    if let Some(stdin) = stdin {
        // One that has closed it, or that cannot be told, may still end.
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
/// A signal is sent at once, however much output waits; its answer comes behind
/// that output. So read the [`Process`] while you wait for the answer, or drop it:
/// what is awaited before either may wait for ever.
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

    /// Kills the process and its children; tells whether it still ran.
    ///
    /// # Errors
    /// The call failed.
    pub async fn terminate(&self) -> Result<bool, ProcessError> {
        let terminate = Terminate { process_id: self.id.clone() };
        Ok(self.session.call::<Terminate>(&terminate).await?.running)
    }
}

/// Executors report what the system said as an internal error, and not of what:
/// those words are part of the protocol (WIRE.md, section 6.2), stock executors use
/// no others, and we know what we asked for. The directory is looked at after the
/// failure only, which neither slows down what works nor races with it.
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

/// Why nothing can run in this directory, if that is so and the executor says it.
async fn directory_error(session: &Session, path: &str) -> Option<String> {
    match Files::new(session).metadata(path).await {
        Ok(metadata) if metadata.is_directory => None,
        Ok(_) => Some("not a directory".to_owned()),
        Err(FileError::NotFound(_)) => Some("no such directory".to_owned()),
        Err(FileError::Refused(error)) if error.code == code::INTERNAL => Some(error.message),
        Err(_) => None,
    }
}

/// A new process id.
pub(crate) fn random_id() -> Result<String, ProcessError> {
    let bytes = random().map_err(|_| ProcessError::NoRandomness)?;
    Ok(StreamId::from_random(bytes).as_str().to_owned())
}
