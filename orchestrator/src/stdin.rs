//! The standard input of a process.
//!
//! ```text
//!            ──sent──► in flight ──acknowledged──► done
//!  pending ◄──────────────┘ its stream ended and the session continues
//! ```
//!
//! If the session is resumable, every write is in one of the two queues until it is
//! acknowledged. Nothing is awaited while a write moves between them, so cancelling
//! a call leaves all writes queued and in order.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use rendez_proto::limits;
use rendez_proto::rpc::process::{CloseStdin, ProcessId, Write, WriteReply, WriteStatus};
use rendez_rpc::CallError;

use crate::error::ProcessError;
use crate::session::Session;

/// The number of writes in flight: enough to hide a round trip, and within the
/// number that an executor queues for a process that does not read.
const WRITES_IN_FLIGHT: usize = limits::WRITES_UNANSWERED_PER_PROCESS - 2;

/// The size of one write in bytes, so that the writes in flight fill the window.
const fn write_bytes(window: usize) -> usize {
    let bytes = window / limits::WRITES_UNANSWERED_PER_PROCESS;
    if bytes == 0 { 1 } else { bytes }
}

/// The most bytes that [`Stdin::write_all`] sends in one message. Writing pieces of
/// this size makes best use of a path with a long round trip.
pub const STDIN_WRITE_MAX_BYTES: usize = write_bytes(limits::STDIN_WINDOW_MAX_BYTES);

/// The standard input of a process.
///
/// Dropping it does not close the input: a process that reads to the end of its
/// input continues to wait. [`close`](Self::close) closes it, and so do
/// [`Process::wait`](crate::Process::wait) and
/// [`Process::output`](crate::Process::output) if it was not taken out.
pub struct Stdin {
    session: Arc<Session>,
    id: ProcessId,
    /// The size limit of one write in bytes.
    write_bytes: usize,
    next_write: u64,
    /// Writes to send, oldest first: at most [`WRITES_IN_FLIGHT`] from a stream that
    /// ended, and one new write behind them.
    pending: VecDeque<Write>,
    in_flight: VecDeque<InFlight>,
    /// The number of the stream that carries the writes in flight.
    epoch: u64,
}

/// An unacknowledged write.
struct InFlight {
    /// The write itself, to send it again if the session is resumable.
    write: Option<Write>,
    /// Awaited in place. When it completes, the entry leaves the queue.
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

    /// Sets the number of bytes that the executor queues for a process that does not
    /// read.
    pub(crate) fn set_window(&mut self, window: u64) {
        let window = usize::try_from(window).unwrap_or(usize::MAX);
        self.write_bytes = write_bytes(window.min(limits::STDIN_WINDOW_MAX_BYTES));
    }

    /// Writes all of `bytes`. Returns when they are sent; the executor has not yet
    /// acknowledged a bounded number of them.
    ///
    /// This is not cancellation safe: after a cancelled call, an unknown number of
    /// leading bytes is sent, in order.
    ///
    /// # Errors
    /// [`ProcessError::StdinClosed`] if the process does not accept input.
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

    /// Waits until the executor has acknowledged everything written. This is
    /// cancellation safe.
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

    /// Closes the input after everything that was written.
    ///
    /// # Errors
    /// [`ProcessError::Unsupported`] for a stock executor: its protocol has no such
    /// call, and the process continues to wait for input.
    pub async fn close(mut self) -> Result<(), ProcessError> {
        self.flush().await?;
        if !self.session.extensions.close_stdin {
            return Err(ProcessError::Unsupported("closing standard input"));
        }
        let write_id = Some(self.next_write_id());
        let close = CloseStdin { process_id: self.id.clone(), write_id };
        loop {
            match self.session.call::<CloseStdin>(&close).await {
                // Closing twice is harmless, so the call is repeated.
                Err(CallError::Interrupted) if self.session.is_resumable() => {}
                answer => return check_status(answer?),
            }
        }
    }

    /// Sends the pending writes, after those of a stream that ended.
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

    /// Moves the writes in flight on a stream that ended back to the pending ones.
    fn requeue_unanswered(&mut self) {
        while let Some(last) = self.in_flight.pop_back() {
            if let Some(write) = last.write {
                self.pending.push_front(write);
            }
        }
    }

    /// Returns the next write id. The executor applies each id once, so repeating a
    /// write is safe.
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
            Err(ProcessError::Malformed("it reports a started process as starting".to_owned()))
        }
    }
}
