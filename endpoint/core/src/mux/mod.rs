//! All streams of one endpoint over one socket after another.
//!
//! Transmission order: frames of streams that are gone, then handshakes,
//! resumes and acknowledgements, then one record of each ready stream in turn.
//! A record is at most 60 KiB, so plain turns are fair to within one record.

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
use slab::Slab;

use crate::config::{Config, Event, Key, Role};
use crate::error::{Closed, Misbehaviour, SendError};
use crate::stats::Stats;
use crate::stream::{ReliableConfig, StreamEnd};
use handshake_limiter::HandshakeLimiter;
use stream_table::StreamEntry;

/// The endpoint. See the [crate] for the order in which to call it.
#[derive(Debug)]
pub struct Mux {
    config: Config,
    rng: ChaCha20Rng,
    /// Whether there is a socket, and under which registration new streams of
    /// an executor are prologued.
    socket: bool,
    registration: Option<RegistrationId>,
    streams: Slab<StreamEntry>,
    /// The live streams; those that ended and wait to be read out are not in it.
    index: HashMap<StreamId, usize>,
    generation: u32,
    handshake_limiter: HandshakeLimiter,
    reliable_config: ReliableConfig,
    /// Frames that belong to no live stream.
    stateless_frames: VecDeque<Bytes>,
    control: VecDeque<usize>,
    records: VecDeque<usize>,
    timers: BTreeSet<(Instant, usize)>,
    backpressured: usize,
    /// A stream has begun to ask for its peer since somebody looked.
    ping_wanted: bool,
    events: VecDeque<Event>,
    stats: Stats,
    scratch: BytesMut,
}

impl Mux {
    /// An endpoint without a socket. All its randomness follows from
    /// `rng_seed`: 32 uniformly random secret bytes, used once.
    pub fn new(config: Config, rng_seed: [u8; 32]) -> Self {
        let reliable_config = ReliableConfig::new(config.limits.grace);
        Self {
            config,
            rng: ChaCha20Rng::from_seed(rng_seed),
            socket: false,
            registration: None,
            streams: Slab::new(),
            index: HashMap::new(),
            generation: 0,
            handshake_limiter: HandshakeLimiter::default(),
            reliable_config,
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

    /// A socket is up. An executor's new streams are bound to `registration`;
    /// streams that exist keep theirs, and reliable ones look for their peers.
    pub fn socket_opened(&mut self, now: Instant, registration: RegistrationId) {
        self.socket = true;
        self.registration = Some(registration);
        for slot in self.indices() {
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
        self.stateless_frames.clear();
        for slot in self.indices() {
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

    /// A text message arrived from the socket: no frame, whatever it says. It is
    /// counted as such and changes nothing.
    pub fn handle_text(&mut self) {
        self.stats.frames_in += 1;
        self.stats.malformed += 1;
    }

    /// Whether the socket should be read. It should not while a stream that
    /// has no credit of its own (Codex profile) holds too much unread; at an
    /// executor such a stream soon ends.
    pub fn wants_read(&self) -> bool {
        self.backpressured == 0
    }

    /// Whether the socket itself is in doubt: a stream has begun to miss its
    /// peer. Asking takes the doubt back.
    pub fn poll_ping(&mut self) -> bool {
        std::mem::take(&mut self.ping_wanted)
    }

    /// Whether another socket may take the place of this one without a loss:
    /// no stream is of the Codex profile.
    pub fn can_resume(&self) -> bool {
        self.streams.iter().all(|(_, entry)| entry.stream.profile.is_reliable())
    }

    /// The next message for the socket. Call it while the socket has room.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if !self.socket {
            return None;
        }
        let wire = self
            .stateless_frames
            .pop_front()
            .or_else(|| self.poll_control(now))
            .or_else(|| self.poll_record(now))
            .or_else(|| self.stateless_frames.pop_front())?; // a farewell that the polls left
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
        self.release_if_drained(slot);
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

    /// Ends a stream at once, because its peer sends what makes no sense. The
    /// peer is told; what waits for it is not sent, and what is unread dropped.
    /// [`Event::Closed`] follows.
    pub fn reset(&mut self, now: Instant, key: Key) {
        if let Some(slot) = self.find(key) {
            self.with(now, slot, |stream, _, _| {
                stream.close()?;
                Err(StreamEnd::misbehaved(Misbehaviour::InvalidMessage))
            });
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Streams that take a slot: those that are dialled, wait for a verdict, are
    /// open, or ended and were not read out.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }
}
