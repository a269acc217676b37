//! Brings notifications to their processes, in order and once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rendez_proto::rpc::process::{ClosedNotification, Exited, Output, ProcessId, Stream};
use rendez_proto::rpc::{Json, Notification};
use rendez_rpc::Notified;
use tokio::sync::mpsc;

/// Events of one process that wait for its reader. Chunks have at most
/// [`rendez_proto::limits::PROCESS_CHUNK_LARGE_MAX_BYTES`], so 4 MiB; then the stream waits,
/// and in the end the process.
const EVENTS_WAITING: usize = 64;

/// Events that are held because one before them has not arrived. A stock
/// executor sends neighbours in either order now and then; more than a few
/// means that one is lost.
const EVENTS_HELD: usize = 64;

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Output(Stream, Bytes),
    Exited(i32),
    Closed,
    /// Events are missing before this one.
    Gap,
}

/// All processes of one connection.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Bounded by the processes that the application holds.
    processes: HashMap<ProcessId, Feed>,
    closed: bool,
}

struct Feed {
    events: mpsc::Sender<Event>,
    /// The number of the next event (WIRE.md, section 6.2: from 1, no holes).
    next: u64,
    held: BTreeMap<u64, Event>,
}

impl Feed {
    /// Takes an event in; returns those whose turn has come.
    fn arrange(&mut self, seq: u64, event: Event) -> Vec<Event> {
        if seq < self.next {
            return Vec::new(); // a repetition
        }
        self.held.insert(seq, event);
        let mut due = Vec::new();
        if self.held.len() > EVENTS_HELD
            && let Some((&first, _)) = self.held.first_key_value()
        {
            due.push(Event::Gap);
            self.next = first;
        }
        while let Some(event) = self.held.remove(&self.next) {
            self.next = self.next.saturating_add(1);
            due.push(event);
        }
        due
    }
}

impl Events {
    /// Starts to collect the events of a process, before it is started.
    pub(crate) fn subscribe(&self, id: ProcessId) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(EVENTS_WAITING);
        let mut state = self.lock();
        if !state.closed {
            state.processes.insert(id, Feed { events, next: 1, held: BTreeMap::new() });
        }
        receiver
    }

    pub(crate) fn unsubscribe(&self, id: &ProcessId) {
        self.lock().processes.remove(id);
    }

    async fn deliver(&self, id: &ProcessId, seq: u64, event: Event) {
        let (events, due) = {
            let mut state = self.lock();
            let Some(feed) = state.processes.get_mut(id) else { return };
            let due = feed.arrange(seq, event);
            (feed.events.clone(), due)
        };
        for event in due {
            let last = event == Event::Closed;
            // A reader that is gone does not want it.
            let _ = events.send(event).await;
            if last {
                self.unsubscribe(id);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notified for Events {
    async fn notified(&self, method: String, params: Json) {
        match method.as_str() {
            Output::NAME => {
                if let Some(output) = parse::<Output>(params) {
                    let event = Event::Output(output.stream, output.chunk);
                    self.deliver(&output.process_id, output.seq, event).await;
                }
            }
            Exited::NAME => {
                if let Some(exited) = parse::<Exited>(params) {
                    let event = Event::Exited(exited.exit_code);
                    self.deliver(&exited.process_id, exited.seq, event).await;
                }
            }
            ClosedNotification::NAME => {
                if let Some(closed) = parse::<ClosedNotification>(params) {
                    self.deliver(&closed.process_id, closed.seq, Event::Closed).await;
                }
            }
            // Notifications of the future.
            _ => {}
        }
    }

    fn closed(&self) {
        let mut state = self.lock();
        state.closed = true;
        // Dropping the senders tells every reader that nothing follows.
        state.processes.clear();
    }
}

fn parse<N: Notification>(params: Json) -> Option<N> {
    // The parser's words may quote what the peer sent: not for a log.
    params.parse().inspect_err(|_| tracing::warn!(notification = N::NAME, "does not parse")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn id() -> ProcessId {
        ProcessId("p".into())
    }

    async fn output(events: &Events, seq: u64) {
        let params = json!({"processId": "p", "seq": seq, "stream": "stdout", "chunk": "YQ=="});
        events.notified(Output::NAME.into(), Json::of(&params)).await;
    }

    fn got(feed: &mut mpsc::Receiver<Event>) -> Vec<Event> {
        std::iter::from_fn(|| feed.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn events_come_in_order_and_once() {
        let events = Events::default();
        let mut feed = events.subscribe(id());
        let closed = json!({"processId": "p", "seq": 4});
        events.notified(ClosedNotification::NAME.into(), Json::of(&closed)).await;
        let exited = json!({"processId": "p", "seq": 3, "exitCode": 7});
        events.notified(Exited::NAME.into(), Json::of(&exited)).await;
        assert_eq!(got(&mut feed), []);
        for seq in [2, 1, 1, 2] {
            output(&events, seq).await;
        }
        let chunk = Event::Output(Stream::Stdout, Bytes::from_static(b"a"));
        assert_eq!(got(&mut feed), [chunk.clone(), chunk, Event::Exited(7), Event::Closed]);
        events.notified(Exited::NAME.into(), Json::of(&exited)).await;
        assert_eq!(feed.recv().await, None, "the feed is over");
    }

    #[tokio::test]
    async fn an_event_that_never_comes_is_told() {
        let events = Events::default();
        let mut feed = events.subscribe(id());
        for seq in 0..EVENTS_HELD as u64 {
            output(&events, seq + 2).await;
        }
        assert_eq!(got(&mut feed), []);
        // more than may wait for a reader, so it reads meanwhile
        let read = async {
            let mut all = Vec::new();
            while all.len() < EVENTS_HELD + 2 {
                all.extend(feed.recv().await);
            }
            all
        };
        let ((), all) = tokio::join!(output(&events, EVENTS_HELD as u64 + 2), read);
        assert_eq!(all[0], Event::Gap);
        assert_eq!(got(&mut feed), []);
    }

    #[tokio::test]
    async fn a_closed_stream_ends_every_feed() {
        let events = Events::default();
        let mut before = events.subscribe(id());
        output(&events, 1).await;
        events.closed();
        assert!(before.recv().await.is_some(), "what arrived is still delivered");
        assert_eq!(before.recv().await, None);
        assert_eq!(events.subscribe(id()).recv().await, None);
    }

    #[tokio::test]
    async fn strangers_and_nonsense_are_ignored() {
        let events = Events::default();
        let mut feed = events.subscribe(id());
        events.notified("later/feature".into(), Json::empty()).await;
        events.notified(Output::NAME.into(), Json::of(&json!({"seq": "x"}))).await;
        let other = json!({"processId": "q", "seq": 1});
        events.notified(ClosedNotification::NAME.into(), Json::of(&other)).await;
        assert!(feed.try_recv().is_err());
    }
}
