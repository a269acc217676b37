//! The numbered events of one process. Notifications and `process/read` are views
//! of this log.
//!
//! ```text
//!        kept chunks                    cursor = last pushed
//!  ┌──────────────────────┐                  │
//!  4  5  6  7  8  9  (10 exit)  11  12  13  (14 closed)
//!  └ evicted below ─┘           └─ unpushed ────────┘
//! ```
//!
//! Invariants:
//! 1. Sequence numbers start at 1 and have no gap over output, exit and close. The
//!    close is last.
//! 2. The log keeps output up to its capacity and evicts the oldest first, but not
//!    before it was pushed to an attached peer.
//! 3. [`OutputLog::read_size`] bounds the exception of 2: it is `None` while the
//!    unpushed output exceeds the capacity, and the child's output is then not read.
//!    A detached log always has room.
//!
//! Pure: no clock, no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::limits;
use rendez_proto::rpc::process::{self, ReadReply, Stream};

use super::output_budget::{OutputBudget, PROCESS_OUTPUT_MIN_BYTES};

/// Output that is kept per process, the newest, also after its exit. With an
/// attached peer, the unpushed output at which the process is paused. 1 MiB, as in
/// the stock executor (docs/codex-wire.md#processes).
pub const PROCESS_OUTPUT_RETAINED_BYTES: usize = 1024 * 1024;

const _: () = assert!(PROCESS_OUTPUT_MIN_BYTES < PROCESS_OUTPUT_RETAINED_BYTES);

/// The charge for a chunk besides its bytes. Without it, a child that writes single
/// bytes could hold a hundred times the capacity.
const CHUNK_OVERHEAD_BYTES: usize = 128;

/// The events of one process.
#[derive(Debug)]
pub(super) struct OutputLog {
    /// The capacity while the budget has room.
    own_limit: usize,
    budget: Arc<OutputBudget>,
    next_seq: u64,
    chunks: VecDeque<LoggedChunk>,
    kept_bytes: usize,
    exit: Option<(u64, i32)>,
    closed: Option<u64>,
    peer: Option<AttachedPeer>,
    /// The largest chunk that the last peer accepts.
    chunk_bytes: usize,
}

/// The position of an attached peer in the log.
#[derive(Debug)]
struct AttachedPeer {
    /// The last number that was pushed.
    cursor: u64,
    /// Charged bytes of the chunks above the cursor.
    unpushed_bytes: usize,
}

#[derive(Debug, Clone)]
struct LoggedChunk {
    seq: u64,
    stream: Stream,
    bytes: Bytes,
}

impl LoggedChunk {
    fn charge(&self) -> usize {
        self.bytes.len() + CHUNK_OVERHEAD_BYTES
    }
}

/// An event to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProcessEvent {
    /// The process wrote output.
    Output {
        /// Its sequence number.
        seq: u64,
        /// The output stream.
        stream: Stream,
        /// The output.
        bytes: Bytes,
    },
    /// The process exited.
    Exited {
        /// Its sequence number.
        seq: u64,
        /// The exit code.
        code: i32,
    },
    /// The last event.
    Closed {
        /// Its sequence number.
        seq: u64,
    },
}

impl OutputLog {
    /// An empty log without a peer. It keeps `own_limit` bytes, or less while
    /// `budget` is short.
    pub(super) fn new(own_limit: usize, budget: Arc<OutputBudget>) -> Self {
        Self {
            own_limit,
            budget,
            next_seq: 1,
            chunks: VecDeque::new(),
            kept_bytes: 0,
            exit: None,
            closed: None,
            peer: None,
            chunk_bytes: limits::PROCESS_CHUNK_MAX_BYTES,
        }
    }

    /// Appends output.
    pub(super) fn append_output(&mut self, stream: Stream, bytes: Bytes) {
        let chunk = LoggedChunk { seq: self.take_seq(), stream, bytes };
        self.kept_bytes += chunk.charge();
        self.budget.add(chunk.charge());
        if let Some(peer) = &mut self.peer {
            peer.unpushed_bytes += chunk.charge();
        }
        self.chunks.push_back(chunk);
        self.evict();
    }

    /// Appends the exit; ignores a second one.
    pub(super) fn append_exit(&mut self, code: i32) {
        if self.exit.is_none() {
            self.exit = Some((self.take_seq(), code));
        }
    }

    /// Appends the close; ignores a second one.
    pub(super) fn append_close(&mut self) {
        if self.closed.is_none() {
            self.closed = Some(self.take_seq());
        }
    }

    /// Whether the process has exited.
    pub(super) fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    /// Whether the log is complete.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// The last sequence number; 0 for an empty log.
    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// The most bytes to read from the child at once; `None` while its output must
    /// not be read (invariant 3).
    pub(super) fn read_size(&self) -> Option<usize> {
        let capacity = self.capacity();
        let full = self.peer.as_ref().is_some_and(|peer| peer.unpushed_bytes >= capacity);
        (!full).then_some(self.chunk_bytes)
    }

    /// Attaches a peer that accepts chunks of `chunk_bytes`. Later events are pushed
    /// to it; it can read earlier ones.
    pub(super) fn attach(&mut self, chunk_bytes: usize) {
        self.chunk_bytes = chunk_bytes;
        self.peer = Some(AttachedPeer { cursor: self.last_seq(), unpushed_bytes: 0 });
    }

    /// Detaches the peer.
    pub(super) fn detach(&mut self) {
        self.peer = None;
        self.evict();
    }

    /// Returns the next event for the attached peer and counts it as pushed.
    pub(super) fn next_push(&mut self) -> Option<ProcessEvent> {
        let peer = self.peer.as_mut()?;
        let seq = peer.cursor + 1;
        let event = if let Some((exit, code)) = self.exit
            && exit == seq
        {
            ProcessEvent::Exited { seq, code }
        } else if self.closed == Some(seq) {
            ProcessEvent::Closed { seq }
        } else {
            let at = self.chunks.binary_search_by_key(&seq, |chunk| chunk.seq).ok()?;
            let chunk = &self.chunks[at];
            peer.unpushed_bytes -= chunk.charge();
            ProcessEvent::Output { seq, stream: chunk.stream, bytes: chunk.bytes.clone() }
        };
        peer.cursor = seq;
        self.evict();
        Some(event)
    }

    /// Whether no event waits to be pushed.
    pub(super) fn is_fully_pushed(&self) -> bool {
        self.peer.as_ref().is_none_or(|peer| peer.cursor == self.last_seq())
    }

    /// The kept output above `after`: at most `max_bytes`, but at least one chunk if
    /// there is one (docs/codex-wire.md#processes).
    pub(super) fn read(&self, after: u64, max_bytes: u64) -> ReadReply {
        let from = self.chunks.partition_point(|chunk| chunk.seq <= after);
        let mut chunks: Vec<process::Chunk> = Vec::new();
        let mut room = max_bytes;
        let mut next_seq = self.next_seq;
        for chunk in self.chunks.range(from..) {
            let len = chunk.bytes.len() as u64;
            if let Some(last) = chunks.last()
                && len > room
            {
                next_seq = last.seq + 1;
                break;
            }
            room = room.saturating_sub(len);
            chunks.push(process::Chunk {
                seq: chunk.seq,
                stream: chunk.stream,
                chunk: chunk.bytes.clone(),
            });
        }
        ReadReply {
            chunks,
            next_seq,
            exited: self.exit.is_some(),
            exit_code: self.exit.map(|(_, code)| code),
            closed: self.closed.is_some(),
            failure: None,
            sandbox_denied: false,
        }
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    fn capacity(&self) -> usize {
        self.budget.capacity(self.own_limit)
    }

    fn evict(&mut self) {
        while self.kept_bytes > self.capacity()
            && let Some(oldest) = self.chunks.front()
            && self.peer.as_ref().is_none_or(|peer| oldest.seq <= peer.cursor)
        {
            self.kept_bytes -= oldest.charge();
            self.budget.sub(oldest.charge());
            self.chunks.pop_front();
        }
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        self.budget.sub(self.kept_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 10;

    /// A log that keeps `chunks` chunks of 10 bytes.
    fn log(chunks: usize) -> OutputLog {
        OutputLog::new(chunks * (10 + CHUNK_OVERHEAD_BYTES), Arc::default())
    }

    fn put(log: &mut OutputLog, count: usize) {
        (0..count)
            .for_each(|_| log.append_output(Stream::Stdout, Bytes::from_static(b"0123456789")));
    }

    fn seqs(reply: &ReadReply) -> Vec<u64> {
        reply.chunks.iter().map(|chunk| chunk.seq).collect()
    }

    fn pushed(log: &mut OutputLog) -> Vec<u64> {
        std::iter::from_fn(|| log.next_push())
            .map(|event| match event {
                ProcessEvent::Output { seq, .. }
                | ProcessEvent::Exited { seq, .. }
                | ProcessEvent::Closed { seq } => seq,
            })
            .collect()
    }

    #[test]
    fn sequence_numbers_have_no_gap() {
        let mut log = log(10);
        log.attach(CHUNK);
        put(&mut log, 2);
        log.append_exit(7);
        put(&mut log, 1);
        log.append_close();
        assert_eq!(log.last_seq(), 5);
        assert_eq!(pushed(&mut log), [1, 2, 3, 4, 5]);
        let reply = log.read(0, u64::MAX);
        assert_eq!(seqs(&reply), [1, 2, 4]);
        assert_eq!((reply.next_seq, reply.exit_code, reply.closed), (6, Some(7), true));
    }

    #[test]
    fn exit_and_close_are_logged_once() {
        let mut log = log(1);
        log.append_exit(1);
        log.append_exit(2);
        log.append_close();
        log.append_close();
        assert_eq!((log.last_seq(), log.read(0, 0).exit_code), (2, Some(1)));
    }

    #[test]
    fn read_returns_at_least_one_chunk() {
        let mut log = log(10);
        put(&mut log, 3);
        let reply = log.read(0, 20);
        assert_eq!((seqs(&reply), reply.next_seq), (vec![1, 2], 3));
        let reply = log.read(2, 1);
        assert_eq!((seqs(&reply), reply.next_seq), (vec![3], 4));
        let reply = log.read(3, u64::MAX);
        assert_eq!((seqs(&reply), reply.next_seq), (vec![], 4));
        let reply = log.read(u64::MAX, 0);
        assert_eq!((seqs(&reply), reply.next_seq), (vec![], 4));
    }

    #[test]
    fn detached_log_keeps_newest_output() {
        let mut log = log(3);
        put(&mut log, 10);
        assert!(log.read_size().is_some());
        assert_eq!(seqs(&log.read(0, u64::MAX)), [8, 9, 10]);
    }

    #[test]
    fn unpushed_output_is_not_evicted() {
        let mut log = log(3);
        log.attach(CHUNK);
        put(&mut log, 2);
        assert!(log.read_size().is_some());
        put(&mut log, 3);
        assert!(log.read_size().is_none(), "more than the capacity is unpushed");
        assert!(!log.is_fully_pushed());
        assert_eq!(pushed(&mut log), [1, 2, 3, 4, 5]);
        assert!(log.is_fully_pushed());
        assert!(log.read_size().is_some());
        assert_eq!(seqs(&log.read(0, u64::MAX)), [3, 4, 5]);
    }

    #[test]
    fn reattached_peer_gets_only_new_events() {
        let mut log = log(3);
        log.attach(CHUNK);
        put(&mut log, 5);
        log.detach();
        assert!(log.read_size().is_some() && log.is_fully_pushed());
        assert_eq!(pushed(&mut log), [] as [u64; 0]);
        assert_eq!(seqs(&log.read(0, u64::MAX)), [3, 4, 5]);
        log.attach(CHUNK);
        put(&mut log, 1);
        log.append_close();
        assert_eq!(pushed(&mut log), [6, 7]);
    }

    #[test]
    fn chunk_size_follows_the_last_peer() {
        let mut log = log(3);
        assert_eq!(log.read_size(), Some(limits::PROCESS_CHUNK_MAX_BYTES));
        log.attach(CHUNK);
        assert_eq!(log.read_size(), Some(CHUNK));
        put(&mut log, 3);
        assert_eq!(log.read_size(), None);
        log.detach();
        assert_eq!(log.read_size(), Some(CHUNK));
    }

    #[test]
    fn many_logs_share_the_output_budget() {
        const MOST: usize = PROCESS_OUTPUT_RETAINED_BYTES;
        let budget = Arc::new(OutputBudget::new(4 * MOST));
        let mut logs: Vec<_> = (0..20).map(|_| OutputLog::new(MOST, budget.clone())).collect();
        let chunk = Bytes::from(vec![0; limits::PROCESS_CHUNK_MAX_BYTES]);
        for log in &mut logs {
            (0..300).for_each(|_| log.append_output(Stream::Stdout, chunk.clone()));
        }
        let kept: Vec<usize> = logs.iter().map(|log| log.kept_bytes).collect();
        let total = kept.iter().sum::<usize>();
        assert!(total <= 4 * MOST + 20 * PROCESS_OUTPUT_MIN_BYTES, "{kept:?}");
        assert!(kept.iter().all(|kept| *kept >= PROCESS_OUTPUT_MIN_BYTES / 2), "{kept:?}");
        // unpushed output is never evicted
        let mut log = OutputLog::new(MOST, budget.clone());
        log.attach(CHUNK);
        while log.read_size().is_some() {
            log.append_output(Stream::Stdout, chunk.clone());
        }
        let waiting = log.kept_bytes;
        assert!(waiting <= PROCESS_OUTPUT_MIN_BYTES + limits::PROCESS_CHUNK_LARGE_MAX_BYTES);
        assert_eq!(pushed(&mut log)[0], 1);
        drop((logs, log));
        assert_eq!(budget.capacity(MOST), MOST);
    }

    #[test]
    fn tiny_chunks_are_charged_for_overhead() {
        let mut log = OutputLog::new(1024, Arc::default());
        (0..1024).for_each(|_| log.append_output(Stream::Stderr, Bytes::from_static(b"x")));
        assert!(log.read(0, u64::MAX).chunks.len() <= 1024 / CHUNK_OVERHEAD_BYTES);
    }
}
