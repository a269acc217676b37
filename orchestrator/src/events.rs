//! Brings notifications to their processes, in order and once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rendez_proto::rpc::process::{
    ClosedNotification, Exited, Output, ProcessId, ReadReply, Stream,
};
use rendez_proto::rpc::{Json, Notification};
use rendez_rpc::Notified;
use tokio::sync::{Notify, mpsc};

/// Events of one process that wait for its reader. Chunks have at most
/// [`rendez_proto::limits::PROCESS_CHUNK_LARGE_MAX_BYTES`], so 4 MiB; then the stream waits,
/// and in the end the process.
const EVENTS_WAITING: usize = 64;

/// Events that are held because one before them has not arrived. A stock
/// executor sends neighbours in either order now and then; more than a few
/// means that one is lost.
const EVENTS_HELD: usize = 64;

/// Events that are held while what was missed is read: a few megabytes at most,
/// since the executors in question send chunks of 8 KiB.
const EVENTS_HELD_MEANWHILE: usize = 1024;

/// Something that happened to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Output(Stream, Bytes),
    Exited(i32),
    Closed,
    /// Events are missing before this one.
    Gap,
    /// So many events are missing before the next one, because the executor
    /// kept only the newest output while nobody was attached.
    Missed(u64),
}

/// All processes of one connection.
#[derive(Clone)]
pub(crate) struct Events(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The stream ended, and another one may take the session up.
    broken: Notify,
}

#[derive(Default)]
struct State {
    /// Bounded by the processes that the application holds.
    processes: HashMap<ProcessId, Feed>,
    closed: bool,
    /// The end of a stream is not the end of the session.
    kept: bool,
}

struct Feed {
    events: mpsc::Sender<Event>,
    /// The number of the next event (WIRE.md, section 6.2: from 1, no holes).
    next: u64,
    held: BTreeMap<u64, Event>,
    /// What was missed is being read; until it was passed on, what arrives is
    /// held.
    catching_up: bool,
}

impl Feed {
    /// Takes an event in; returns those whose turn has come.
    fn arrange(&mut self, seq: u64, event: Event) -> Vec<Event> {
        if seq < self.next {
            return Vec::new(); // a repetition
        }
        if self.catching_up {
            if self.held.len() < EVENTS_HELD_MEANWHILE {
                self.held.insert(seq, event);
            }
            return Vec::new();
        }
        self.held.insert(seq, event);
        let mut due = Vec::new();
        if self.held.len() > EVENTS_HELD
            && let Some((&first, _)) = self.held.first_key_value()
        {
            due.push(Event::Gap);
            self.next = first;
        }
        due.extend(self.in_order());
        due
    }

    /// The events whose turn has come.
    fn in_order(&mut self) -> Vec<Event> {
        let mut due = Vec::new();
        while let Some(event) = self.held.remove(&self.next) {
            self.next = self.next.saturating_add(1);
            due.push(event);
        }
        due
    }

    /// Takes in what was read after `after`; returns how many events are gone.
    fn fill(&mut self, after: u64, reply: ReadReply) -> u64 {
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
        let mut gone = first.saturating_sub(after + 1);
        if let (true, Some(code)) = (reply.exited, reply.exit_code) {
            match hole {
                Some(seq) => drop(read.insert(seq, Event::Exited(code))),
                // Told before, or among what is gone.
                None if gone > 0 => {
                    gone -= 1;
                    read.insert(first - 1, Event::Exited(code));
                }
                None => {}
            }
        }
        for (seq, event) in read {
            if seq >= self.next {
                self.held.entry(seq).or_insert(event);
            }
        }
        self.next = self.next.max(self.held.keys().next().copied().unwrap_or(end).min(end));
        gone
    }
}

impl Events {
    /// No processes; `kept` if the end of a stream is not that of the session.
    pub(crate) fn new(kept: bool) -> Self {
        let state = Mutex::new(State { kept, ..State::default() });
        Self(Arc::new(Shared { state, broken: Notify::new() }))
    }

    /// From here on the end of a stream is not that of the session.
    pub(crate) fn keep(&self) {
        self.lock().kept = true;
    }

    /// Waits for the end of the stream.
    pub(crate) async fn broken(&self) {
        self.0.broken.notified().await;
    }

    /// Holds what arrives from the next stream until it was caught up with.
    pub(crate) fn hold(&self) {
        self.lock().processes.values_mut().for_each(|feed| feed.catching_up = true);
    }

    /// The processes to catch up with, and the last number that each one has.
    pub(crate) fn positions(&self) -> Vec<(ProcessId, u64)> {
        let state = self.lock();
        let behind = state.processes.iter().filter(|(_, feed)| feed.catching_up);
        behind.map(|(id, feed)| (id.clone(), feed.next - 1)).collect()
    }

    /// Passes on what was read after `after`, then what arrived meanwhile.
    pub(crate) async fn caught_up(&self, id: &ProcessId, after: u64, reply: ReadReply) {
        let (events, gone) = {
            let mut state = self.lock();
            let Some(feed) = state.processes.get_mut(id) else { return };
            (feed.events.clone(), feed.fill(after, reply))
        };
        if gone > 0 {
            let _ = events.send(Event::Missed(gone)).await;
        }
        loop {
            let due = {
                let mut state = self.lock();
                let Some(feed) = state.processes.get_mut(id) else { return };
                let due = feed.in_order();
                feed.catching_up = !due.is_empty();
                due
            };
            if due.is_empty() {
                return;
            }
            self.pass_on(id, &events, due).await;
        }
    }

    /// The session is over: nothing follows.
    pub(crate) fn over(&self) {
        let mut state = self.lock();
        state.closed = true;
        // Dropping the senders tells every reader that nothing follows.
        state.processes.clear();
    }

    /// Starts to collect the events of a process, before it is started.
    pub(crate) fn subscribe(&self, id: ProcessId) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(EVENTS_WAITING);
        let mut state = self.lock();
        if !state.closed {
            state
                .processes
                .insert(id, Feed { events, next: 1, held: BTreeMap::new(), catching_up: false });
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
        self.pass_on(id, &events, due).await;
    }

    async fn pass_on(&self, id: &ProcessId, events: &mpsc::Sender<Event>, due: Vec<Event>) {
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
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        if self.lock().kept {
            self.0.broken.notify_one();
        } else {
            self.over();
        }
    }
}

fn parse<N: Notification>(params: Json) -> Option<N> {
    // The parser's words may quote what the peer sent: not for a log.
    params.parse().inspect_err(|_| tracing::warn!(notification = N::NAME, "does not parse")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_proto::rpc::process;
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
        let events = Events::new(false);
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
        let events = Events::new(false);
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
        let events = Events::new(false);
        let mut before = events.subscribe(id());
        output(&events, 1).await;
        events.closed();
        assert!(before.recv().await.is_some(), "what arrived is still delivered");
        assert_eq!(before.recv().await, None);
        assert_eq!(events.subscribe(id()).recv().await, None);
    }

    #[tokio::test]
    async fn strangers_and_nonsense_are_ignored() {
        let events = Events::new(false);
        let mut feed = events.subscribe(id());
        events.notified("later/feature".into(), Json::empty()).await;
        events.notified(Output::NAME.into(), Json::of(&json!({"seq": "x"}))).await;
        let other = json!({"processId": "q", "seq": 1});
        events.notified(ClosedNotification::NAME.into(), Json::of(&other)).await;
        assert!(feed.try_recv().is_err());
    }

    /// What a read gives: chunks by number, and the ends.
    fn reply(seqs: &[u64], next_seq: u64, exit_code: Option<i32>, closed: bool) -> ReadReply {
        let chunk = |seq: &u64| process::Chunk {
            seq: *seq,
            stream: Stream::Stdout,
            chunk: seq.to_string().into(),
        };
        ReadReply {
            chunks: seqs.iter().map(chunk).collect(),
            next_seq,
            exited: exit_code.is_some(),
            exit_code,
            closed,
            failure: None,
            sandbox_denied: false,
        }
    }

    fn text(event: &Event) -> String {
        match event {
            Event::Output(_, chunk) => String::from_utf8_lossy(chunk).into_owned(),
            Event::Exited(code) => format!("exit {code}"),
            Event::Closed => "closed".to_owned(),
            Event::Gap => "gap".to_owned(),
            Event::Missed(count) => format!("missed {count}"),
        }
    }

    /// A process of which 1 and 2 arrived, then the stream ended; what is told
    /// after `reply` was read.
    async fn told(reply: ReadReply) -> Vec<String> {
        let events = Events::new(true);
        let mut feed = events.subscribe(id());
        for seq in [1, 2] {
            output(&events, seq).await;
        }
        events.closed();
        events.broken().await;
        events.hold();
        assert_eq!(events.positions(), [(id(), 2)]);
        got(&mut feed);
        events.caught_up(&id(), 2, reply).await;
        got(&mut feed).iter().map(text).collect()
    }

    #[tokio::test]
    async fn what_was_missed_is_read_and_told_in_order() {
        for (reply, expected) in [
            (reply(&[], 3, None, false), vec![]),
            (reply(&[3, 4], 5, None, false), vec!["3", "4"]),
            (reply(&[3, 5], 7, Some(7), true), vec!["3", "exit 7", "5", "closed"]),
            (reply(&[3, 4], 7, Some(0), true), vec!["3", "4", "exit 0", "closed"]),
            (reply(&[], 5, Some(1), true), vec!["exit 1", "closed"]),
            (reply(&[3], 5, Some(1), false), vec!["3", "exit 1"]),
            // only the newest was kept
            (reply(&[9, 10], 11, None, false), vec!["missed 6", "9", "10"]),
            (reply(&[9, 11], 13, Some(7), true), vec!["missed 6", "9", "exit 7", "11", "closed"]),
            (reply(&[9, 10], 12, Some(7), true), vec!["missed 5", "exit 7", "9", "10", "closed"]),
        ] {
            let about = format!("{reply:?}");
            assert_eq!(told(reply).await, expected, "{about}");
        }
    }

    #[tokio::test]
    async fn what_arrives_meanwhile_waits_for_what_was_missed() {
        let events = Events::new(true);
        let mut feed = events.subscribe(id());
        output(&events, 1).await;
        events.hold();
        for seq in [4, 5] {
            output(&events, seq).await;
        }
        assert_eq!(got(&mut feed).len(), 1);
        events.caught_up(&id(), 1, reply(&[2, 3, 4], 5, None, false)).await;
        let texts: Vec<_> = got(&mut feed).iter().map(text).collect();
        assert_eq!(texts, ["2", "3", "a", "a"], "what came by itself is not told twice");
        output(&events, 6).await;
        assert_eq!(got(&mut feed).len(), 1);
        events.over();
        assert_eq!(feed.recv().await, None);
    }
}
