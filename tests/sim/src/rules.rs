//! The reference: the rules that must hold in every world.
//!
//! It records what the two applications of each stream send, in order, and
//! compares each message that arrives. It records when the path between two ends
//! was healthy for long enough, and derives which streams may be lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::framing::SEND_QUEUE_BYTES;
use rendez_endpoint::{CODEX_UNREAD_MAX_BYTES, Closed, Misbehaviour, Stats};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::limits::{FRAME_MAX_BYTES, STREAM_GRACE, WINDOW_MAX_RECORDS};
use rendez_proto::profile::Profile;

use crate::Micros;
use crate::plan::NodeId;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// A message was delivered that is not exactly the next one that was sent.
    ExactlyOnceInOrder,
    /// A stream was lost though its ends could reach each other within the
    /// grace.
    SurvivesWithinGrace,
    /// A stream ended as forgotten by a peer that had not forgotten it.
    NotForgotten,
    /// An open stream of our profiles ended in a way that no correct peer and
    /// no relay can cause.
    Ending,
    /// A stream that ended as finished at one side lacks messages at the other.
    FinishedIsComplete,
    /// A frame that the peer did not authenticate ended an open stream.
    HostileNeverEnds,
    /// A forged frame was not counted as refused, or was opened.
    HostileIsCounted,
    /// A replayed or older frame was not counted as refused.
    ReplayIsCounted,
    /// More records or bytes were opened than were sealed.
    NothingOutOfThinAir,
    /// A request had its effect twice.
    NeverTwice,
    /// A stream of the Codex profile outlived its websocket.
    CodexEndsWithItsSocket,
    /// More waits between two applications than the limits allow.
    BoundedStream,
    /// A lane of the hub holds more than the limits allow.
    HubMemory,
    /// The hub changed, lost, repeated or reordered a frame.
    BlindRelay,
    /// The hub took frames of a stream from the websocket of another owner.
    IdsAreNotCapabilities,
    /// A timer is due again right after it ran, or the world does not settle.
    NoSpinning,
    /// Something is not complete long after the last fault.
    Completes,
    /// Something is left, or moves, after all nodes have left.
    GoesQuiet,
    /// A core panicked.
    NoPanic,
}

/// Which end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Executor = 0,
    Orchestrator = 1,
}

impl End {
    fn peer(self) -> End {
        match self {
            End::Executor => End::Orchestrator,
            End::Orchestrator => End::Executor,
        }
    }
}

/// Names a stream of the world.
pub(crate) type StreamIndex = usize;

/// The reference's record of one stream.
#[derive(Debug)]
pub(crate) struct StreamRecord {
    pub(crate) profile: Profile,
    /// The executor that let it in.
    pub(crate) executor: Option<NodeId>,
    pub(crate) orchestrator: NodeId,
    halves: [Half; 2],
    /// When both ends had it open.
    both_open: Option<Micros>,
    /// A hostile relay claimed that the peer forgot it, or another executor received
    /// its frames: then it may end as unknown.
    pub(crate) denied: bool,
    /// An end may be unaware that the other one has left, because a hostile relay
    /// dropped the news.
    pub(crate) unaware: bool,
}

/// The reference's record of one end.
#[derive(Debug, Default)]
struct Half {
    /// Messages that its application sent and the other one has not read yet.
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    /// Its local time when it was open.
    opened: Option<Duration>,
    ended: Option<Ended>,
    /// Its mux has ended it; its application has not read it out.
    fading: bool,
    /// For how long it had not heard from its peer when its mux ended it.
    silence: Option<Duration>,
    /// Its application closed it.
    closed: bool,
    /// The counters of the proofs, and the numbers of the records, that
    /// reached it while it was open.
    proofs: BTreeSet<u64>,
    records: BTreeSet<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Told(Closed),
    /// Its process or its connection ended; its application was not notified.
    Gone,
}

/// The health of a path.
#[derive(Debug, Default, Clone)]
pub(crate) struct PathHealth {
    /// To which executor.
    executor: Option<NodeId>,
    since: Micros,
    /// The last time at which it had been healthy for long enough, and both local
    /// times then.
    proven: Option<Proven>,
}

#[derive(Debug, Clone, Copy)]
struct Proven {
    at: Micros,
    executor: NodeId,
    local: [Duration; 2],
}

/// The reference.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    streams: Vec<StreamRecord>,
    names: HashMap<StreamId, StreamIndex>,
    effects: BTreeMap<(u32, u32), u32>,
    path_health: Vec<PathHealth>,
    /// For how long a path must be healthy until everything that waited has passed
    /// it.
    pub(crate) settle: Micros,
    largest_message: usize,
    /// The relay is hostile now and then.
    pub(crate) attacked: bool,
    /// Bytes that the relay and the sockets may hold of a stream without credit.
    pub(crate) on_the_way: usize,
}

type Verdict = Result<(), (Rule, String)>;

impl Reference {
    pub(crate) fn new(nodes: usize, settle: Micros, on_the_way: usize) -> Self {
        let path_health = vec![PathHealth::default(); nodes];
        Self { path_health, settle, on_the_way, ..Self::default() }
    }

    pub(crate) fn dialled(
        &mut self,
        id: StreamId,
        profile: Profile,
        orchestrator: NodeId,
    ) -> StreamIndex {
        self.streams.push(StreamRecord {
            profile,
            executor: None,
            orchestrator,
            halves: Default::default(),
            both_open: None,
            denied: false,
            unaware: false,
        });
        self.names.insert(id, self.streams.len() - 1);
        self.streams.len() - 1
    }

    pub(crate) fn find(&self, id: &StreamId) -> Option<StreamIndex> {
        self.names.get(id).copied()
    }

    pub(crate) fn stream(&mut self, index: StreamIndex) -> &mut StreamRecord {
        &mut self.streams[index]
    }

    pub(crate) fn is_open(&self, index: StreamIndex, end: End) -> bool {
        let half = &self.streams[index].halves[end as usize];
        half.opened.is_some() && half.ended.is_none()
    }

    pub(crate) fn opened(&mut self, index: StreamIndex, end: End, now: Micros, local: Duration) {
        let known = &mut self.streams[index];
        known.halves[end as usize].opened = Some(local);
        if known.halves.iter().all(|half| half.opened.is_some() && half.ended.is_none()) {
            known.both_open = Some(now);
        }
    }

    /// Another executor receives the frames of older streams.
    pub(crate) fn executor_replaced(&mut self, executor: NodeId) {
        for known in &mut self.streams {
            known.denied |= known.executor.is_some_and(|own| own != executor);
        }
    }

    pub(crate) fn sent(&mut self, index: StreamIndex, end: End, message: Bytes) -> Verdict {
        self.largest_message = self.largest_message.max(message.len());
        let known = &mut self.streams[index];
        let half = &mut known.halves[end as usize];
        half.waiting_bytes += message.len();
        half.waiting.push_back(message);
        // per side: what the writer queued, what is in flight and what waits
        // for the reader, each with one message that straddles its end
        let mut bound = SEND_QUEUE_BYTES
            + 2 * WINDOW_MAX_RECORDS as usize * FRAME_MAX_BYTES
            + 2 * (self.largest_message + 4);
        if !known.profile.is_reliable() {
            bound += CODEX_UNREAD_MAX_BYTES + self.on_the_way;
        }
        if half.waiting_bytes > bound {
            let detail = format!("stream {index}: {} bytes wait", half.waiting_bytes);
            return Err((Rule::BoundedStream, detail));
        }
        Ok(())
    }

    pub(crate) fn received(&mut self, index: StreamIndex, end: End, message: &Bytes) -> Verdict {
        let half = &mut self.streams[index].halves[end.peer() as usize];
        let expected = half.waiting.pop_front();
        if expected.as_ref() != Some(message) {
            let show = |bytes: &Bytes| (bytes.len(), bytes[..bytes.len().min(12)].to_vec());
            let detail = format!(
                "stream {index} at {end:?}: got {:?}, expected {:?}",
                show(message),
                expected.as_ref().map(show)
            );
            return Err((Rule::ExactlyOnceInOrder, detail));
        }
        half.waiting_bytes -= message.len();
        Ok(())
    }

    pub(crate) fn app_closed(&mut self, index: StreamIndex, end: End) {
        self.streams[index].halves[end as usize].closed = true;
    }

    pub(crate) fn has_app_closed(&self, index: StreamIndex, end: End) -> bool {
        self.streams[index].halves[end as usize].closed
    }

    /// An honest frame reaches an open end of a reliable stream. Returns whether it
    /// was received before, so that it must be refused and counted.
    pub(crate) fn is_replay(&mut self, frame: &Frame, end: End, node: NodeId) -> Option<bool> {
        let index = self.find(&frame.stream)?;
        // another executor does not have the keys
        if end == End::Executor && self.streams[index].executor != Some(node) {
            return None;
        }
        if !self.is_open(index, end) || !self.streams[index].profile.is_reliable() {
            return None;
        }
        let half = &mut self.streams[index].halves[end as usize];
        match (&frame.body, &frame.proof) {
            (Body::Data { seq, .. }, _) => Some(half.records.contains(&seq.0)),
            (_, Some(proof)) => Some(!half.proofs.insert(proof.counter)),
            (_, None) => None,
        }
    }

    /// A record was opened at an end.
    pub(crate) fn record_opened(&mut self, frame: &Frame, end: End) {
        if let (Body::Data { seq, .. }, Some(index)) = (&frame.body, self.find(&frame.stream)) {
            self.streams[index].halves[end as usize].records.insert(seq.0);
        }
    }

    /// An end was killed.
    pub(crate) fn gone(&mut self, index: StreamIndex, end: End) {
        self.streams[index].halves[end as usize].ended.get_or_insert(Ended::Gone);
    }

    /// The mux of an end has ended its stream, at its local time. The application may
    /// read it out much later.
    pub(crate) fn mux_ended(&mut self, index: StreamIndex, end: End, local: Duration) {
        let silence = self.silence(index, end, local);
        self.streams[index].halves[end as usize].silence.get_or_insert(silence);
    }

    /// For how long an end has not heard from its peer.
    fn silence(&self, index: StreamIndex, end: End, local: Duration) -> Duration {
        let known = &self.streams[index];
        let Some(opened) = known.halves[end as usize].opened else { return Duration::ZERO };
        let proven = self.path_health[known.orchestrator].proven.filter(|proven| {
            Some(proven.executor) == known.executor
                && known.both_open.is_some_and(|open| proven.at >= open + self.settle)
        });
        let heard = proven.map_or(opened, |proven| proven.local[end as usize]);
        local.saturating_sub(heard.max(opened))
    }

    /// An end reports that its stream is over, at its local time.
    pub(crate) fn ended(
        &mut self,
        index: StreamIndex,
        end: End,
        why: Closed,
        local: Duration,
    ) -> Verdict {
        let silence = self.silence(index, end, local);
        let known = &mut self.streams[index];
        let [half, peer] = [end, end.peer()].map(|end| &known.halves[end as usize]);
        let detail = || format!("stream {index} ({}) at {end:?}: {why:?}", known.profile);
        let opened = half.opened;
        let peer_ended = peer.ended.is_some() || peer.fading;
        if let Some(already) = half.ended {
            return Err((Rule::Ending, format!("{} after {already:?}", detail())));
        }
        // all peers are honest, and only peers can seal
        let impossible = matches!(
            why,
            Closed::PeerMisbehaved(
                Misbehaviour::AckOfUnsent
                    | Misbehaviour::MessageLength
                    | Misbehaviour::RecordLength
            )
        );
        if impossible {
            return Err((Rule::Ending, detail()));
        }
        if known.profile.is_reliable() && opened.is_some() && known.both_open.is_some() {
            match why {
                Closed::Finished => {
                    if !half.closed && !peer.closed {
                        return Err((Rule::Ending, detail()));
                    }
                }
                Closed::Lost if !peer_ended && !known.unaware => {
                    let silent = half.silence.unwrap_or(silence);
                    if silent + Duration::from_secs(1) < STREAM_GRACE {
                        let detail = format!("{}, out of reach for {silent:?}", detail());
                        return Err((Rule::SurvivesWithinGrace, detail));
                    }
                }
                Closed::Lost => {}
                Closed::Reset(ResetReason::UnknownStream) => {
                    if !peer_ended && !known.denied {
                        return Err((Rule::NotForgotten, detail()));
                    }
                }
                _ => return Err((Rule::Ending, detail())),
            }
        }
        // only an attack makes a hole in the data of a socket
        let whole = !known.profile.is_reliable() && opened.is_some() && !self.attacked;
        if whole && matches!(why, Closed::OutOfSequence | Closed::PeerMisbehaved(_)) {
            return Err((Rule::Ending, detail()));
        }
        known.halves[end as usize].ended = Some(Ended::Told(why));
        self.complete(index)
    }

    /// Once both ends are over, everything of an end that finished was delivered,
    /// unless the other application closed and stopped reading.
    fn complete(&mut self, index: StreamIndex) -> Verdict {
        let known = &mut self.streams[index];
        for end in [End::Executor, End::Orchestrator] {
            let [half, peer] = [end, end.peer()].map(|end| &known.halves[end as usize]);
            let finished = half.ended == Some(Ended::Told(Closed::Finished)) && half.closed;
            let listened = matches!(peer.ended, Some(Ended::Told(_))) && !peer.closed;
            if known.profile.is_reliable() && finished && listened && !half.waiting.is_empty() {
                let detail = format!(
                    "stream {index}: {end:?} finished, {} messages did not arrive",
                    half.waiting.len()
                );
                return Err((Rule::FinishedIsComplete, detail));
            }
        }
        if known.halves.iter().all(|half| half.ended.is_some()) {
            known.halves.iter_mut().for_each(|half| half.waiting = VecDeque::new());
        }
        Ok(())
    }

    /// Whether an executor must end a stream once its orchestrator has left.
    pub(crate) fn must_end_by_itself(&self, index: StreamIndex) -> bool {
        let known = &self.streams[index];
        !known.unaware && (known.profile.is_reliable() || !self.attacked)
    }

    /// An end is over, except for messages that its application has not read.
    pub(crate) fn fades(&mut self, index: StreamIndex, end: End) {
        self.streams[index].halves[end as usize].fading = true;
    }

    /// A request has its effect.
    pub(crate) fn effect(&mut self, conversation: u32, request: u32) -> Verdict {
        let times = self.effects.entry((conversation, request)).or_default();
        *times += 1;
        if *times > 1 {
            let detail = format!("request {request} of conversation {conversation}");
            return Err((Rule::NeverTwice, detail));
        }
        Ok(())
    }

    /// Notes that the path of an orchestrator to this executor was healthy until
    /// now, or was not.
    pub(crate) fn observe(
        &mut self,
        orchestrator: NodeId,
        executor: Option<NodeId>,
        now: Micros,
        local: impl Fn(NodeId) -> Duration,
    ) {
        let path_health = &mut self.path_health[orchestrator];
        let Some(executor) = executor else {
            path_health.executor = None;
            return;
        };
        if path_health.executor != Some(executor) {
            path_health.executor = Some(executor);
            path_health.since = now;
        } else if now >= path_health.since + self.settle {
            let local = [local(executor), local(orchestrator)];
            path_health.proven = Some(Proven { at: now, executor, local });
        }
    }
}

/// The sum of all counters of refusals of a mux.
pub(crate) fn refusals(stats: &Stats) -> u64 {
    stats.malformed
        + stats.unknown_stream
        + stats.unexpected
        + stats.refused_records
        + stats.duplicates
        + stats.out_of_window
        + stats.refused_control
        + stats.hints
        + stats.handshake_failures
        + stats.handshakes_throttled
}
