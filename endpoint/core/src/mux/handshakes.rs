//! Handshakes at both ends: connecting, authorizing and refusing.

use std::time::Instant;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::limits::AUTHORIZATION_MAX_BYTES;
use rendez_proto::profile::Profile;
use zeroize::Zeroizing;

use super::Mux;
use super::handshake_limiter::Throttled;
use crate::config::{Connect, Event, Key, Role};
use crate::error::{ConnectError, Refusal};
use crate::noise::{self, Authorized, Prologue};
use crate::stream::{Connecting, HandshakeReply, Stream, reset, wire_name};

impl Mux {
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
        let connecting = Connecting::new(&stream, profile, registration, handshake, message, now);
        Ok(self.insert(Stream::connecting(stream, profile, connecting)))
    }

    /// Accepts a peer. `authorized` must come from the handshake that
    /// [`Event::AuthorizationNeeded`] reported; with the proof of another key
    /// the peer is refused. Does nothing if the stream no longer waits for a
    /// verdict.
    pub fn authorize(&mut self, now: Instant, key: Key, authorized: Authorized) {
        let Some(slot) = self.find(key) else { return };
        let (socket, entry) = (self.socket, &mut self.streams[slot]);
        if !entry.stream.is_authorizing() {
            return;
        }
        match entry.stream.authorize(now, authorized, socket, &self.stream_config) {
            Ok(message_2) => {
                self.stats.opened += 1;
                self.events.push_back(Event::Opened { key });
                self.stateless_frames.extend(message_2);
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

    /// Refuses a peer. No event follows. Does nothing if the stream no longer
    /// waits for a verdict.
    pub fn refuse(&mut self, now: Instant, key: Key, why: Refusal) {
        let Some(slot) = self.find(key) else { return };
        let stream = &mut self.streams[slot].stream;
        if !stream.is_authorizing() {
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

    pub(super) fn handle_unknown(&mut self, now: Instant, frame: Frame) {
        self.stats.unknown_stream += 1;
        if self.config.role != Role::Executor {
            return; // a harness ignores other streams (docs/codex-wire.md#frame)
        }
        match frame.body {
            Body::Handshake { message, profile } => {
                self.handle_new_handshake(now, frame.stream, &profile, &message);
            }
            // The stream's profile is unknown; peers of every profile
            // understand this reason.
            Body::Data { .. } => {
                self.queue(reset(&frame.stream, ResetReason::ProtocolError));
            }
            // Only our own profiles prove these frames. A peer that received an
            // old resume may send nothing but acknowledgements while it waits.
            Body::Resume { .. } | Body::Ack | Body::Heartbeat if frame.proof.is_some() => {
                self.queue(reset(&frame.stream, ResetReason::UnknownStream));
            }
            Body::Resume { .. } | Body::Reset { .. } | Body::Ack | Body::Heartbeat => {}
        }
    }

    pub(super) fn handle_new_handshake(
        &mut self,
        now: Instant,
        id: StreamId,
        profile: &str,
        message: &[u8],
    ) {
        let offered = self.config.profiles.iter().find(|offer| wire_name(**offer) == profile);
        let pending =
            self.streams.iter().filter(|(_, entry)| entry.stream.is_authorizing()).count();
        let admitted =
            self.handshake_limiter.admit(now, &self.config.limits, self.streams.len(), pending);
        let (Some(&profile), Ok(()), Some(registration)) = (offered, admitted, &self.registration)
        else {
            if admitted == Err(Throttled) {
                self.stats.handshakes_throttled += 1;
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
        let pending = handshake.pending();
        let stream = id.clone();
        let key = self.insert(Stream::authorizing(id, profile, handshake, message, now));
        self.events.push_back(Event::AuthorizationNeeded {
            key,
            stream,
            registration,
            peer,
            authorization,
            pending,
        });
    }

    pub(super) fn handle_message_1(&mut self, now: Instant, slot: usize, message: &[u8]) {
        let profile = self.streams[slot].stream.profile;
        let mut reply = HandshakeReply::None;
        self.with(now, slot, |stream, _, _| {
            reply = stream.handle_message_1(message)?;
            Ok(())
        });
        if reply == HandshakeReply::Refuse {
            let wire = reset(&self.streams[slot].stream.id, refusal(profile));
            self.queue(wire);
        }
    }

    pub(super) fn handle_message_2(&mut self, now: Instant, slot: usize, message: &[u8]) {
        let mut opened = false;
        self.with_config(now, slot, |stream, config, stats, _| {
            opened = stream.handle_message_2(message, config, stats)?;
            Ok(())
        });
        if opened {
            self.stats.opened += 1;
            let key = self.key(slot);
            self.events.push_back(Event::Opened { key });
        }
    }

    fn failed(&mut self, now: Instant) {
        self.stats.handshake_failures += 1;
        self.handshake_limiter.record_failure(now);
    }

    /// Returns the randomness of one handshake. The generator is replaced by
    /// its own output each time, so a generator stolen later does not reveal
    /// the keys of earlier streams.
    fn seed(&mut self) -> Zeroizing<[u8; 32]> {
        let (mut seed, mut next) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        self.rng.fill_bytes(seed.as_mut_slice());
        self.rng.fill_bytes(next.as_mut_slice());
        self.rng = ChaCha20Rng::from_seed(*next);
        seed
    }
}

/// The reset reason for a refused handshake; stock executors use one for all
/// cases.
fn refusal(profile: Profile) -> ResetReason {
    if profile.is_reliable() { ResetReason::HandshakeRefused } else { ResetReason::ProtocolError }
}

/// Whether the authorization is within the limits
/// (docs/codex-wire.md#handshake-limits).
fn acceptable(authorization: &[u8]) -> bool {
    authorization.len() <= AUTHORIZATION_MAX_BYTES && std::str::from_utf8(authorization).is_ok()
}
