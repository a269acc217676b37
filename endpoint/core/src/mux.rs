//! All streams of one endpoint over one socket after another.
//!
//! Transmission order: frames of streams that are gone, then handshakes,
//! resumes and acknowledgements, then one record of each ready stream in turn.
//! A record is at most 60 KiB, so plain turns are fair to within one record.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::limits::{AUTHORIZATION_MAX_BYTES, CONTROL_QUEUE_FRAMES};
use rendez_proto::profile::Profile;
use slab::Slab;
use zeroize::Zeroizing;

use crate::admission::{Admission, TurnedAway};
use crate::config::{Config, Connect, Event, Key, Role};
use crate::error::{Closed, ConnectError, Misbehaviour, Refusal, SendError};
use crate::noise::{self, Authorized, Prologue};
use crate::stats::Stats;
use crate::stream::{Again, Dialing, Ending, Stream, reset, wire_name};

/// The endpoint. See the [crate] for the order in which to call it.
#[derive(Debug)]
pub struct Mux {
    config: Config,
    rng: ChaCha20Rng,
    /// Whether there is a socket, and under which registration new streams of
    /// an executor are prologued.
    socket: bool,
    registration: Option<RegistrationId>,
    streams: Slab<Entry>,
    /// The live streams; those that ended and wait to be read out are not in it.
    index: HashMap<StreamId, usize>,
    generation: u32,
    admission: Admission,
    /// Frames that belong to no live stream.
    gone: VecDeque<Bytes>,
    control: VecDeque<usize>,
    records: VecDeque<usize>,
    timers: BTreeSet<(Instant, usize)>,
    congested: usize,
    events: VecDeque<Event>,
    stats: Stats,
    scratch: BytesMut,
}

#[derive(Debug)]
struct Entry {
    generation: u32,
    stream: Stream,
    in_control: bool,
    in_records: bool,
    /// Never later than the stream's own deadline. An early timer only makes
    /// the stream look once more, and saves moving it with every record.
    timer: Option<Instant>,
    congested: bool,
    /// The application heard the last of it; the stream lingers to repeat its
    /// end to the peer.
    reported: bool,
}

impl Mux {
    /// An endpoint without a socket. All its randomness follows from
    /// `rng_seed`: 32 uniformly random secret bytes, used once.
    pub fn new(config: Config, rng_seed: [u8; 32]) -> Self {
        Self {
            config,
            rng: ChaCha20Rng::from_seed(rng_seed),
            socket: false,
            registration: None,
            streams: Slab::new(),
            index: HashMap::new(),
            generation: 0,
            admission: Admission::default(),
            gone: VecDeque::new(),
            control: VecDeque::new(),
            records: VecDeque::new(),
            timers: BTreeSet::new(),
            congested: 0,
            events: VecDeque::new(),
            stats: Stats::default(),
            scratch: BytesMut::new(),
        }
    }

    // ---- the socket --------------------------------------------------------

    /// A socket is up. An executor's new streams are bound to `registration`;
    /// streams that exist keep theirs, and reliable ones look for their peers.
    pub fn socket_opened(&mut self, now: Instant, registration: RegistrationId) {
        self.socket = true;
        self.registration = Some(registration);
        for slot in self.slots() {
            self.with(now, slot, |stream, _, now| {
                stream.socket_opened(now);
                Ok(())
            });
        }
    }

    /// The socket is gone. Streams of the Codex profile end; reliable ones
    /// wait for the next socket.
    pub fn socket_lost(&mut self, now: Instant) {
        self.socket = false;
        self.gone.clear();
        for slot in self.slots() {
            self.with(now, slot, |stream, _, now| stream.socket_lost(now));
        }
    }

    /// Takes one message from the socket. What is wrong with it is counted in
    /// [`stats`](Self::stats), or ends one stream.
    pub fn handle_message(&mut self, now: Instant, wire: Bytes) {
        if !self.socket {
            return; // a straggler of a socket that is gone
        }
        self.stats.frames_in += 1;
        let Ok(frame) = Frame::decode(wire) else {
            self.stats.malformed += 1;
            return;
        };
        match self.index.get(&frame.stream) {
            None => self.handle_unknown(now, frame),
            Some(&slot) => match (frame.body, self.config.role) {
                (Body::Handshake { message, .. }, Role::Executor) => {
                    self.handle_message_1(now, slot, &message);
                }
                (Body::Handshake { message, .. }, Role::Orchestrator) => {
                    self.handle_message_2(now, slot, &message);
                }
                (body, _) => {
                    let frame = Frame { body, ..frame };
                    self.with(now, slot, |stream, stats, now| {
                        stream.handle_frame(now, frame, stats)
                    });
                }
            },
        }
    }

    /// Whether the socket should be read. It should not while a stream that
    /// has no credit of its own (Codex profile) holds too much unread.
    pub fn wants_read(&self) -> bool {
        self.congested == 0
    }

    /// The next message for the socket. Call it while the socket has room.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if !self.socket {
            return None;
        }
        let wire = self
            .gone
            .pop_front()
            .or_else(|| self.poll_control(now))
            .or_else(|| self.poll_record(now))
            .or_else(|| self.gone.pop_front())?; // a farewell that the polls left
        self.stats.frames_out += 1;
        Some(wire)
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(&(at, slot)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(entry) = self.streams.get_mut(slot) {
                entry.timer = None;
                self.with(now, slot, |stream, _, now| stream.handle_timeout(now));
            }
        }
    }

    // ---- the application ---------------------------------------------------

    /// Starts a stream to an executor. [`Event::Opened`] or [`Event::Closed`]
    /// follows within [`HANDSHAKE_TIMEOUT`].
    ///
    /// # Errors
    /// [`ConnectError`]; nothing was sent.
    ///
    /// [`HANDSHAKE_TIMEOUT`]: rendez_proto::limits::HANDSHAKE_TIMEOUT
    pub fn connect(&mut self, now: Instant, connect: Connect) -> Result<Key, ConnectError> {
        let Connect { stream, profile, registration, peer, authorization } = connect;
        if self.config.role != Role::Orchestrator {
            return Err(ConnectError::NotOrchestrator);
        }
        if !self.config.profiles.contains(&profile) {
            return Err(ConnectError::ProfileNotAllowed);
        }
        if self.index.contains_key(&stream) {
            return Err(ConnectError::StreamInUse);
        }
        if self.streams.len() >= self.config.limits.streams {
            return Err(ConnectError::TooManyStreams);
        }
        if authorization.len() > AUTHORIZATION_MAX_BYTES {
            return Err(ConnectError::AuthorizationTooLong);
        }
        let prologue = Prologue::new(profile, &self.config.environment, &registration, &stream);
        let seed = self.seed();
        let (handshake, message) = noise::initiate(
            profile.suite(),
            &self.config.identity,
            &peer,
            &prologue,
            &authorization,
            seed,
        )?;
        let dialing = Dialing::new(&stream, profile, handshake, message, now);
        Ok(self.insert(Stream::dialing(stream, profile, dialing)))
    }

    /// Lets a peer in. `proof` must be for the key that
    /// [`Event::AuthorizationNeeded`] named; with any other the peer is
    /// refused. Does nothing if the stream no longer asks.
    pub fn authorize(&mut self, now: Instant, key: Key, proof: Authorized) {
        let Some(slot) = self.find(key) else { return };
        let (socket, entry) = (self.socket, &mut self.streams[slot]);
        if !entry.stream.is_asking() {
            return;
        }
        match entry.stream.authorize(now, proof, socket) {
            Ok(message_2) => {
                self.stats.opened += 1;
                self.events.push_back(Event::Opened { key });
                self.gone.extend(message_2);
                self.refresh(slot);
            }
            Err(_) => {
                let wire = reset(&entry.stream.id, refusal(entry.stream.profile));
                self.queue(wire);
                self.failed(now);
                self.remove(slot);
            }
        }
    }

    /// Turns a peer away. No event follows. Does nothing if the stream no
    /// longer asks.
    pub fn refuse(&mut self, now: Instant, key: Key, why: Refusal) {
        let Some(slot) = self.find(key) else { return };
        let stream = &mut self.streams[slot].stream;
        if !stream.is_asking() {
            return;
        }
        let wire = match why {
            Refusal::AuthenticationRejected => stream.reject(),
            Refusal::Denied => None,
        };
        match wire {
            Some(message_2) => self.queue(message_2),
            None => {
                let wire = reset(&stream.id, refusal(stream.profile));
                self.queue(wire);
                self.failed(now);
            }
        }
        self.remove(slot);
    }

    /// Queues a whole message. It is copied only when it is sealed.
    ///
    /// # Errors
    /// [`SendError`]; the message was not taken.
    pub fn send(&mut self, key: Key, message: &Bytes) -> Result<(), SendError> {
        let Some(slot) = self.find(key) else {
            return Err(SendError::Closed(Closed::Finished));
        };
        let sent = self.streams[slot].stream.send(message);
        self.schedule(slot);
        sent
    }

    /// The next whole message. `None`: wait for [`Event::Readable`].
    pub fn recv(&mut self, key: Key) -> Option<Bytes> {
        let slot = self.find(key)?;
        let message = self.streams[slot].stream.recv();
        self.schedule(slot);
        self.release_if_read_out(slot);
        message
    }

    /// Ends a stream: what was sent is delivered first, then the peer is told,
    /// then [`Event::Closed`] follows. Until then messages may still be read;
    /// what is unread at the end is dropped.
    pub fn close(&mut self, now: Instant, key: Key) {
        if let Some(slot) = self.find(key) {
            self.with(now, slot, |stream, _, _| stream.close());
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    // ---- frames without a stream, and handshakes ----------------------------

    fn handle_unknown(&mut self, now: Instant, frame: Frame) {
        self.stats.unknown_stream += 1;
        if self.config.role != Role::Executor {
            return; // WIRE.md, section 3: a harness ignores other streams
        }
        match frame.body {
            Body::Handshake { message, profile } => {
                self.handle_new_handshake(now, frame.stream, &profile, &message);
            }
            // Which profile it had, nobody knows; this text all understand.
            Body::Data { .. } => {
                self.queue(reset(&frame.stream, ResetReason::ProtocolError));
            }
            // Only our own profiles prove a resume.
            Body::Resume { .. } if frame.proof.is_some() => {
                self.queue(reset(&frame.stream, ResetReason::UnknownStream));
            }
            Body::Resume { .. } | Body::Reset { .. } | Body::Ack | Body::Heartbeat => {}
        }
    }

    fn handle_new_handshake(&mut self, now: Instant, id: StreamId, profile: &str, message: &[u8]) {
        let offered = self.config.profiles.iter().find(|offer| wire_name(**offer) == profile);
        let pending = self.streams.iter().filter(|(_, entry)| entry.stream.is_asking()).count();
        let admitted = self.admission.admit(now, &self.config.limits, self.streams.len(), pending);
        let (Some(&profile), Ok(()), Some(registration)) = (offered, admitted, &self.registration)
        else {
            if admitted == Err(TurnedAway) {
                self.stats.handshakes_turned_away += 1;
            }
            let reason = if profile.is_empty() {
                ResetReason::ProtocolError
            } else {
                ResetReason::HandshakeRefused
            };
            self.queue(reset(&id, reason));
            return;
        };
        let prologue = Prologue::new(profile, &self.config.environment, registration, &id);
        let registration = registration.clone();
        let seed = self.seed();
        let read = noise::respond(profile.suite(), &self.config.identity, &prologue, message, seed);
        let handshake = match read {
            Ok(handshake) if acceptable(handshake.authorization()) => handshake,
            _ => {
                self.failed(now);
                self.queue(reset(&id, refusal(profile)));
                return;
            }
        };
        let peer = handshake.peer().clone();
        let authorization = handshake.authorization().clone();
        let stream = id.clone();
        let key = self.insert(Stream::asking(id, profile, handshake, message, now));
        self.events.push_back(Event::AuthorizationNeeded {
            key,
            stream,
            registration,
            peer,
            authorization,
        });
    }

    fn handle_message_1(&mut self, now: Instant, slot: usize, message: &[u8]) {
        let profile = self.streams[slot].stream.profile;
        let mut again = Again::Handled;
        self.with(now, slot, |stream, _, _| {
            again = stream.handle_message_1(message)?;
            Ok(())
        });
        if again == Again::Refuse {
            let wire = reset(&self.streams[slot].stream.id, refusal(profile));
            self.queue(wire);
        }
    }

    fn handle_message_2(&mut self, now: Instant, slot: usize, message: &[u8]) {
        let mut opened = false;
        self.with(now, slot, |stream, stats, _| {
            opened = stream.handle_message_2(message, stats)?;
            Ok(())
        });
        if opened {
            self.stats.opened += 1;
            let key = self.key(slot);
            self.events.push_back(Event::Opened { key });
        }
    }

    // ---- transmission --------------------------------------------------------

    fn poll_control(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(slot) = self.control.pop_front() {
            self.streams[slot].in_control = false;
            let mut wire = None;
            self.with(now, slot, |stream, _, now| {
                wire = stream.poll_control(now)?;
                Ok(())
            });
            if wire.is_some() {
                return wire;
            }
        }
        None
    }

    fn poll_record(&mut self, now: Instant) -> Option<Bytes> {
        while let Some(slot) = self.records.pop_front() {
            self.streams[slot].in_records = false;
            let mut scratch = std::mem::take(&mut self.scratch);
            let mut wire = None;
            self.with(now, slot, |stream, stats, now| {
                wire = stream.poll_record(now, &mut scratch, stats)?;
                Ok(())
            });
            self.scratch = scratch;
            if wire.is_some() {
                return wire;
            }
        }
        None
    }

    /// Queues a frame of a stream that is gone or never was.
    fn queue(&mut self, wire: Bytes) {
        if self.gone.len() < CONTROL_QUEUE_FRAMES {
            self.gone.push_back(wire);
        } else {
            self.stats.control_dropped += 1;
        }
    }

    // ---- bookkeeping ---------------------------------------------------------

    /// Changes one stream and draws every consequence.
    fn with(
        &mut self,
        now: Instant,
        slot: usize,
        change: impl FnOnce(&mut Stream, &mut Stats, Instant) -> Result<(), Ending>,
    ) {
        let Some(entry) = self.streams.get_mut(slot) else { return };
        if let Err(ending) = change(&mut entry.stream, &mut self.stats, now) {
            self.end(now, slot, ending);
        } else if entry.stream.is_finished() && !entry.reported {
            entry.reported = true;
            self.report(slot, Closed::Finished);
        }
        self.refresh(slot);
        self.release_if_read_out(slot);
    }

    fn end(&mut self, now: Instant, slot: usize, ending: Ending) {
        let key = self.key(slot);
        let stream = &mut self.streams[slot].stream;
        if stream.is_asking() && ending.why == Closed::PeerMisbehaved(Misbehaviour::Impatient) {
            self.stats.handshake_failures += 1;
            self.admission.failed(now);
        }
        let (wire, writer_waits) = stream.end(ending);
        let (id, reported) = (stream.id.clone(), self.streams[slot].reported);
        if self.index.get(&id) == Some(&slot) {
            self.index.remove(&id);
        }
        if let Some(wire) = wire
            && self.socket
        {
            self.queue(wire);
        }
        if writer_waits && !reported {
            self.events.push_back(Event::Writable { key });
        }
    }

    /// Tells the application and the rings what a stream wants.
    fn refresh(&mut self, slot: usize) {
        let key = self.key(slot);
        let entry = &mut self.streams[slot];
        if !entry.reported && entry.stream.take_readable() {
            self.events.push_back(Event::Readable { key });
        }
        if !entry.reported && entry.stream.take_writable() {
            self.events.push_back(Event::Writable { key });
        }
        if let Some(at) = entry.stream.poll_timeout()
            && entry.timer.is_none_or(|timer| at < timer)
        {
            if let Some(timer) = entry.timer.replace(at) {
                self.timers.remove(&(timer, slot));
            }
            self.timers.insert((at, slot));
        }
        self.schedule(slot);
    }

    /// Puts a stream into the rings that it belongs in.
    fn schedule(&mut self, slot: usize) {
        let entry = &mut self.streams[slot];
        if !entry.in_control && entry.stream.wants_control() {
            entry.in_control = true;
            self.control.push_back(slot);
        }
        if !entry.in_records && entry.stream.wants_record() {
            entry.in_records = true;
            self.records.push_back(slot);
        }
        let congested = entry.stream.is_congested();
        if congested != std::mem::replace(&mut entry.congested, congested) {
            if congested {
                self.congested += 1;
            } else {
                self.congested -= 1;
            }
        }
    }

    fn release_if_read_out(&mut self, slot: usize) {
        if let Some(why) = self.streams.get(slot).and_then(|entry| entry.stream.read_out()) {
            if !self.streams[slot].reported {
                self.report(slot, why);
            }
            self.remove(slot);
        }
    }

    fn report(&mut self, slot: usize, why: Closed) {
        let key = self.key(slot);
        self.stats.closed += 1;
        self.events.push_back(Event::Closed { key, why });
    }

    fn insert(&mut self, stream: Stream) -> Key {
        self.generation = self.generation.wrapping_add(1);
        let id = stream.id.clone();
        let slot = self.streams.insert(Entry {
            generation: self.generation,
            stream,
            in_control: false,
            in_records: false,
            timer: None,
            congested: false,
            reported: false,
        });
        self.index.insert(id, slot);
        self.refresh(slot);
        self.key(slot)
    }

    fn remove(&mut self, slot: usize) {
        let entry = self.streams.remove(slot);
        if self.index.get(&entry.stream.id) == Some(&slot) {
            self.index.remove(&entry.stream.id);
        }
        if entry.in_control {
            self.control.retain(|other| *other != slot);
        }
        if entry.in_records {
            self.records.retain(|other| *other != slot);
        }
        if let Some(timer) = entry.timer {
            self.timers.remove(&(timer, slot));
        }
        self.congested -= usize::from(entry.congested);
    }

    fn failed(&mut self, now: Instant) {
        self.stats.handshake_failures += 1;
        self.admission.failed(now);
    }

    /// A handshake's randomness. The generator is replaced by its own output
    /// each time: whoever steals it later cannot run it backwards to the keys
    /// of earlier streams.
    fn seed(&mut self) -> Zeroizing<[u8; 32]> {
        let (mut seed, mut next) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        self.rng.fill_bytes(seed.as_mut_slice());
        self.rng.fill_bytes(next.as_mut_slice());
        self.rng = ChaCha20Rng::from_seed(*next);
        seed
    }

    fn slots(&self) -> Vec<usize> {
        self.streams.iter().map(|(slot, _)| slot).collect()
    }

    fn key(&self, slot: usize) -> Key {
        Key { slot, generation: self.streams[slot].generation }
    }

    fn find(&self, key: Key) -> Option<usize> {
        self.streams
            .get(key.slot)
            .is_some_and(|entry| entry.generation == key.generation && !entry.reported)
            .then_some(key.slot)
    }
}

/// What a refused handshake is told: stock executors have one word for all.
fn refusal(profile: Profile) -> ResetReason {
    if profile.is_reliable() { ResetReason::HandshakeRefused } else { ResetReason::ProtocolError }
}

/// WIRE.md, section 4.
fn acceptable(authorization: &[u8]) -> bool {
    authorization.len() <= AUTHORIZATION_MAX_BYTES && std::str::from_utf8(authorization).is_ok()
}
