//! Dispatches process notifications to their processes, in order and once.
//!
//! A process that is not read holds back the stream, and with it everything else
//! on the stream. The alternative is to drop events and to read them from the
//! executor later. That would lose output: the executor counts sent output as
//! consumed, keeps only the newest mebibyte of it, and would not slow down the
//! process any more.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rendez_proto::rpc::process::{ClosedNotification, Exited, Output, ProcessId, ReadReply};
use rendez_proto::rpc::{Json, Notification};
use rendez_rpc::NotificationHandler;
use tokio::sync::{mpsc, watch};

use crate::event_sequencer::{Delivery, Event, EventSequencer, empty_read};

/// The number of events that wait for the reader of one process: 4 MiB at most,
/// by [`rendez_proto::limits::PROCESS_CHUNK_LARGE_MAX_BYTES`] per chunk. Beyond
/// it the stream waits, and in the end the process.
const READER_QUEUE_EVENTS: usize = 64;

/// The event queues of all processes of one connection.
#[derive(Clone)]
pub(crate) struct EventDispatcher(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// All streams with lower numbers have ended.
    ended: watch::Sender<u64>,
}

/// The handler for notifications of one stream of a session. Streams are numbered
/// in the order of the attempts to open them, so that the late end of one is not
/// mistaken for the end of another.
pub(crate) struct StreamEvents {
    events: EventDispatcher,
    epoch: u64,
}

#[derive(Default)]
struct State {
    /// Bounded by the number of processes that the application holds.
    processes: HashMap<ProcessId, EventSequencer>,
    closed: bool,
    /// Whether the session outlives the end of a stream.
    resumable: bool,
}

/// The position from which to read the events of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// The last sequence number that was delivered.
    pub(crate) after: u64,
    /// Whether the executor has confirmed the start. If not, it may not know the
    /// process yet.
    pub(crate) started: bool,
}

impl EventDispatcher {
    /// Creates a dispatcher without processes. `resumable` means that the session
    /// outlives the end of a stream.
    pub(crate) fn new(resumable: bool) -> Self {
        let state = Mutex::new(State { resumable, ..State::default() });
        Self(Arc::new(Shared { state, ended: watch::Sender::new(0) }))
    }

    /// From now on the session outlives the end of a stream.
    pub(crate) fn set_resumable(&self) {
        self.0.state.lock().resumable = true;
    }

    /// Returns the handler for the stream with this number, which must be higher
    /// than every earlier one.
    pub(crate) fn for_stream(&self, epoch: u64) -> StreamEvents {
        StreamEvents { events: self.clone(), epoch }
    }

    /// Waits for the end of the stream with this number.
    pub(crate) async fn stream_ended(&self, epoch: u64) {
        // The sender lives as long as `self`, so this does not fail.
        let _ = self.0.ended.subscribe().wait_for(|ended| *ended > epoch).await;
    }

    /// Marks all processes as behind: events of the next stream are held until the
    /// missed ones are delivered.
    pub(crate) fn mark_behind(&self) {
        for sequencer in self.0.state.lock().processes.values_mut() {
            // A read in progress belongs to the stream that ended.
            sequencer.delivery = Delivery::AwaitingRead { repeat: sequencer.catch_up_running };
            sequencer.room.notify_waiters();
        }
    }

    /// Returns the processes that are behind and have no catch-up task. The caller
    /// must start one for each and run it until
    /// [`read_position`](Self::read_position) returns `None`.
    pub(crate) fn claim_behind(&self) -> Vec<ProcessId> {
        let mut state = self.0.state.lock();
        let behind = state.processes.iter_mut().filter(|(_, sequencer)| {
            matches!(sequencer.delivery, Delivery::AwaitingRead { .. })
                && !sequencer.catch_up_running
        });
        behind
            .map(|(id, sequencer)| {
                sequencer.catch_up_running = true;
                id.clone()
            })
            .collect()
    }

    /// Returns the position to read from, or `None` if no events are missing.
    pub(crate) fn read_position(&self, id: &ProcessId) -> Option<Position> {
        let mut state = self.0.state.lock();
        let sequencer = state.processes.get_mut(id)?;
        sequencer.catch_up_running = matches!(sequencer.delivery, Delivery::AwaitingRead { .. });
        if !sequencer.catch_up_running {
            return None;
        }
        sequencer.delivery = Delivery::AwaitingRead { repeat: false };
        Some(Position { after: sequencer.next_seq - 1, started: sequencer.started_on.is_some() })
    }

    /// Sends the events of a reply to the reader, then the events that arrived
    /// meanwhile.
    pub(crate) async fn deliver_read(&self, id: &ProcessId, reply: ReadReply) {
        match self.0.state.lock().processes.get_mut(id) {
            Some(sequencer) => sequencer.merge(reply),
            None => return,
        }
        loop {
            let (reader, due) = {
                let mut state = self.0.state.lock();
                let Some(sequencer) = state.processes.get_mut(id) else { return };
                let due = sequencer.pop_ready();
                sequencer.room.notify_waiters();
                if due.is_empty() {
                    return sequencer.finish_replay();
                }
                (sequencer.reader.clone(), due)
            };
            self.send(id, &reader, due).await;
        }
    }

    /// Records that the executor has confirmed the start of a process on this
    /// stream.
    pub(crate) fn started(&self, id: &ProcessId, epoch: u64) {
        let mut state = self.0.state.lock();
        let Some(sequencer) = state.processes.get_mut(id) else { return };
        sequencer.started_on = Some(epoch);
        if sequencer.is_forgotten() {
            state.processes.remove(id);
        }
    }

    /// Records that the executor does not know a process on this stream. If the
    /// start was not confirmed before the read, the process may not have started
    /// yet: no events are missing. Otherwise the process is lost.
    pub(crate) async fn unknown(&self, id: &ProcessId, asked: Position, epoch: u64) {
        let nothing = {
            let mut state = self.0.state.lock();
            let Some(sequencer) = state.processes.get_mut(id) else { return };
            sequencer.unknown_on = Some(epoch);
            if asked.started || sequencer.is_forgotten() {
                state.processes.remove(id);
                return;
            }
            empty_read(sequencer.next_seq)
        };
        self.deliver_read(id, nothing).await;
    }

    /// Ends all processes, because the session is closed.
    pub(crate) fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        // Dropping the senders ends the queue of every reader.
        state.processes.clear();
    }

    /// Registers a process. This happens before it is started, because events may
    /// overtake the reply.
    pub(crate) fn subscribe(&self, id: ProcessId) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(READER_QUEUE_EVENTS);
        let mut state = self.0.state.lock();
        if !state.closed {
            state.processes.insert(id, EventSequencer::new(events));
        }
        receiver
    }

    pub(crate) fn unsubscribe(&self, id: &ProcessId) {
        self.0.state.lock().processes.remove(id);
    }

    async fn accept(&self, id: &ProcessId, seq: u64, mut event: Event) {
        loop {
            let arranged = {
                let mut state = self.0.state.lock();
                let Some(sequencer) = state.processes.get_mut(id) else { return };
                match sequencer.push(seq, event) {
                    Ok(due) => Ok((sequencer.reader.clone(), due)),
                    Err(back) => Err((back, sequencer.room.clone().notified_owned())),
                }
            };
            match arranged {
                Ok((reader, due)) => return self.send(id, &reader, due).await,
                Err((back, room)) => {
                    event = back;
                    room.await;
                }
            }
        }
    }

    async fn send(&self, id: &ProcessId, reader: &mpsc::Sender<Event>, due: Vec<Event>) {
        for event in due {
            let last = event == Event::Closed;
            // The reader may have been dropped.
            let _ = reader.send(event).await;
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
                    self.events.accept(&output.process_id, output.seq, event).await;
                }
            }
            Exited::NAME => {
                if let Some(exited) = parse::<Exited>(params) {
                    let event = Event::Exited(exited.exit_code);
                    self.events.accept(&exited.process_id, exited.seq, event).await;
                }
            }
            ClosedNotification::NAME => {
                if let Some(closed) = parse::<ClosedNotification>(params) {
                    self.events.accept(&closed.process_id, closed.seq, Event::Closed).await;
                }
            }
            // Unknown notifications of newer executors.
            _ => {}
        }
    }

    fn closed(&self) {
        if !self.events.0.state.lock().resumable {
            return self.events.close();
        }
        self.events.0.ended.send_if_modified(|ended| {
            let later = self.epoch >= *ended;
            *ended = (*ended).max(self.epoch + 1);
            later
        });
    }
}

fn parse<N: Notification>(params: Json) -> Option<N> {
    // The parser's message may quote content of the peer, so it is not logged.
    params
        .parse()
        .inspect_err(|_| tracing::warn!(notification = N::NAME, "malformed notification"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_sequencer::{CATCH_UP_EVENTS_MAX, REORDER_EVENTS_MAX};
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
        events.for_stream(0).notification(Output::NAME.into(), Json::of(&params)).await;
    }

    fn drain(received: &mut mpsc::Receiver<Event>) -> Vec<Event> {
        std::iter::from_fn(|| received.try_recv().ok()).collect()
    }

    #[tokio::test]
    async fn events_are_ordered_and_deduplicated() {
        let events = EventDispatcher::new(false);
        let mut received = events.subscribe(id());
        let closed = json!({"processId": "p", "seq": 4});
        events.for_stream(0).notification(ClosedNotification::NAME.into(), Json::of(&closed)).await;
        let exited = json!({"processId": "p", "seq": 3, "exitCode": 7});
        events.for_stream(0).notification(Exited::NAME.into(), Json::of(&exited)).await;
        assert_eq!(drain(&mut received), []);
        for seq in [2, 1, 1, 2] {
            output(&events, seq).await;
        }
        let chunk = Event::Output(Stream::Stdout, Bytes::from_static(b"a"));
        assert_eq!(drain(&mut received), [chunk.clone(), chunk, Event::Exited(7), Event::Closed]);
        events.for_stream(0).notification(Exited::NAME.into(), Json::of(&exited)).await;
        assert_eq!(received.recv().await, None, "nothing follows");
    }

    #[tokio::test]
    async fn lost_event_is_reported_as_gap() {
        let events = EventDispatcher::new(false);
        let mut received = events.subscribe(id());
        for seq in 0..REORDER_EVENTS_MAX as u64 {
            output(&events, seq + 2).await;
        }
        assert_eq!(drain(&mut received), []);
        // More than the queue holds, so the reader reads meanwhile.
        let read = async {
            let mut all = Vec::new();
            while all.len() < REORDER_EVENTS_MAX + 2 {
                all.extend(received.recv().await);
            }
            all
        };
        let ((), all) = tokio::join!(output(&events, REORDER_EVENTS_MAX as u64 + 2), read);
        assert_eq!(all[0], Event::Gap);
        assert_eq!(drain(&mut received), []);
    }

    #[tokio::test]
    async fn closed_stream_ends_every_reader() {
        let events = EventDispatcher::new(false);
        let mut before = events.subscribe(id());
        output(&events, 1).await;
        events.for_stream(0).closed();
        assert!(before.recv().await.is_some(), "received events are still delivered");
        assert_eq!(before.recv().await, None);
        assert_eq!(events.subscribe(id()).recv().await, None);
    }

    #[tokio::test]
    async fn unknown_and_malformed_notifications_are_ignored() {
        let events = EventDispatcher::new(false);
        let mut received = events.subscribe(id());
        events.for_stream(0).notification("later/feature".into(), Json::empty()).await;
        events
            .for_stream(0)
            .notification(Output::NAME.into(), Json::of(&json!({"seq": "x"})))
            .await;
        let other = json!({"processId": "q", "seq": 1});
        events.for_stream(0).notification(ClosedNotification::NAME.into(), Json::of(&other)).await;
        assert!(received.try_recv().is_err());
    }

    /// The reply to a read: chunks by number, exit and close.
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
            ..empty_read(next_seq)
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

    /// A stream ends, and a catch-up task asks for the read position.
    fn lose_stream(events: &EventDispatcher) -> Position {
        events.mark_behind();
        assert_eq!(events.claim_behind(), [id()]);
        events.read_position(&id()).unwrap()
    }

    /// The events that a process delivers after `reply` was read. Events 1 and 2
    /// arrived before the stream ended.
    async fn events_after_read(reply: ReadReply) -> Vec<String> {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        for seq in [1, 2] {
            output(&events, seq).await;
        }
        events.for_stream(0).closed();
        events.stream_ended(0).await;
        events.mark_behind();
        assert_eq!(events.claim_behind(), [id()]);
        assert_eq!(events.read_position(&id()), Some(Position { after: 2, started: false }));
        drain(&mut received);
        events.deliver_read(&id(), reply).await;
        assert_eq!(events.read_position(&id()), None);
        drain(&mut received).iter().map(text).collect()
    }

    #[tokio::test]
    async fn missed_output_is_read_in_order() {
        for (reply, expected) in [
            (reply(&[], 3, None, false), vec![]),
            (reply(&[3, 4], 5, None, false), vec!["3", "4"]),
            (reply(&[3, 5], 7, Some(7), true), vec!["3", "exit 7", "5", "closed"]),
            (reply(&[3, 4], 7, Some(0), true), vec!["3", "4", "exit 0", "closed"]),
            (reply(&[], 5, Some(1), true), vec!["exit 1", "closed"]),
            (reply(&[3], 5, Some(1), false), vec!["3", "exit 1"]),
            // The executor kept only the newest events.
            (reply(&[9, 10], 11, None, false), vec!["missed 6", "9", "10"]),
            (reply(&[9, 11], 13, Some(7), true), vec!["missed 6", "9", "exit 7", "11", "closed"]),
            (reply(&[9, 10], 12, Some(7), true), vec!["missed 5", "exit 7", "9", "10", "closed"]),
        ] {
            let about = format!("{reply:?}");
            assert_eq!(events_after_read(reply).await, expected, "{about}");
        }
    }

    #[tokio::test]
    async fn new_events_wait_for_missed_output() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        output(&events, 1).await;
        lose_stream(&events);
        for seq in [4, 5] {
            output(&events, seq).await;
        }
        assert_eq!(drain(&mut received).len(), 1);
        events.deliver_read(&id(), reply(&[2, 3, 4], 5, None, false)).await;
        let texts: Vec<_> = drain(&mut received).iter().map(text).collect();
        assert_eq!(texts, ["2", "3", "a", "a"], "received events are not delivered twice");
        output(&events, 6).await;
        assert_eq!(drain(&mut received).len(), 1);
        events.close();
        assert_eq!(received.recv().await, None);
    }

    #[tokio::test]
    async fn unconfirmed_process_may_be_unknown() {
        // The stream on which the start is confirmed, and whether that happened
        // before the read on stream 2.
        for (started, before, lost) in
            [(1, true, true), (1, false, true), (2, false, false), (3, false, false)]
        {
            let events = EventDispatcher::new(true);
            let mut received = events.subscribe(id());
            if before {
                events.started(&id(), started);
            }
            let asked = lose_stream(&events);
            output(&events, 1).await;
            events.unknown(&id(), asked, 2).await;
            if !before {
                events.started(&id(), started);
            }
            output(&events, 2).await;
            let received_count = drain(&mut received).len();
            let over = received.try_recv() == Err(mpsc::error::TryRecvError::Disconnected);
            assert_eq!(over, lost, "{started} {before}");
            assert!(lost || received_count == 2, "{received_count} of 2");
        }
    }

    /// Events with these numbers arrive as notifications.
    async fn arrive(events: &EventDispatcher, seqs: RangeInclusive<u64>) {
        for seq in seqs {
            output(events, seq).await;
        }
    }

    /// Receives this many chunks. For tests with a paused clock, which advances
    /// only if all tasks are idle.
    async fn chunks(received: &mut mpsc::Receiver<Event>, count: u64) -> u64 {
        for received_count in 0..count {
            match timeout(Duration::from_secs(1), received.recv()).await {
                Ok(Some(Event::Output(..))) => {}
                other => panic!("{other:?} after {received_count} chunks"),
            }
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_catches_up_without_loss() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        lose_stream(&events);
        // More than the reader's queue holds, then far more than is held.
        let missed = 2 * READER_QUEUE_EVENTS as u64;
        let all = missed + 2 * CATCH_UP_EVENTS_MAX as u64;
        let seqs: Vec<_> = (1..=missed).collect();
        let id = id();
        let ((), (), received_count) = tokio::join!(
            events.deliver_read(&id, reply(&seqs, missed + 1, None, false)),
            arrive(&events, missed + 1..=all),
            // Polled last, so that the others go as far as they can.
            chunks(&mut received, all),
        );
        assert_eq!((events.read_position(&id), received_count), (None, all));
        arrive(&events, all + 1..=all + 1).await;
        assert_eq!(chunks(&mut received, 1).await, 1, "delivery is live again");
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_events_are_read_again() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        lose_stream(&events);
        let held = CATCH_UP_EVENTS_MAX as u64;
        arrive(&events, 2..=held + 3).await;
        let id = id();
        let ((), received_count) = tokio::join!(
            events.deliver_read(&id, reply(&[1], 2, None, false)),
            chunks(&mut received, held + 1),
        );
        let again = events.read_position(&id).map(|position| position.after);
        assert_eq!((again, received_count), (Some(held + 1), held + 1), "two were dropped");
        arrive(&events, held + 4..=held + 4).await;
        let (two, end) = ([held + 2, held + 3], held + 4);
        events.deliver_read(&id, reply(&two, end, None, false)).await;
        assert_eq!(events.read_position(&id), None);
        assert_eq!(chunks(&mut received, 3).await, 3);
    }

    #[tokio::test]
    async fn reply_of_ended_stream_is_incomplete() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        lose_stream(&events);
        events.mark_behind();
        assert_eq!(events.claim_behind(), [], "a task is catching up");
        events.deliver_read(&id(), reply(&[1, 2], 3, None, false)).await;
        output(&events, 4).await;
        assert_eq!(drain(&mut received).len(), 2);
        assert_eq!(events.read_position(&id()).unwrap().after, 2);
        events.deliver_read(&id(), reply(&[3, 4], 5, None, false)).await;
        assert_eq!(drain(&mut received).len(), 2);
        assert_eq!(events.read_position(&id()), None);
        lose_stream(&events);
    }

    #[tokio::test(start_paused = true)]
    async fn unsubscribing_wakes_waiting_events() {
        let events = EventDispatcher::new(true);
        let mut received = events.subscribe(id());
        lose_stream(&events);
        let waiting = READER_QUEUE_EVENTS as u64;
        let seqs: Vec<_> = (1..=2 * waiting).collect();
        let reply = reply(&seqs, 2 * waiting + 1, None, false);
        let most = 2 * waiting + CATCH_UP_EVENTS_MAX as u64;
        let id = id();
        let all = async {
            tokio::join!(
                events.deliver_read(&id, reply),
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
    async fn late_end_of_old_stream_is_ignored() {
        let events = EventDispatcher::new(true);
        let [first, second] = [events.for_stream(1), events.for_stream(2)];
        first.closed();
        events.stream_ended(1).await;
        let mut ended = pin!(events.stream_ended(2));
        assert!(
            std::future::poll_fn(|cx| std::task::Poll::Ready(ended.as_mut().poll(cx)))
                .await
                .is_pending()
        );
        second.closed();
        first.closed();
        ended.await;
    }
}
