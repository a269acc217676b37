//! The events of one process on their way to its reader: in order, once, and with
//! what was missed told where it is missing.
//!
//! Nothing waits here: this says whose turn it is, and [`events`](crate::event_dispatcher)
//! passes them on.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::rpc::process::{ReadReply, Stream};
use tokio::sync::{Notify, mpsc};

/// EventDispatcher that are held because one before them has not arrived. A stock
/// executor sends neighbours in either order now and then; more than a few
/// means that one is lost.
pub(crate) const REORDER_EVENTS_MAX: usize = 64;

/// EventDispatcher that are held while what was missed is read and passed on: a few
/// megabytes at most, since the executors in question send chunks of 8 KiB.
pub(crate) const CATCH_UP_EVENTS_MAX: usize = 1024;

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Output(Stream, Bytes),
    Exited(i32),
    Closed,
    /// EventDispatcher are missing before this one.
    Gap,
    /// So many events are missing before the next one, because the executor
    /// kept only the newest output while nobody was attached.
    Missed(u64),
}

/// The events of one process.
pub(crate) struct EventSequencer {
    pub(crate) reader: mpsc::Sender<Event>,
    /// The number of the next event (WIRE.md, section 6.2: from 1, no holes).
    pub(crate) next_seq: u64,
    held: BTreeMap<u64, Event>,
    pub(crate) delivery: Delivery,
    /// EventDispatcher below this number that are not held are gone at the executor, too.
    evicted_below: u64,
    /// Wakes who waits because too much is held.
    pub(crate) room: Arc<Notify>,
    /// Somebody catches up with it, and until that is done passes events on. No
    /// second one may: they would come in any order.
    pub(crate) catch_up_running: bool,
    /// The number of the stream on which its start was answered.
    pub(crate) started_on: Option<u64>,
    /// That of the last one on which the executor was asked for it before that
    /// answer, and did not know it.
    pub(crate) unknown_on: Option<u64>,
}

/// ```text
/// Live ──the stream ended──► AwaitingRead ──the answer──► Replaying ──► Live
///                               ▲                       │
///                               ├──the stream ended─────┤
///                               └──the answer was old───┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// EventDispatcher go to the reader, and wait for it.
    Live,
    /// What was missed is asked for. The answer comes behind what arrives, so
    /// that must not wait: it is held, and what is too much is dropped. Then, or
    /// if another stream ended meanwhile, the answer is not all, and is asked for
    /// `again`.
    AwaitingRead { repeat: bool },
    /// What was missed is passed on. What arrives is held behind it, and waits
    /// if it is too much.
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

    /// Whether the executor knew it once and does not any more.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.started_on.zip(self.unknown_on).is_some_and(|(started, unknown)| started < unknown)
    }

    /// Takes an event in; returns those whose turn has come, or gives the event
    /// back to come again when there is room.
    pub(crate) fn push(&mut self, seq: u64, event: Event) -> Result<Vec<Event>, Event> {
        if seq < self.next_seq {
            return Ok(Vec::new()); // a repetition
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

    /// The events whose turn has come.
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

    /// Takes in all that the executor has kept from `next` on.
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
        // Output is evicted from the front; so a number that is missing behind
        // the first chunk is that of the exit, which a reply does not tell.
        let first = read.keys().next().copied().unwrap_or(end);
        let hole = (first..end).find(|seq| !read.contains_key(seq));
        if let (true, Some(code)) = (reply.exited, reply.exit_code) {
            match hole {
                Some(seq) => drop(read.insert(seq, Event::Exited(code))),
                // Told before, or among what is gone.
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

    /// All that was held is passed on: that is all, unless it is asked for again.
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

/// The answer of an executor at which nothing happened from this number on.
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
