//! Puts the events of one process in order, without repetitions, and marks where
//! events are missing.
//!
//! Nothing waits in this module. It decides which events are due, and
//! [`event_dispatcher`](crate::event_dispatcher) sends them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::rpc::process::{ReadReply, Stream};
use tokio::sync::{Notify, mpsc};

/// The number of events that are held because an earlier one has not arrived. A
/// stock executor occasionally swaps neighbouring events. More held events mean
/// that one is lost.
pub(crate) const REORDER_EVENTS_MAX: usize = 64;

/// The number of events that are held while missed ones are read and replayed: a
/// few megabytes at most, since the executors in question send chunks of 8 KiB.
pub(crate) const CATCH_UP_EVENTS_MAX: usize = 1024;

/// An event of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Output(Stream, Bytes),
    Exited(i32),
    Closed,
    /// Events are missing before the next one: they never arrived.
    Gap,
    /// This many events are missing here, because the executor kept only the
    /// newest output while no stream was attached.
    Missed(u64),
}

/// The state of one process's events.
pub(crate) struct EventSequencer {
    pub(crate) reader: mpsc::Sender<Event>,
    /// The sequence number of the next event. They start at 1 and have no gaps
    /// (docs/codex-wire.md#processes).
    pub(crate) next_seq: u64,
    held: BTreeMap<u64, Event>,
    pub(crate) delivery: Delivery,
    /// Events below this number that are not held are lost: the executor has
    /// evicted them.
    evicted_below: u64,
    /// Wakes senders that wait because the held events have reached their limit.
    pub(crate) room: Arc<Notify>,
    /// Whether a task is catching up. Only that task sends events until it is
    /// done; a second sender would break their order.
    pub(crate) catch_up_running: bool,
    /// The number of the stream on which the executor confirmed the start.
    pub(crate) started_on: Option<u64>,
    /// The number of the last stream on which the executor did not know the
    /// process.
    pub(crate) unknown_on: Option<u64>,
}

/// How arriving events are delivered.
///
/// ```text
/// Live ──the stream ends──► AwaitingRead ──the reply──► Replaying ──► Live
///                               ▲                           │
///                               ├──the stream ends──────────┤
///                               └──the reply is incomplete──┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Events go to the reader and wait for it.
    Live,
    /// The missed events are being read from the executor. The reply comes behind
    /// arriving events, so these must not wait: they are held, and beyond the
    /// limit dropped. After a drop, or if another stream has ended meanwhile, the
    /// reply is incomplete and the read must `repeat`.
    AwaitingRead { repeat: bool },
    /// The missed events are being sent to the reader. Arriving events are held
    /// behind them, and wait beyond the limit.
    Replaying,
}

impl EventSequencer {
    pub(crate) fn new(reader: mpsc::Sender<Event>) -> Self {
        let (held, room) = (BTreeMap::new(), Arc::default());
        let delivery = Delivery::Live;
        let (catch_up_running, started_on, unknown_on) = (false, None, None);
        Self {
            reader,
            next_seq: 1,
            held,
            delivery,
            evicted_below: 1,
            room,
            catch_up_running,
            started_on,
            unknown_on,
        }
    }

    /// Whether the executor once knew the process and no longer does.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.started_on.zip(self.unknown_on).is_some_and(|(started, unknown)| started < unknown)
    }

    /// Adds an event. Returns the events that are due, or gives the event back if
    /// it has to wait for room.
    pub(crate) fn push(&mut self, seq: u64, event: Event) -> Result<Vec<Event>, Event> {
        if seq < self.next_seq {
            return Ok(Vec::new()); // already delivered
        }
        let full = self.held.len() >= CATCH_UP_EVENTS_MAX;
        match &mut self.delivery {
            Delivery::AwaitingRead { repeat } if full => {
                *repeat = true;
                return Ok(Vec::new());
            }
            Delivery::Replaying if full && seq > self.next_seq => return Err(event),
            Delivery::Live | Delivery::AwaitingRead { .. } | Delivery::Replaying => {}
        }
        self.held.insert(seq, event);
        if self.delivery != Delivery::Live {
            return Ok(Vec::new());
        }
        let mut due = Vec::new();
        if self.held.len() > REORDER_EVENTS_MAX
            && let Some((&first, _)) = self.held.first_key_value()
        {
            due.push(Event::Gap);
            self.next_seq = first;
        }
        due.extend(self.pop_ready());
        Ok(due)
    }

    /// Removes and returns the events that are due.
    pub(crate) fn pop_ready(&mut self) -> Vec<Event> {
        let mut due = Vec::new();
        loop {
            if let Some(event) = self.held.remove(&self.next_seq) {
                self.next_seq = self.next_seq.saturating_add(1);
                due.push(event);
            } else if self.next_seq < self.evicted_below {
                let first = self.held.keys().next().copied().unwrap_or(u64::MAX);
                let first = first.min(self.evicted_below);
                due.push(Event::Missed(first - self.next_seq));
                self.next_seq = first;
            } else {
                return due;
            }
        }
    }

    /// Adds all events that the executor has kept from `next_seq` on.
    pub(crate) fn merge(&mut self, reply: ReadReply) {
        let end = reply.next_seq;
        let last = reply.closed.then(|| end.saturating_sub(1));
        let mut read: BTreeMap<u64, Event> = reply
            .chunks
            .into_iter()
            .map(|chunk| (chunk.seq, Event::Output(chunk.stream, chunk.chunk)))
            .collect();
        if let Some(last) = last {
            read.insert(last, Event::Closed);
        }
        // The executor evicts the oldest output first. So a number that is missing
        // after the first chunk is that of the exit, which a reply does not contain.
        let first = read.keys().next().copied().unwrap_or(end);
        let hole = (first..end).find(|seq| !read.contains_key(seq));
        if let (true, Some(code)) = (reply.exited, reply.exit_code) {
            match hole {
                Some(seq) => drop(read.insert(seq, Event::Exited(code))),
                // It was delivered before, or its number is among the evicted ones.
                None if first > self.next_seq => drop(read.insert(first - 1, Event::Exited(code))),
                None => {}
            }
        }
        for (seq, event) in read {
            if seq >= self.next_seq {
                self.held.entry(seq).or_insert(event);
            }
        }
        self.evicted_below = first;
        if self.delivery == (Delivery::AwaitingRead { repeat: false }) {
            self.delivery = Delivery::Replaying;
        }
    }

    /// Ends the replay when all held events are sent, unless the read repeats.
    pub(crate) fn finish_replay(&mut self) {
        if self.delivery == Delivery::Replaying {
            self.delivery = Delivery::Live;
        }
    }
}

impl Drop for EventSequencer {
    fn drop(&mut self) {
        self.room.notify_waiters();
    }
}

/// The reply to a read if no events exist from this number on.
pub(crate) fn empty_read(next_seq: u64) -> ReadReply {
    ReadReply {
        chunks: Vec::new(),
        next_seq,
        exited: false,
        exit_code: None,
        closed: false,
        failure: None,
        sandbox_denied: false,
    }
}
