//! Endpoints around a simple relay, on virtual time, from one seed.
//!
//! The relay loses, repeats, reorders, forges and splices frames, cuts sockets
//! and reports ends as gone that are not, as far as [`NetworkFaults`] allows.
//! The applications on top write numbered messages and check that each one that
//! arrives is exact, in order, and delivered once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rendez_endpoint::{
    Closed, Config, Connect, Event, Identity, IdentitySeed, Key, Mux, SendError,
};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{EnvironmentId, RegistrationId, StreamId};
use rendez_proto::limits::RECORD_PLAINTEXT_MAX_BYTES;
use rendez_proto::profile::Profile;

/// The faults of the relay; chances in percent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct NetworkFaults {
    pub(crate) loss: u64,
    pub(crate) repeat: u64,
    pub(crate) forge: u64,
    pub(crate) splice: u64,
    /// Longest delay of a frame, in ms; its random choice causes reordering.
    pub(crate) delay: u64,
    /// How many times a random socket is cut.
    pub(crate) cuts: u64,
    /// Whether the relay invents resets.
    pub(crate) false_resets: bool,
    /// Whether an executor registers anew with each socket.
    pub(crate) new_registrations: bool,
}

type End = usize; // 0 is the executor
const EXECUTOR: End = 0;
const ORCHESTRATORS: std::ops::RangeInclusive<End> = 1..=2;

enum ScheduledEvent {
    Deliver { to: End, socket: u64, wire: Bytes },
    Cut,
    Reconnect { end: End },
    Work,
}

pub(crate) struct World {
    start: Instant,
    now: Instant,
    rng: ChaCha20Rng,
    faults: NetworkFaults,
    profile: Profile,
    agenda: BTreeMap<(Instant, u64), ScheduledEvent>,
    serial: u64,
    ends: Vec<Node>,
    registrations: u64,
    /// The orchestrator that claimed each stream.
    claims: BTreeMap<StreamId, End>,
    /// The streams that an orchestrator saw open.
    opened: BTreeSet<StreamId>,
    last_record: Option<Frame>,
    pub(crate) log: Vec<String>,
    executor_key: Identity,
    faults_over: bool,
}

struct Node {
    mux: Mux,
    /// The number of the socket; frames of an older one are dropped. `None`: no
    /// socket.
    socket: Option<u64>,
    sockets: u64,
    conversations: BTreeMap<Key, Conversation>,
    /// Conversations that this orchestrator still has to complete.
    wanted: u64,
}

/// One end of a conversation.
struct Conversation {
    stream: StreamId,
    open: bool,
    to_send: Vec<Bytes>,
    sent: usize,
    expected: Vec<Bytes>,
    got: usize,
    closing: bool,
}

pub(crate) const ENVIRONMENT: &str = "env";

pub(crate) fn identity(byte: u8) -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([byte; 96]))
}

impl World {
    pub(crate) fn new(
        seed: u64,
        profile: Profile,
        faults: NetworkFaults,
        conversations: u64,
    ) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_be_bytes());
        let mut rng = ChaCha20Rng::from_seed(bytes);
        let environment: EnvironmentId = ENVIRONMENT.parse().expect("a valid id");
        let executor_key = identity(1);
        let ends = std::iter::once(Config::executor(
            executor_key.clone(),
            environment.clone(),
            vec![profile],
        ))
        .chain(ORCHESTRATORS.map(|end| Config {
            profiles: vec![profile],
            ..Config::orchestrator(identity(1 + end as u8), environment.clone())
        }))
        .enumerate()
        .map(|(end, config)| {
            let mut seed = [0; 32];
            rng.fill_bytes(&mut seed);
            Node {
                mux: Mux::new(config, seed),
                socket: None,
                sockets: 0,
                conversations: BTreeMap::new(),
                wanted: if end == EXECUTOR { 0 } else { conversations },
            }
        })
        .collect();
        #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
        let start = Instant::now();
        let mut world = Self {
            start,
            now: start,
            rng,
            faults,
            profile,
            agenda: BTreeMap::new(),
            serial: 0,
            ends,
            registrations: 0,
            claims: BTreeMap::new(),
            opened: BTreeSet::new(),
            last_record: None,
            log: Vec::new(),
            executor_key,
            faults_over: false,
        };
        for end in 0..world.ends.len() {
            world.plan(0, ScheduledEvent::Reconnect { end });
        }
        world.plan(1, ScheduledEvent::Work);
        for _ in 0..faults.cuts {
            let at = world.below(4_000);
            world.plan(at, ScheduledEvent::Cut);
        }
        world
    }

    /// Runs until all conversations are complete.
    ///
    /// # Panics
    /// If a message is wrong, or the conversations do not complete in an hour.
    pub(crate) fn run(&mut self) {
        while !self.is_complete() {
            self.step();
            assert!(self.elapsed() < 3_600_000, "stuck:\n{}", self.tail());
        }
        // every stream ends on both sides, including leftover ones
        self.faults_over = true;
        while self.ends.iter().any(|node| !node.conversations.is_empty()) {
            if ORCHESTRATORS.clone().all(|end| self.ends[end].conversations.is_empty()) {
                for end in ORCHESTRATORS {
                    self.cut(end);
                }
            }
            self.step();
            assert!(self.elapsed() < 7_200_000, "streams leak:\n{}", self.tail());
        }
        for node in &self.ends {
            self.log.push(format!("{:?}", node.mux.stats()));
        }
    }

    /// The sum of a counter over all endpoints.
    pub(crate) fn total(&self, counter: impl Fn(rendez_endpoint::Stats) -> u64) -> u64 {
        self.ends.iter().map(|node| counter(node.mux.stats())).sum()
    }

    pub(crate) fn elapsed(&self) -> u64 {
        (self.now - self.start).as_millis() as u64
    }

    pub(crate) fn tail(&self) -> String {
        self.log[self.log.len().saturating_sub(40)..].join("\n")
    }

    fn is_complete(&self) -> bool {
        self.ends.iter().all(|node| {
            node.wanted == 0
                && node
                    .conversations
                    .values()
                    .all(|conversation| conversation.got == conversation.expected.len())
        })
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.rng.next_u64() % bound.max(1)
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn plan(&mut self, after_ms: u64, event: ScheduledEvent) {
        self.serial += 1;
        let at = self.now + Duration::from_millis(after_ms);
        self.agenda.insert((at, self.serial), event);
    }

    fn step(&mut self) {
        let timeout = self.ends.iter().filter_map(|node| node.mux.poll_timeout()).min();
        let planned = self.agenda.first_key_value().map(|((at, _), _)| *at);
        let next = timeout.into_iter().chain(planned).min().expect("there is always work");
        self.now = self.now.max(next);
        if timeout.is_some_and(|at| at <= self.now) {
            for end in 0..self.ends.len() {
                self.ends[end].mux.handle_timeout(self.now);
            }
        }
        while let Some(entry) = self.agenda.first_entry()
            && entry.key().0 <= self.now
        {
            match entry.remove() {
                ScheduledEvent::Deliver { to, socket, wire } => {
                    if self.ends[to].socket == Some(socket) {
                        self.ends[to].mux.handle_message(self.now, wire);
                    }
                }
                ScheduledEvent::Cut => {
                    let end = self.below(self.ends.len() as u64) as usize;
                    self.cut(end);
                }
                ScheduledEvent::Reconnect { end } => self.reconnect(end),
                ScheduledEvent::Work => {
                    let after = 1 + self.below(20);
                    self.plan(after, ScheduledEvent::Work);
                }
            }
        }
        for end in 0..self.ends.len() {
            self.handle_events(end);
            self.work(end);
            loop {
                let record_max_bytes = 1 + self.below(RECORD_PLAINTEXT_MAX_BYTES as u64) as usize;
                let mux = &mut self.ends[end].mux;
                let Some(wire) = mux.poll_transmit(self.now, record_max_bytes) else { break };
                self.forward(end, wire);
            }
            self.handle_events(end);
        }
    }

    // ---- sockets -------------------------------------------------------------

    fn cut(&mut self, end: End) {
        let Some(_) = self.ends[end].socket.take() else { return };
        self.note(end, "cut");
        self.ends[end].mux.socket_lost(self.now);
        let claims: Vec<_> = self.claims.clone().into_iter().collect();
        for (stream, owner) in claims {
            if end == EXECUTOR {
                self.hint(owner, &stream, ResetReason::ExecutorGone);
            } else if owner == end {
                self.hint(EXECUTOR, &stream, ResetReason::OrchestratorGone);
            }
        }
        let after = 10 + self.below(3_000);
        self.plan(after, ScheduledEvent::Reconnect { end });
    }

    fn reconnect(&mut self, end: End) {
        if end == EXECUTOR && (self.faults.new_registrations || self.registrations == 0) {
            self.registrations += 1;
        }
        let registration = self.registration();
        let node = &mut self.ends[end];
        node.sockets += 1;
        node.socket = Some(node.sockets);
        node.mux.socket_opened(self.now, registration);
        self.note(end, "socket");
    }

    fn registration(&self) -> RegistrationId {
        format!("reg-{}", self.registrations).parse().expect("a valid id")
    }

    fn hint(&mut self, to: End, stream: &StreamId, reason: ResetReason) {
        let body = Body::Reset { reason: reason.as_str().to_owned() };
        self.deliver(to, Frame::bare(stream.clone(), body).encode());
    }

    // ---- the relay -----------------------------------------------------------

    fn forward(&mut self, from: End, wire: Bytes) {
        let frame = Frame::decode(wire.clone()).expect("endpoints send frames");
        self.log.push(format!("{} {from} {} {}", self.elapsed(), frame.stream, wire.len()));
        let to = if from == EXECUTOR {
            let Some(owner) = self.claims.get(&frame.stream) else { return };
            *owner
        } else {
            self.claims.insert(frame.stream.clone(), from);
            EXECUTOR
        };
        if self.ends[to].socket.is_none() {
            let gone = if to == EXECUTOR {
                ResetReason::ExecutorGone
            } else {
                ResetReason::OrchestratorGone
            };
            self.hint(from, &frame.stream, gone);
            return;
        }
        // Damaged handshakes count as failures and start an executor's
        // cooldown; other tests cover that.
        if !matches!(frame.body, Body::Handshake { .. }) && !self.faults_over {
            if self.chance(self.faults.forge) {
                let forged = self.forge(&wire);
                self.deliver(to, forged);
            }
            if self.chance(self.faults.splice)
                && let Some(spliced) = self.splice(&frame)
            {
                self.deliver(to, spliced);
            }
            if self.faults.false_resets && self.chance(1) {
                let false_resets = [
                    ResetReason::Overloaded,
                    ResetReason::StreamInUse,
                    ResetReason::Finished,
                    ResetReason::OrchestratorGone,
                    ResetReason::ExecutorGone,
                    ResetReason::Other,
                ];
                let lie = false_resets[self.below(false_resets.len() as u64) as usize];
                self.false_reset(to, &frame.stream, lie);
            }
            if matches!(frame.body, Body::Data { .. }) {
                self.last_record = Some(frame);
            }
        }
        if self.chance(self.faults.repeat) {
            self.deliver(to, wire.clone());
        }
        if !self.chance(self.faults.loss) {
            self.deliver(to, wire);
        }
    }

    /// A forged reset may end a stream that is not open yet; that is expected.
    fn false_reset(&mut self, to: End, stream: &StreamId, lie: ResetReason) {
        let open = |node: &Node| {
            node.conversations
                .values()
                .any(|conversation| conversation.stream == *stream && conversation.open)
        };
        if self.ends.iter().filter(|node| open(node)).count() == 2 {
            self.hint(to, stream, lie);
        }
    }

    /// Returns the frame with one to three bytes changed.
    fn forge(&mut self, wire: &Bytes) -> Bytes {
        let mut bytes = wire.to_vec();
        for _ in 0..1 + self.below(3) {
            let at = self.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << self.below(8);
        }
        // an unproven reset would be a false report, which has its own rules
        match Frame::decode(bytes.clone().into()) {
            Ok(Frame { body: Body::Reset { .. }, proof: None, .. }) => wire.clone(),
            Ok(Frame { body: Body::Handshake { .. }, .. }) => wire.clone(),
            _ => bytes.into(),
        }
    }

    /// Returns another record under this frame's stream, number, ack or credit.
    fn splice(&mut self, frame: &Frame) -> Option<Bytes> {
        let mut spliced = self.last_record.clone()?;
        match self.below(4) {
            0 => spliced.stream = frame.stream.clone(),
            1 => spliced.ack = frame.ack,
            2 => spliced.credit = spliced.credit.wrapping_add(1000),
            _ => {
                if let (Body::Data { seq, .. }, Body::Data { seq: other, .. }) =
                    (&mut spliced.body, &frame.body)
                {
                    *seq = *other;
                }
            }
        }
        Some(spliced.encode())
    }

    fn deliver(&mut self, to: End, wire: Bytes) {
        let Some(socket) = self.ends[to].socket else { return };
        let frame = Frame::decode(wire.clone());
        // a Codex stream cannot repair records that overtake its handshake, or
        // an unproven end that overtakes its records
        let delay = match frame.map(|frame| frame.body) {
            Ok(Body::Handshake { .. }) if !self.profile.is_reliable() => 1,
            Ok(Body::Reset { .. }) if !self.profile.is_reliable() => 1 + self.faults.delay,
            _ => 1 + self.below(self.faults.delay),
        };
        self.plan(delay, ScheduledEvent::Deliver { to, socket, wire });
    }

    // ---- the applications ----------------------------------------------------

    fn handle_events(&mut self, end: End) {
        while let Some(event) = self.ends[end].mux.poll_event() {
            self.note(end, &format!("{event:?}"));
            match event {
                Event::AuthorizationNeeded { key, stream, pending, .. } => {
                    let conversation = self.conversation(stream, EXECUTOR);
                    let node = &mut self.ends[end];
                    node.conversations.insert(key, conversation);
                    node.mux.authorize(self.now, key, pending.authorize());
                }
                Event::Opened { key } => {
                    let conversation = self.ends[end].conversations.get_mut(&key).expect("known");
                    conversation.open = true;
                    if end != EXECUTOR {
                        self.opened.insert(conversation.stream.clone());
                    }
                }
                // work() polls
                Event::Readable { .. } | Event::Writable { .. } | Event::Ended { .. } => {}
                Event::Closed { key, why } => self.closed(end, key, why),
            }
        }
    }

    fn closed(&mut self, end: End, key: Key, why: Closed) {
        let Some(conversation) = self.ends[end].conversations.remove(&key) else { return };
        let complete = conversation.got == conversation.expected.len()
            && conversation.sent == conversation.to_send.len();
        if !conversation.open {
            if end != EXECUTOR {
                self.ends[end].wanted += 1; // try again with another stream
            }
            return;
        }
        if !self.opened.contains(&conversation.stream) {
            return; // message 2 never made it; the executor's half ends some time
        }
        // after both sides have everything, the reported end may differ
        assert!(complete, "{} ended with {why:?} too early\n{}", conversation.stream, self.tail());
        let fine = matches!(why, Closed::Finished | Closed::Lost)
            || matches!(why, Closed::Reset(ResetReason::UnknownStream));
        assert!(fine, "{} ended with {why:?}", conversation.stream);
    }

    fn work(&mut self, end: End) {
        if self.ends[end].wanted > 0 && self.ends[end].socket.is_some() {
            self.ends[end].wanted -= 1;
            let mut id = [0; 16];
            self.rng.fill_bytes(&mut id);
            let stream = StreamId::from_random(id);
            let connect = Connect {
                stream: stream.clone(),
                profile: self.profile,
                registration: self.registration(),
                peer: self.executor_key.public().clone(),
                authorization: Bytes::from_static(b"auth"),
            };
            let conversation = self.conversation(stream, end);
            let node = &mut self.ends[end];
            let key = node.mux.connect(self.now, connect).expect("the connect is valid");
            node.conversations.insert(key, conversation);
        }
        let keys: Vec<Key> = self.ends[end].conversations.keys().copied().collect();
        for key in keys {
            let (reads, writes) = (self.below(12), self.below(12));
            let node = &mut self.ends[end];
            let Some(conversation) =
                node.conversations.get_mut(&key).filter(|conversation| conversation.open)
            else {
                continue;
            };
            for _ in 0..reads {
                let Some(message) = node.mux.recv(key) else { break };
                assert_eq!(
                    Some(&message),
                    conversation.expected.get(conversation.got),
                    "message {} of {} at {end}",
                    conversation.got,
                    conversation.stream
                );
                conversation.got += 1;
            }
            for _ in 0..writes {
                let Some(message) = conversation.to_send.get(conversation.sent) else { break };
                match node.mux.send(key, message) {
                    Ok(()) => conversation.sent += 1,
                    Err(SendError::Blocked) => break,
                    Err(SendError::Closed(_)) => break,
                    Err(SendError::TooLarge) => panic!("no message is too large"),
                }
            }
            let complete = conversation.got == conversation.expected.len()
                && conversation.sent == conversation.to_send.len();
            if end != EXECUTOR && complete && !conversation.closing {
                // the orchestrator has everything; the executor's side is
                // checked there
                conversation.closing = true;
                node.mux.close(self.now, key);
            }
        }
    }

    /// Derives both directions of a stream from its name.
    fn conversation(&self, stream: StreamId, end: End) -> Conversation {
        let script = |direction: u8| {
            let mut seed = [direction; 32];
            for (to, byte) in seed.iter_mut().zip(stream.as_str().bytes()) {
                *to ^= byte;
            }
            let mut rng = ChaCha20Rng::from_seed(seed);
            let count = rng.next_u32() % 40;
            (0..count)
                .map(|_| {
                    let len = match rng.next_u32() % 20 {
                        0 => 1 + rng.next_u32() % 300_000,
                        1..10 => 1 + rng.next_u32() % 100,
                        _ => 1 + rng.next_u32() % 10_000,
                    };
                    let mut message = vec![0; len as usize];
                    rng.fill_bytes(&mut message[..(len as usize).min(64)]);
                    Bytes::from(message)
                })
                .collect::<Vec<_>>()
        };
        let (down, up) = (script(0), script(1));
        let (to_send, expected) = if end == EXECUTOR { (down, up) } else { (up, down) };
        Conversation { stream, open: false, to_send, sent: 0, expected, got: 0, closing: false }
    }

    fn note(&mut self, end: End, what: &str) {
        self.log.push(format!("{} {end} {what}", self.elapsed()));
    }
}
