//! The standard input of a process.
//!
//! ```text
//!            ──sent──► in flight ──answered──► done
//!  waiting ◄──────────────┘ its stream ended, and the session goes on
//! ```
//!
//! Where a session outlives its streams, a write is in one of both queues until
//! it is answered, and between them nothing is awaited: whoever gives up waiting
//! leaves every write where it is, and in order.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use rendez_proto::limits;
use rendez_proto::rpc::process::{CloseStdin, ProcessId, Write, WriteReply, WriteStatus};
use rendez_rpc::CallError;

use crate::error::ProcessError;
use crate::session::Session;

/// Writes under way at once: hides a round trip, within what an executor takes
/// for a process that does not read.
const WRITES_IN_FLIGHT: usize = limits::WRITES_UNANSWERED_PER_PROCESS - 2;

/// Bytes of standard input per write, of which so many may be under way that
/// they fill the window.
const fn write_bytes(window: usize) -> usize {
    let bytes = window / limits::WRITES_UNANSWERED_PER_PROCESS;
    if bytes == 0 { 1 } else { bytes }
}

/// The most bytes that [`Stdin::write_all`] sends as one message: reads of that
/// size make best use of a long path.
pub const STDIN_WRITE_MAX_BYTES: usize = write_bytes(limits::STDIN_WINDOW_MAX_BYTES);

/// The standard input of a process.
///
/// Dropping it tells the process nothing: one that reads to the end of its input
/// goes on waiting. [`close`](Self::close) tells it, and so do
/// [`Process::wait`](crate::Process::wait) and
/// [`Process::output`](crate::Process::output) of an input that was not taken out.
pub struct Stdin {
    session: Arc<Session>,
    id: ProcessId,
    /// The most bytes of one write.
    write_bytes: usize,
    next_write: u64,
    /// To be sent, first ones first. At most [`WRITES_IN_FLIGHT`] that another
    /// stream took down with it, and one behind them.
    pending: VecDeque<Write>,
    in_flight: VecDeque<InFlight>,
    /// The stream that has those.
    epoch: u64,
}

/// A write without an answer.
struct InFlight {
    /// To be sent again, where a session outlives its stream.
    write: Option<Write>,
    /// Awaited where it is; what it says comes once, and then it goes.
    reply: Pin<Box<dyn Future<Output = Result<WriteReply, CallError>> + Send + Sync>>,
}

impl Stdin {
    pub(crate) fn new(session: Arc<Session>, id: ProcessId) -> Self {
        Self {
            session,
            id,
            write_bytes: write_bytes(limits::STDIN_QUEUED_BYTES),
            next_write: 0,
            pending: VecDeque::new(),
            in_flight: VecDeque::new(),
            epoch: 0,
        }
    }

    /// The executor takes so many bytes for a process that does not read.
    pub(crate) fn set_window(&mut self, window: u64) {
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        self.write_bytes = write_bytes(window.min(limits::STDIN_WINDOW_MAX_BYTES));
    }

    /// Writes all of `bytes`; returns when they are on their way, with a
    /// bounded number not yet accepted by the executor.
    ///
    /// Whoever stops waiting for this cannot tell how many bytes are on their
    /// way: those up to some point are, in order.
    ///
    /// # Errors
    /// [`ProcessError::StdinClosed`] if the process takes no more.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<(), ProcessError> {
        for chunk in bytes.chunks(self.write_bytes) {
            self.send_pending().await?;
            while self.in_flight.len() >= WRITES_IN_FLIGHT {
                self.await_one_reply().await?;
            }
            let write_id = Some(self.next_write_id());
            let chunk = chunk.to_vec();
            self.pending.push_back(Write { process_id: self.id.clone(), chunk, write_id });
            self.send_pending().await?;
        }
        Ok(())
    }

    /// Waits until the executor has taken everything written. May be given up and
    /// called again.
    ///
    /// # Errors
    /// See [`write_all`](Self::write_all).
    pub async fn flush(&mut self) -> Result<(), ProcessError> {
        self.send_pending().await?;
        while !self.in_flight.is_empty() {
            self.await_one_reply().await?;
        }
        Ok(())
    }

    /// Tells the process that its input has ended, behind all that was written.
    ///
    /// # Errors
    /// [`ProcessError::Unsupported`] for a stock executor: its protocol has no
    /// word for it, and the process goes on waiting.
    pub async fn close(mut self) -> Result<(), ProcessError> {
        self.flush().await?;
        if !self.session.extensions.close_stdin {
            return Err(ProcessError::Unsupported("closing standard input"));
        }
        let write_id = Some(self.next_write_id());
        let close = CloseStdin { process_id: self.id.clone(), write_id };
        loop {
            match self.session.call::<CloseStdin>(&close).await {
                // What is closed twice is closed.
                Err(CallError::Interrupted) if self.session.is_resumable() => {}
                answer => return check_status(answer?),
            }
        }
    }

    /// Sends what waits, behind what another stream took down with it.
    async fn send_pending(&mut self) -> Result<(), ProcessError> {
        while !self.pending.is_empty() {
            let stream = self.session.stream().await?;
            if stream.epoch != self.epoch {
                self.epoch = stream.epoch;
                self.requeue_unanswered();
            }
            let Some(write) = self.pending.front() else { break };
            let resumable = self.session.is_resumable();
            match stream.caller.request::<Write>(write).await {
                Err(CallError::NotSent) if resumable => {
                    self.session.stream_after(&stream).await?;
                }
                Err(error) => return Err(error.into()),
                Ok(answer) => {
                    let write = self.pending.pop_front().filter(|_| resumable);
                    let answer = Box::pin(answer.wait());
                    self.in_flight.push_back(InFlight { write, reply: answer });
                }
            }
        }
        Ok(())
    }

    async fn await_one_reply(&mut self) -> Result<(), ProcessError> {
        let Some(first) = self.in_flight.front_mut() else { return Ok(()) };
        let answer = first.reply.as_mut().await;
        if matches!(answer, Err(CallError::Interrupted)) && first.write.is_some() {
            self.requeue_unanswered();
            return self.send_pending().await;
        }
        self.in_flight.pop_front();
        check_status(answer?)
    }

    /// What is in flight on a stream that ended waits for the next one.
    fn requeue_unanswered(&mut self) {
        while let Some(last) = self.in_flight.pop_back() {
            if let Some(write) = last.write {
                self.pending.push_front(write);
            }
        }
    }

    /// The executor applies a write id once, so a repeated write is safe.
    fn next_write_id(&mut self) -> String {
        self.next_write += 1;
        self.next_write.to_string()
    }
}

fn check_status(reply: WriteReply) -> Result<(), ProcessError> {
    match reply.status {
        WriteStatus::Accepted => Ok(()),
        WriteStatus::StdinClosed | WriteStatus::UnknownProcess => Err(ProcessError::StdinClosed),
        WriteStatus::Starting => {
            Err(ProcessError::Malformed("a started process is said to be starting".to_owned()))
        }
    }
}
