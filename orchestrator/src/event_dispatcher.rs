//! Brings notifications to their processes, in order and once.
//!
//! Who does not read holds the stream back, and everything in it. What else would
//! be left is to drop what is too much and to read it from the executor later; but
//! what was sent counts as taken there, of that only the newest mebibyte is kept,
//! and nothing would hold the process back any more: its output would be lost.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rendez_proto::rpc::process::{ClosedNotification, Exited, Output, ProcessId, ReadReply};
use rendez_proto::rpc::{Json, Notification};
use rendez_rpc::NotificationHandler;
use tokio::sync::{mpsc, watch};

use crate::event_sequencer::{Event, EventSequencer, Mode, nothing_after};

/// EventDispatcher of one process that wait for its reader. Chunks have at most
/// [`rendez_proto::limits::PROCESS_CHUNK_LARGE_MAX_BYTES`], so 4 MiB; then the stream waits,
/// and in the end the process.
const EVENTS_WAITING: usize = 64;

/// All processes of one connection.
#[derive(Clone)]
pub(crate) struct EventDispatcher(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// All streams with numbers below this one have ended.
    ended: watch::Sender<u64>,
}

/// Where one stream of a session brings its notifications. The streams have
/// numbers in the order in which they were tried, so that the late end of one
/// is not taken for that of another.
pub(crate) struct StreamEvents {
    events: EventDispatcher,
    epoch: u64,
}

#[derive(Default)]
struct State {
    /// Bounded by the processes that the application holds.
    processes: HashMap<ProcessId, EventSequencer>,
    closed: bool,
    /// The end of a stream is not the end of the session.
    kept: bool,
}

/// What the executor is asked for about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last number that the process's reader has.
    pub(crate) after: u64,
    /// Whether its start is answered: if not, the executor need not know it yet.
    pub(crate) started: bool,
}

impl EventDispatcher {
    /// No processes; `kept` if the end of a stream is not that of the session.
    pub(crate) fn new(kept: bool) -> Self {
        let state = Mutex::new(State { kept, ..State::default() });
        Self(Arc::new(Shared { state, ended: watch::Sender::new(0) }))
    }

    /// From here on the end of a stream is not that of the session.
    pub(crate) fn keep(&self) {
        self.0.state.lock().kept = true;
    }

    /// For the notifications of the stream with this number, which is higher
    /// than that of any before.
    pub(crate) fn of_stream(&self, epoch: u64) -> StreamEvents {
        StreamEvents { events: self.clone(), epoch }
    }

    /// Waits for the end of this stream.
    pub(crate) async fn broken(&self, epoch: u64) {
        // The sender lives as long as `self`.
        let _ = self.0.ended.subscribe().wait_for(|ended| *ended > epoch).await;
    }

    /// Holds what arrives from the next stream until it was caught up with.
    pub(crate) fn hold(&self) {
        for sequencer in self.0.state.lock().processes.values_mut() {
            // An answer that is under way is one of the stream that ended.
            sequencer.mode = Mode::Asking { again: sequencer.caught_up_with };
            sequencer.room.notify_waiters();
        }
    }

    /// The processes that nobody catches up with yet: whoever asks does from here
    /// on, until [`position`](Self::position) says that nothing is missing.
    pub(crate) fn behind(&self) -> Vec<ProcessId> {
        let mut state = self.0.state.lock();
        let behind = state.processes.iter_mut().filter(|(_, sequencer)| {
            matches!(sequencer.mode, Mode::Asking { .. }) && !sequencer.caught_up_with
        });
        behind
            .map(|(id, sequencer)| {
                sequencer.caught_up_with = true;
                id.clone()
            })
            .collect()
    }

    /// What to ask the executor for; `None` once nothing is missing.
    pub(crate) fn position(&self, id: &ProcessId) -> Option<Position> {
        let mut state = self.0.state.lock();
        let sequencer = state.processes.get_mut(id)?;
        sequencer.caught_up_with = matches!(sequencer.mode, Mode::Asking { .. });
        if !sequencer.caught_up_with {
            return None;
        }
        sequencer.mode = Mode::Asking { again: false };
        Some(Position { after: sequencer.next - 1, started: sequencer.started.is_some() })
    }

    /// Passes on what was read from the process's position on, then what arrived
    /// meanwhile.
    pub(crate) async fn caught_up(&self, id: &ProcessId, reply: ReadReply) {
        match self.0.state.lock().processes.get_mut(id) {
            Some(sequencer) => sequencer.fill(reply),
            None => return,
        }
        loop {
            let (events, due) = {
                let mut state = self.0.state.lock();
                let Some(sequencer) = state.processes.get_mut(id) else { return };
                let due = sequencer.in_order();
                sequencer.room.notify_waiters();
                if due.is_empty() {
                    return sequencer.passed_on();
                }
                (sequencer.events.clone(), due)
            };
            self.pass_on(id, &events, due).await;
        }
    }

    /// The start of a process was answered on this stream.
    pub(crate) fn started(&self, id: &ProcessId, epoch: u64) {
        let mut state = self.0.state.lock();
        let Some(sequencer) = state.processes.get_mut(id) else { return };
        sequencer.started = Some(epoch);
        if sequencer.is_forgotten() {
            state.processes.remove(id);
        }
    }

    /// The executor does not know a process on this stream. It need not yet if
    /// its start was not answered when it was asked: then nothing is missing.
    /// Else nothing follows.
    pub(crate) async fn unknown(&self, id: &ProcessId, asked: Position, epoch: u64) {
        let nothing = {
            let mut state = self.0.state.lock();
            let Some(sequencer) = state.processes.get_mut(id) else { return };
            sequencer.unknown = Some(epoch);
            if asked.started || sequencer.is_forgotten() {
                state.processes.remove(id);
                return;
            }
            nothing_after(sequencer.next)
        };
        self.caught_up(id, nothing).await;
    }

    /// The session is over: nothing follows.
    pub(crate) fn over(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        // Dropping the senders tells every reader that nothing follows.
        state.processes.clear();
    }

    /// Starts to collect the events of a process, before it is started.
    pub(crate) fn subscribe(&self, id: ProcessId) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(EVENTS_WAITING);
        let mut state = self.0.state.lock();
        if !state.closed {
            state.processes.insert(id, EventSequencer::new(events));
        }
        receiver
    }

    pub(crate) fn unsubscribe(&self, id: &ProcessId) {
        self.0.state.lock().processes.remove(id);
    }

    async fn deliver(&self, id: &ProcessId, seq: u64, mut event: Event) {
        loop {
            let arranged = {
                let mut state = self.0.state.lock();
                let Some(sequencer) = state.processes.get_mut(id) else { return };
                match sequencer.arrange(seq, event) {
                    Ok(due) => Ok((sequencer.events.clone(), due)),
                    Err(back) => Err((back, sequencer.room.clone().notified_owned())),
                }
            };
            match arranged {
                Ok((events, due)) => return self.pass_on(id, &events, due).await,
                Err((back, room)) => {
                    event = back;
                    room.await;
                }
            }
        }
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
}

impl NotificationHandler for StreamEvents {
    async fn notification(&self, method: String, params: Json) {
        match method.as_str() {
            Output::NAME => {
                if let Some(output) = parse::<Output>(params) {
                    let event = Event::Output(output.stream, output.chunk);
                    self.events.deliver(&output.process_id, output.seq, event).await;
                }
            }
            Exited::NAME => {
                if let Some(exited) = parse::<Exited>(params) {
                    let event = Event::Exited(exited.exit_code);
                    self.events.deliver(&exited.process_id, exited.seq, event).await;
                }
            }
            ClosedNotification::NAME => {
                if let Some(closed) = parse::<ClosedNotification>(params) {
                    self.events.deliver(&closed.process_id, closed.seq, Event::Closed).await;
                }
            }
            // Notifications of the future.
            _ => {}
        }
    }

    fn closed(&self) {
        if !self.events.0.state.lock().kept {
            return self.events.over();
        }
        self.events.0.ended.send_if_modified(|ended| {
            let later = self.epoch >= *ended;
            *ended = (*ended).max(self.epoch + 1);
            later
        });
    }
}

fn parse<N: Notification>(params: Json) -> Option<N> {
    // The parser's words may quote what the peer sent: not for a log.
    params.parse().inspect_err(|_| tracing::warn!(notification = N::NAME, "does not parse")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_sequencer::{EVENTS_HELD, EVENTS_HELD_MEANWHILE};
    use std::ops::RangeInclusive;
    use std::pin::pin;
    use std::time::Duration;

    use bytes::Bytes;
    use rendez_proto::rpc::process::{self, Stream};
    use serde_json::json;
    use tokio::time::timeout;

    fn id() -> ProcessId {
        ProcessId("p".into())
    }

    async fn output(events: &EventDispatcher, seq: u64) {
        let params = json!({"processId": "p", "seq": seq, "stream": "stdout", "chunk": "YQ=="});
        events.of_stream(0).notification(Output::NAME.into(), Json::of(&params)).await;
    }

    fn got(received: &mut mpsc::Receiver<Event>) -> Vec<Event> {
        std::iter::from_fn(|| received.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn events_come_in_order_and_once() {
        let events = EventDispatcher::new(false);
        let mut received = events.subscribe(id());
        let closed = json!({"processId": "p", "seq": 4});
        events.of_stream(0).notification(ClosedNotification::NAME.into(), Json::of(&closed)).await;
        let exited = json!({"processId": "p", "seq": 3, "exitCode": 7});
        events.of_stream(0).notification(Exited::NAME.into(), Json::of(&exited)).await;
        assert_eq!(got(&mut received), []);
        for seq in [2, 1, 1, 2] {
            output(&events, seq).await;
        }
        let chunk = Event::Output(Stream::Stdout, Bytes::from_static(b"a"));
        assert_eq!(got(&mut received), [chunk.clone(), chunk, Event::Exited(7), Event::Closed]);
        events.of_stream(0).notification(Exited::NAME.into(), Json::of(&exited)).await;
        assert_eq!(received.recv().await, None, "nothing follows");
    }

    #[tokio::test]
    async fn an_event_that_never_comes_is_told() {
        let events = EventDispatcher::new(false);
        let mut received = events.subscribe(id());
        for seq in 0..EVENTS_HELD as u64 {
            output(&events, seq + 2).await;
        }
        assert_eq!(got(&mut received), []);
        // more than may wait for a reader, so it reads meanwhile
        let read = async {
            let mut all = Vec::new();
            while all.len() < EVENTS_HELD + 2 {
                all.extend(received.recv().await);
            }
            all
        };
        let ((), all) = tokio::join!(output(&events, EVENTS_HELD as u64 + 2), read);
        assert_eq!(all[0], Event::Gap);
        assert_eq!(got(&mut received), []);
    }

    #[tokio::test]
    async fn a_closed_stream_ends_every_feed() {
        let events = EventDispatcher::new(false);
        let mut before = events.subscribe(id());
        output(&events, 1).await;
        events.of_stream(0).closed();
        assert!(before.recv().await.is_some(), "what arrived is still delivered");
        assert_eq!(before.recv().await, None);
        assert_eq!(events.subscribe(id()).recv().await, None);
    }

    #[tokio::test]
    async fn strangers_and_nonsense_are_ignored() {
        let events = EventDispatcher::new(false);
        let mut received = events.subscribe(id());
        events.of_stream(0).notification("later/feature".into(), Json::empty()).await;
        events.of_stream(0).notification(Output::NAME.into(), Json::of(&json!({"seq": "x"}))).await;
        let other = json!({"processId": "q", "seq": 1});
        events.of_stream(0).notification(ClosedNotification::NAME.into(), Json::of(&other)).await;
        assert!(received.try_recv().is_err());
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
            exited: exit_code.is_some(),
            exit_code,
            closed,
            ..nothing_after(next_seq)
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

    /// A stream ends, and the next one is asked for what was missed.
    fn ask(events: &EventDispatcher) -> Position {
        events.hold();
        assert_eq!(events.behind(), [id()]);
        events.position(&id()).unwrap()
    }

    /// A process of which 1 and 2 arrived, then the stream ended; what is told
    /// after `reply` was read.
    async fn told(reply: ReadReply) -> Vec<String> {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        for seq in [1, 2] {
            output(&events, seq).await;
        }
        events.of_stream(0).closed();
        events.broken(0).await;
        events.hold();
        assert_eq!(events.behind(), [id()]);
        assert_eq!(events.position(&id()), Some(Position { after: 2, started: false }));
        got(&mut received);
        events.caught_up(&id(), reply).await;
        assert_eq!(events.position(&id()), None);
        got(&mut received).iter().map(text).collect()
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
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        output(&events, 1).await;
        ask(&events);
        for seq in [4, 5] {
            output(&events, seq).await;
        }
        assert_eq!(got(&mut received).len(), 1);
        events.caught_up(&id(), reply(&[2, 3, 4], 5, None, false)).await;
        let texts: Vec<_> = got(&mut received).iter().map(text).collect();
        assert_eq!(texts, ["2", "3", "a", "a"], "what came by itself is not told twice");
        output(&events, 6).await;
        assert_eq!(got(&mut received).len(), 1);
        events.over();
        assert_eq!(received.recv().await, None);
    }

    #[tokio::test]
    async fn a_process_that_is_not_started_yet_need_not_be_known() {
        // the stream on which its start is answered, and whether that was
        // before the executor was asked for it on stream 2
        for (started, before, lost) in
            [(1, true, true), (1, false, true), (2, false, false), (3, false, false)]
        {
            let events = EventDispatcher::new(true);
            let mut received = events.subscribe(id());
            if before {
                events.started(&id(), started);
            }
            let asked = ask(&events);
            output(&events, 1).await;
            events.unknown(&id(), asked, 2).await;
            if !before {
                events.started(&id(), started);
            }
            output(&events, 2).await;
            let told = got(&mut received).len();
            let over = received.try_recv() == Err(mpsc::error::TryRecvError::Disconnected);
            assert_eq!(over, lost, "{started} {before}");
            assert!(lost || told == 2, "{told} of 2");
        }
    }

    /// The events of these numbers arrive by themselves.
    async fn arrive(events: &EventDispatcher, seqs: RangeInclusive<u64>) {
        for seq in seqs {
            output(events, seq).await;
        }
    }

    /// Takes this many chunks. For tests with a clock that stands still while
    /// there is something to do.
    async fn chunks(received: &mut mpsc::Receiver<Event>, count: u64) -> u64 {
        for told in 0..count {
            match timeout(Duration::from_secs(1), received.recv()).await {
                Ok(Some(Event::Output(..))) => {}
                other => panic!("{other:?} after {told} chunks"),
            }
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_lost_while_a_slow_reader_catches_up() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        ask(&events);
        // more than fits into the reader's queue; then far more than is held
        let missed = 2 * EVENTS_WAITING as u64;
        let all = missed + 2 * EVENTS_HELD_MEANWHILE as u64;
        let seqs: Vec<_> = (1..=missed).collect();
        let id = id();
        let ((), (), told) = tokio::join!(
            events.caught_up(&id, reply(&seqs, missed + 1, None, false)),
            arrive(&events, missed + 1..=all),
            // comes last, and so lets the others go as far as they can
            chunks(&mut received, all),
        );
        assert_eq!((events.position(&id), told), (None, all));
        arrive(&events, all + 1..=all + 1).await;
        assert_eq!(chunks(&mut received, 1).await, 1, "it goes on as before");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_too_much_while_nobody_had_answered_is_asked_for_again() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        ask(&events);
        let held = EVENTS_HELD_MEANWHILE as u64;
        arrive(&events, 2..=held + 3).await;
        let id = id();
        let ((), told) = tokio::join!(
            events.caught_up(&id, reply(&[1], 2, None, false)),
            chunks(&mut received, held + 1),
        );
        let again = events.position(&id).map(|position| position.after);
        assert_eq!((again, told), (Some(held + 1), held + 1), "two were dropped");
        arrive(&events, held + 4..=held + 4).await;
        let (two, end) = ([held + 2, held + 3], held + 4);
        events.caught_up(&id, reply(&two, end, None, false)).await;
        assert_eq!(events.position(&id), None);
        assert_eq!(chunks(&mut received, 3).await, 3);
    }

    #[tokio::test]
    async fn an_answer_of_a_stream_that_ended_meanwhile_is_not_all() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        ask(&events);
        events.hold();
        assert_eq!(events.behind(), [], "somebody is about it");
        events.caught_up(&id(), reply(&[1, 2], 3, None, false)).await;
        output(&events, 4).await;
        assert_eq!(got(&mut received).len(), 2);
        assert_eq!(events.position(&id()).unwrap().after, 2);
        events.caught_up(&id(), reply(&[3, 4], 5, None, false)).await;
        assert_eq!(got(&mut received).len(), 2);
        assert_eq!(events.position(&id()), None);
        ask(&events);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_goes_on_when_the_process_is_given_up() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        ask(&events);
        let waiting = EVENTS_WAITING as u64;
        let seqs: Vec<_> = (1..=2 * waiting).collect();
        let reply = reply(&seqs, 2 * waiting + 1, None, false);
        let most = 2 * waiting + EVENTS_HELD_MEANWHILE as u64;
        let id = id();
        let all = async {
            tokio::join!(
                events.caught_up(&id, reply),
                arrive(&events, 2 * waiting + 1..=most + 1),
                async {
                    events.unsubscribe(&id);
                    while received.recv().await.is_some() {}
                }
            )
        };
        timeout(Duration::from_secs(1), all).await.unwrap();
    }

    #[tokio::test]
    async fn the_late_end_of_one_stream_is_not_that_of_the_next() {
        let events = EventDispatcher::new(true);
        let [first, second] = [events.of_stream(1), events.of_stream(2)];
        first.closed();
        events.broken(1).await;
        let mut broken = pin!(events.broken(2));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(broken.as_mut().poll(cx)))
                .await
                .is_pending()
        );
        second.closed();
        first.closed();
        broken.await;
    }
}
