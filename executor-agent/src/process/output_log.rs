//! What happened to one process, numbered: the truth that notifications and
//! `process/read` are views of.
//!
//! ```text
//!        kept chunks                    cursor = last pushed
//!  ┌──────────────────────┐                  │
//!  4  5  6  7  8  9  (10 exit)  11  12  13  (14 closed)
//!  └ evicted below ─┘           └─ unpushed ────────┘
//! ```
//!
//! Invariants:
//! 1. Numbers start at 1 and have no hole over output, exit and close; the
//!    close is last.
//! 2. At most its capacity is kept, oldest out first, but while a peer is
//!    attached nothing is evicted before it was pushed.
//! 3. So that 2 cannot grow without bound, [`OutputLog::read_size`] is `None` when
//!    that many bytes wait for an attached peer; whoever reads the child's
//!    pipes then stops. A detached log always has room.
//!
//! Pure: no clock, no I/O.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::limits;
use rendez_proto::rpc::process::{self, ReadReply, Stream};

use super::output_budget::{OutputBudget, PROCESS_OUTPUT_MIN_BYTES};

/// Output kept per process, the newest, also of finished ones that linger; and
/// what may wait for an attached peer before the process is held. 1 MiB in the
/// stock executor (docs/codex-wire.md#processes).
pub const PROCESS_OUTPUT_RETAINED_BYTES: usize = 1024 * 1024;

const _: () = assert!(PROCESS_OUTPUT_MIN_BYTES < PROCESS_OUTPUT_RETAINED_BYTES);

/// What one kept chunk costs besides its bytes; charged, so that a child that
/// writes single bytes cannot hold a hundred times the capacity.
const CHUNK_OVERHEAD_BYTES: usize = 128;

/// One process's events.
#[derive(Debug)]
pub(super) struct OutputLog {
    /// What it may keep while all logs together keep little.
    own_limit: usize,
    budget: Arc<OutputBudget>,
    next_seq: u64,
    chunks: VecDeque<LoggedChunk>,
    kept_bytes: usize,
    exit: Option<(u64, i32)>,
    closed: Option<u64>,
    peer: Option<AttachedPeer>,
    /// What the last peer took at once.
    chunk_bytes: usize,
}

/// An attached peer's place in the log.
#[derive(Debug)]
struct AttachedPeer {
    /// The last number that was pushed.
    cursor: u64,
    /// Charged bytes of the chunks above it.
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

/// One entry, to be pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ProcessEvent {
    /// Output appeared.
    Output {
        /// Its number.
        seq: u64,
        /// Where.
        stream: Stream,
        /// What.
        bytes: Bytes,
    },
    /// The process ended.
    Exited {
        /// Its number.
        seq: u64,
        /// The exit code.
        code: i32,
    },
    /// Nothing follows.
    Closed {
        /// Its number.
        seq: u64,
    },
}

impl OutputLog {
    /// An empty log that keeps `own_limit` bytes, or less while all logs of
    /// `budget` keep much, without a peer.
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

    /// Appends the exit; a second one is ignored.
    pub(super) fn append_exit(&mut self, code: i32) {
        if self.exit.is_none() {
            self.exit = Some((self.take_seq(), code));
        }
    }

    /// Appends the close; a second one is ignored.
    pub(super) fn append_close(&mut self) {
        if self.closed.is_none() {
            self.closed = Some(self.take_seq());
        }
    }

    /// Whether the process ended.
    pub(super) fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    /// Whether the log is complete.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// The last number in use; 0 if there is none.
    pub(super) fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// How many bytes of the child's pipes should be read at once; `None` if
    /// none (invariant 3).
    pub(super) fn read_size(&self) -> Option<usize> {
        let capacity = self.capacity();
        let full = self.peer.as_ref().is_some_and(|peer| peer.unpushed_bytes >= capacity);
        (!full).then_some(self.chunk_bytes)
    }

    /// A peer attached that takes chunks of `chunk_bytes`: events from here on
    /// are pushed to it; earlier ones it reads.
    pub(super) fn attach(&mut self, chunk_bytes: usize) {
        self.chunk_bytes = chunk_bytes;
        self.peer = Some(AttachedPeer { cursor: self.last_seq(), unpushed_bytes: 0 });
    }

    /// The peer went.
    pub(super) fn detach(&mut self) {
        self.peer = None;
        self.evict();
    }

    /// The next event for the attached peer, which is from then on pushed.
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

    /// Whether nothing waits to be pushed.
    pub(super) fn is_fully_pushed(&self) -> bool {
        self.peer.as_ref().is_none_or(|peer| peer.cursor == self.last_seq())
    }

    /// The kept output above `after`: at least one chunk if there is any, and
    /// not more than `max_bytes` if it is more than one (WIRE.md, section 6.2).
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
        assert!(log.read_size().is_none(), "more than the capacity waits");
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
        // what an attached peer has not got yet is never evicted
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
