//! All streams of one endpoint, over one socket at a time.
//!
//! Transmission order: frames without a live stream, then handshakes, resumes
//! and acknowledgements, then one record of each ready stream in turn. Round robin is
//! fair to within one record, so the owner of the socket limits records to what the path
//! takes in a few milliseconds.

mod handshake_limiter;
mod handshakes;
mod stream_table;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use rendez_proto::frame::{Body, Frame};
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::limits::RECORD_PLAINTEXT_MAX_BYTES;
use slab::Slab;

use crate::config::{Config, Event, Key, Role};
use crate::error::{Closed, Misbehaviour, SendError};
use crate::stats::Stats;
use crate::stream::{StreamConfig, StreamEnd};
use handshake_limiter::HandshakeLimiter;
use stream_table::StreamEntry;

/// The endpoint as a state machine.
///
/// The owner of the socket calls, in this order:
/// [`handle_timeout`](Self::handle_timeout),
/// [`poll_transmit`](Self::poll_transmit),
/// [`handle_message`](Self::handle_message), [`poll_event`](Self::poll_event).
/// The [crate] documentation states when.
#[derive(Debug)]
pub struct Mux {
    config: Config,
    rng: ChaCha20Rng,
    /// Whether a socket is attached. New streams of an executor are bound to
    /// `registration` in their prologue.
    socket: bool,
    registration: Option<RegistrationId>,
    streams: Slab<StreamEntry>,
    /// The live streams, without those that ended and have unread messages.
    index: HashMap<StreamId, usize>,
    generation: u32,
    handshake_limiter: HandshakeLimiter,
    stream_config: StreamConfig,
    /// Frames that belong to no live stream.
    stateless_frames: VecDeque<Bytes>,
    control: VecDeque<usize>,
    records: VecDeque<usize>,
    timers: BTreeSet<(Instant, usize)>,
    backpressured: usize,
    /// Set when a stream begins to probe its peer; cleared by `poll_ping`.
    ping_wanted: bool,
    events: VecDeque<Event>,
    stats: Stats,
    scratch: BytesMut,
}

impl Mux {
    /// Creates an endpoint without a socket. All its randomness follows from
    /// `rng_seed`: 32 uniformly random secret bytes, used once.
    pub fn new(config: Config, rng_seed: [u8; 32]) -> Self {
        let stream_config = StreamConfig::new(config.limits.grace);
        Self {
            config,
            rng: ChaCha20Rng::from_seed(rng_seed),
            socket: false,
            registration: None,
            streams: Slab::new(),
            index: HashMap::new(),
            generation: 0,
            handshake_limiter: HandshakeLimiter::default(),
            stream_config,
            stateless_frames: VecDeque::new(),
            control: VecDeque::new(),
            records: VecDeque::new(),
            timers: BTreeSet::new(),
            backpressured: 0,
            ping_wanted: false,
            events: VecDeque::new(),
            stats: Stats::default(),
            scratch: BytesMut::new(),
        }
    }

    // ---- the socket --------------------------------------------------------

    /// Attaches a socket to an executor of `registration`. New streams of an executor
    /// are bound to it. Open streams keep theirs, and reliable ones resume; streams that
    /// connect to another registration end.
    pub fn socket_opened(&mut self, now: Instant, registration: RegistrationId) {
        self.socket = true;
        for slot in self.indices() {
            self.with(now, slot, |stream, _, now| stream.socket_opened(now, &registration));
        }
        self.registration = Some(registration);
    }

    /// Detaches the socket. Streams of the Codex profile end; reliable ones
    /// wait for the next socket.
    pub fn socket_lost(&mut self, now: Instant) {
        self.socket = false;
        self.stateless_frames.clear();
        for slot in self.indices() {
            self.with(now, slot, |stream, _, now| stream.socket_lost(now));
        }
    }

    /// Handles one message from the socket. An invalid one is counted in
    /// [`stats`](Self::stats) or ends one stream.
    pub fn handle_message(&mut self, now: Instant, wire: Bytes) {
        if !self.socket {
            return; // delivered late by a socket that was lost
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

    /// Counts a text message from the socket as malformed; it has no other
    /// effect.
    pub fn handle_text(&mut self) {
        self.stats.frames_in += 1;
        self.stats.malformed += 1;
    }

    /// Whether the socket should be read. It should not while a stream without
    /// credit of its own (Codex profile) holds too much unread; at an executor
    /// such a stream soon ends.
    pub fn wants_read(&self) -> bool {
        self.backpressured == 0
    }

    /// Whether the shell should ping the peer, because a stream has begun to
    /// probe its own. Returns `true` once per request.
    pub fn poll_ping(&mut self) -> bool {
        std::mem::take(&mut self.ping_wanted)
    }

    /// Whether another socket can replace this one without loss: no stream has
    /// the Codex profile.
    pub fn can_resume(&self) -> bool {
        self.streams.iter().all(|(_, entry)| entry.stream.profile.is_reliable())
    }

    /// Returns the next message for the socket. Call it while the socket has
    /// room. A new record has at most `record_max_bytes` of plaintext, at least
    /// one and at most [`RECORD_PLAINTEXT_MAX_BYTES`]; a retransmission has the
    /// size that it had.
    pub fn poll_transmit(&mut self, now: Instant, record_max_bytes: usize) -> Option<Bytes> {
        if !self.socket {
            return None;
        }
        let record_max_bytes = record_max_bytes.clamp(1, RECORD_PLAINTEXT_MAX_BYTES);
        let wire = self
            .stateless_frames
            .pop_front()
            .or_else(|| self.poll_control(now))
            .or_else(|| self.poll_record(now, record_max_bytes))
            .or_else(|| self.stateless_frames.pop_front())?; // a reset that the polls queued
        self.stats.frames_out += 1;
        Some(wire)
    }

    /// The time at which to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Handles the timers that have expired.
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

    /// Returns the next whole message. `None`: wait for [`Event::Readable`].
    pub fn recv(&mut self, key: Key) -> Option<Bytes> {
        let slot = self.find(key)?;
        let message = self.streams[slot].stream.recv();
        self.schedule(slot);
        self.release_if_drained(slot);
        message
    }

    /// Closes a stream gracefully: queued messages are delivered first, then
    /// the peer is notified, then [`Event::Closed`] follows. Until then
    /// messages may still be received; unread ones are dropped at the end.
    pub fn close(&mut self, now: Instant, key: Key) {
        if let Some(slot) = self.find(key) {
            self.with(now, slot, |stream, _, _| stream.close());
        }
    }

    /// Ends a stream at once because its peer sent invalid messages. The peer
    /// is notified; queued and unread messages are dropped. [`Event::Closed`]
    /// follows.
    pub fn reset(&mut self, now: Instant, key: Key) {
        if let Some(slot) = self.find(key) {
            self.with(now, slot, |stream, _, _| {
                stream.close()?;
                Err(StreamEnd::misbehaved(Misbehaviour::InvalidMessage))
            });
        }
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Streams that take a slot: those that are connecting, wait for a verdict,
    /// are open, or ended with unread messages.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Returns the counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
