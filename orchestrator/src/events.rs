//! Brings notifications to their processes, in order and once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rendez_proto::rpc::Notification;
use rendez_proto::rpc::process::{ClosedNotification, Exited, Output, ProcessId, Stream};
use rendez_rpc::Notified;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

/// Events of one process that wait for its reader. Chunks have at most 8 KiB,
/// so about 2 MiB; then the stream waits, and in the end the process.
const EVENTS_WAITING: usize = 256;

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Output(Stream, Vec<u8>),
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
}

impl Events {
    /// Starts to collect the events of a process, before it is started.
    pub(crate) fn subscribe(&self, id: ProcessId) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(EVENTS_WAITING);
        let mut state = self.lock();
        if !state.closed {
            state.processes.insert(id, Feed { events, next: 1 });
        }
        receiver
    }

    pub(crate) fn unsubscribe(&self, id: &ProcessId) {
        self.lock().processes.remove(id);
    }

    async fn deliver(&self, id: &ProcessId, seq: u64, event: Event) {
        let (events, gap) = {
            let mut state = self.lock();
            let Some(feed) = state.processes.get_mut(id) else { return };
            if seq < feed.next {
                return; // a repetition
            }
            let gap = seq > feed.next;
            feed.next = seq.saturating_add(1);
            (feed.events.clone(), gap)
        };
        if gap {
            let _ = events.send(Event::Gap).await;
        }
        // A reader that is gone does not want it.
        let _ = events.send(event).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notified for Events {
    async fn notified(&self, method: String, params: Value) {
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
                    self.unsubscribe(&closed.process_id);
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

fn parse<N: Notification + DeserializeOwned>(params: Value) -> Option<N> {
    // The parser's words may quote what the peer sent: not for a log.
    serde_json::from_value(params)
        .inspect_err(|_| tracing::warn!(notification = N::NAME, "does not parse"))
        .ok()
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
        events.notified(Output::NAME.into(), params).await;
    }

    #[tokio::test]
    async fn repetitions_are_dropped_and_gaps_are_told() {
        let events = Events::default();
        let mut feed = events.subscribe(id());
        for seq in [1, 1, 2, 5] {
            output(&events, seq).await;
        }
        let got: Vec<_> = std::iter::from_fn(|| feed.try_recv().ok()).collect();
        let chunk = Event::Output(Stream::Stdout, b"a".to_vec());
        assert_eq!(got, [chunk.clone(), chunk.clone(), Event::Gap, chunk]);
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
        events.notified("later/feature".into(), json!({})).await;
        events.notified(Output::NAME.into(), json!({"seq": "x"})).await;
        let other = json!({"processId": "q", "seq": 1});
        events.notified(ClosedNotification::NAME.into(), other).await;
        assert!(feed.try_recv().is_err());
    }
}
