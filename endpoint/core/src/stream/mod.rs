//! One stream, from its handshake to its end.
//!
//! ```text
//! connect ─► Dialing ──message 2──────────────┐
//!                                             ▼
//! message 1 ─► Asking ──authorize──────────► Open ──finished──► Ended ──read out──► gone
//!                 │                           │                   ▲
//!                 └── refused, impatient,     └── reset, lost, ───┘
//!                     reset, timeout ► Ended      misbehaved
//! ```
//!
//! A reliable stream that is open also knows whether its peer can be reached
//! ([`link`]). What ends a stream is an [`Ending`]: why, and who is told. The
//! [`Mux`](crate::Mux) turns it into an event and a frame.

mod control;
mod dialing;
mod ending;
mod link;
mod open;
mod reliable;

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::limits::AUTHORIZATION_TIMEOUT;
use rendez_proto::profile::Profile;
use sha2::{Digest as _, Sha256};

use crate::error::{Closed, Misbehaviour, SendError};
use crate::framing::Inbox;
use crate::noise::{Authorized, AwaitingAuthorization, HandshakeError};
use crate::stats::Stats;
use crate::window::{Budget, RECEIVE_MEMORY_BYTES, SEND_MEMORY_BYTES};

pub(crate) use dialing::Dialing;
pub(crate) use ending::{Ending, Tell, reset, wire_name};
use open::Open;
pub use open::{CODEX_UNREAD_MAX_BYTES, CODEX_UNREAD_TIMEOUT};
pub use reliable::{ACK_DELAY, ACK_EVERY_RECORDS};

/// See the module.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) profile: Profile,
    state: StreamState,
    /// The application was told that there is something to read, and has not
    /// read until there was nothing.
    readable: bool,
}

#[derive(Debug)]
enum StreamState {
    Dialing(Box<Dialing>),
    Asking(Box<Asking>),
    Open(Box<Open>, Option<Accepted>),
    Ended { why: Closed, unread: Inbox },
}

/// What a reliable stream may have.
#[derive(Debug)]
pub(crate) struct Terms {
    /// How long it outlives its socket.
    pub(crate) grace: Duration,
    /// For windows that grow, of all streams together.
    pub(crate) send_memory: Budget,
    pub(crate) receive_memory: Budget,
}

impl Terms {
    pub(crate) fn new(grace: Duration) -> Self {
        let (send, receive) = (SEND_MEMORY_BYTES, RECEIVE_MEMORY_BYTES);
        Self { grace, send_memory: Budget::new(send), receive_memory: Budget::new(receive) }
    }
}

/// An executor's side of a handshake that waits for the registry's verdict.
#[derive(Debug)]
struct Asking {
    handshake: AwaitingAuthorization,
    accepted: Accepted,
    until: Instant,
}

/// The digest of the message 1 that was accepted, to know it when it comes
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Accepted([u8; 32]);

impl Accepted {
    fn new(message_1: &[u8]) -> Self {
        Self(Sha256::digest(message_1).into())
    }
}

/// What to do about a handshake frame for a stream that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Nothing more.
    Handled,
    /// Tell the peer, but keep the stream.
    Refuse,
}

impl Stream {
    pub(crate) fn dialing(id: StreamId, profile: Profile, dialing: Dialing) -> Self {
        Self { id, profile, state: StreamState::Dialing(Box::new(dialing)), readable: false }
    }

    pub(crate) fn asking(
        id: StreamId,
        profile: Profile,
        handshake: AwaitingAuthorization,
        message_1: &[u8],
        now: Instant,
    ) -> Self {
        let asking = Asking {
            handshake,
            accepted: Accepted::new(message_1),
            until: now + AUTHORIZATION_TIMEOUT,
        };
        Self { id, profile, state: StreamState::Asking(Box::new(asking)), readable: false }
    }

    pub(crate) fn is_asking(&self) -> bool {
        matches!(self.state, StreamState::Asking(_))
    }

    // ---- the executor's verdict --------------------------------------------

    /// Opens the stream. A stream that does not ask is left alone.
    pub(crate) fn authorize(
        &mut self,
        now: Instant,
        proof: Authorized,
        socket: bool,
        terms: &Terms,
    ) -> Result<Option<Bytes>, HandshakeError> {
        let Some(asking) = self.take_asking() else { return Ok(None) };
        let (keys, message) = asking.handshake.authorize(proof)?;
        let message_2 = self.message_2(message);
        let (open, once) = if self.profile.is_reliable() {
            let open =
                Open::reliable_responder(terms, keys.sealer, keys.opener, now, socket, message_2);
            (open, None) // it repeats message 2 until that is confirmed
        } else {
            (Open::codex_responder(keys.sealer, keys.opener), Some(message_2))
        };
        self.state = StreamState::Open(Box::new(open), Some(asking.accepted));
        Ok(once)
    }

    /// Message 2 that tells the peer about rejected credentials.
    pub(crate) fn reject(&mut self) -> Option<Bytes> {
        let message = self.take_asking()?.handshake.reject().ok()?;
        Some(self.message_2(message))
    }

    fn take_asking(&mut self) -> Option<Asking> {
        if !self.is_asking() {
            return None;
        }
        let ended = StreamState::Ended { why: Closed::HandshakeRejected, unread: Inbox::default() };
        match std::mem::replace(&mut self.state, ended) {
            StreamState::Asking(asking) => Some(*asking),
            _ => None,
        }
    }

    fn message_2(&self, message: Bytes) -> Bytes {
        let body = Body::Handshake { message, profile: wire_name(self.profile) };
        Frame::bare(self.id.clone(), body).encode()
    }

    // ---- the application ---------------------------------------------------

    pub(crate) fn send(&mut self, message: &Bytes) -> Result<(), SendError> {
        match &mut self.state {
            StreamState::Open(open, _) => open.send(message),
            StreamState::Dialing(_) | StreamState::Asking(_) => Err(SendError::Blocked),
            StreamState::Ended { why, .. } => Err(SendError::Closed(*why)),
        }
    }

    pub(crate) fn recv(&mut self) -> Option<Bytes> {
        let message = match &mut self.state {
            StreamState::Open(open, _) => open.recv(),
            StreamState::Ended { unread, .. } => unread.pop(),
            StreamState::Dialing(_) | StreamState::Asking(_) => None,
        };
        if message.is_none() {
            self.readable = false;
        }
        message
    }

    /// Graceful for an open stream; any other is over at once.
    pub(crate) fn close(&mut self) -> Result<(), Ending> {
        match &mut self.state {
            StreamState::Open(open, _) => {
                open.close();
                Ok(())
            }
            StreamState::Dialing(_) | StreamState::Asking(_) => {
                Err(Ending { why: Closed::Finished, tell: Tell::Peer(ResetReason::Finished) })
            }
            StreamState::Ended { unread, .. } => {
                *unread = Inbox::default();
                Ok(())
            }
        }
    }

    /// Whether the application must be told that there is something to read.
    /// Asking counts as telling.
    pub(crate) fn take_readable(&mut self) -> bool {
        let waits = match &self.state {
            StreamState::Open(open, _) => !open.inbox.is_empty(),
            StreamState::Ended { unread, .. } => !unread.is_empty(),
            StreamState::Dialing(_) | StreamState::Asking(_) => false,
        };
        waits && !std::mem::replace(&mut self.readable, true)
    }

    pub(crate) fn take_writable(&mut self) -> bool {
        match &mut self.state {
            StreamState::Open(open, _) => open.take_writable(),
            _ => false,
        }
    }

    pub(crate) fn is_congested(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.is_congested())
    }

    /// Whether its peer was asked for a sign of life and gave none yet.
    pub(crate) fn is_probing(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.is_asking())
    }

    /// Whether the application is done with the stream, though it lingers to
    /// repeat its end.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.is_announced())
    }

    /// The reason, once the stream is over and everything was read.
    pub(crate) fn read_out(&self) -> Option<Closed> {
        match &self.state {
            StreamState::Ended { why, unread } if unread.is_empty() => Some(*why),
            _ => None,
        }
    }

    /// Ends the stream; what arrived stays readable. Returns the frame that
    /// tells the peer, and whether a writer waits to hear of it.
    pub(crate) fn end(&mut self, ending: Ending) -> (Option<Bytes>, bool) {
        let unauthenticated = |reason: ResetReason| {
            let reason = match (self.profile.is_reliable(), reason) {
                (true, reason) | (false, reason @ ResetReason::Finished) => reason,
                (false, _) => ResetReason::ProtocolError, // all that stock executors say
            };
            reset(&self.id, reason)
        };
        let mut unread = Inbox::default();
        let mut owes_writable = false;
        let farewell = match (&mut self.state, ending.tell) {
            (StreamState::Ended { .. }, _) => return (None, false),
            (StreamState::Open(open, _), tell) => {
                unread = open.take_unread();
                owes_writable = open.owes_writable;
                match tell {
                    Tell::Nobody => None,
                    Tell::Peer(reason) => {
                        open.farewell(&self.id, reason).or_else(|| Some(unauthenticated(reason)))
                    }
                }
            }
            (_, Tell::Nobody) => None,
            (_, Tell::Peer(reason)) => Some(unauthenticated(reason)),
        };
        self.state = StreamState::Ended { why: ending.why, unread };
        (farewell, owes_writable)
    }

    // ---- the socket --------------------------------------------------------

    pub(crate) fn socket_lost(&mut self, now: Instant) -> Result<(), Ending> {
        match &mut self.state {
            StreamState::Open(open, _) => open.socket_lost(now),
            StreamState::Dialing(_) | StreamState::Asking(_) if !self.profile.is_reliable() => {
                Err(Ending { why: Closed::Lost, tell: Tell::Nobody })
            }
            StreamState::Dialing(_) | StreamState::Asking(_) | StreamState::Ended { .. } => Ok(()),
        }
    }

    pub(crate) fn socket_opened(&mut self, now: Instant) {
        match &mut self.state {
            StreamState::Open(open, _) => open.socket_opened(now),
            StreamState::Dialing(dialing) => dialing.again(),
            StreamState::Asking(_) | StreamState::Ended { .. } => {}
        }
    }

    /// Any frame but a handshake.
    pub(crate) fn handle_frame(
        &mut self,
        now: Instant,
        frame: Frame,
        stats: &mut Stats,
    ) -> Result<(), Ending> {
        match (&mut self.state, &frame.body) {
            (StreamState::Open(open, _), _) => open.handle_frame(now, frame, stats),
            (StreamState::Dialing(_) | StreamState::Asking(_), Body::Reset { reason }) => {
                Err(Ending::reset_by_peer(reason))
            }
            // WIRE.md, section 4: early data cancels the handshake.
            (StreamState::Asking(_), Body::Data { .. }) if !self.profile.is_reliable() => {
                Err(Ending::misbehaved(Misbehaviour::Impatient))
            }
            _ => {
                stats.unexpected += 1;
                Ok(())
            }
        }
    }

    /// A handshake frame, at an executor.
    pub(crate) fn handle_message_1(&mut self, message: &[u8]) -> Result<Again, Ending> {
        let known = match &self.state {
            StreamState::Asking(asking) => Some(asking.accepted),
            StreamState::Open(_, accepted) => *accepted,
            StreamState::Dialing(_) | StreamState::Ended { .. } => None,
        };
        let same = known == Some(Accepted::new(message));
        match &mut self.state {
            StreamState::Open(open, _) if same => {
                open.handshake_again();
                Ok(Again::Handled)
            }
            // WIRE.md, section 3: refused, but the stream lives.
            StreamState::Open(..) if !self.profile.is_reliable() => Ok(Again::Refuse),
            StreamState::Asking(_) if !self.profile.is_reliable() => {
                Err(Ending::misbehaved(Misbehaviour::Impatient))
            }
            // A relay may repeat or damage a handshake; that must not hurt.
            _ => Ok(Again::Handled),
        }
    }

    /// A handshake frame, at an orchestrator. Returns whether it opened the
    /// stream.
    pub(crate) fn handle_message_2(
        &mut self,
        message: &[u8],
        terms: &Terms,
        stats: &mut Stats,
    ) -> Result<bool, Ending> {
        match &mut self.state {
            StreamState::Dialing(dialing) => {
                let Some(keys) = dialing.finish(message, stats)? else { return Ok(false) };
                let open = if self.profile.is_reliable() {
                    Open::reliable_initiator(terms, keys.sealer, keys.opener)
                } else {
                    Open::codex_initiator(keys.sealer, keys.opener)
                };
                self.state = StreamState::Open(Box::new(open), None);
                Ok(true)
            }
            StreamState::Open(open, _) => {
                open.confirm_again();
                Ok(false)
            }
            StreamState::Asking(_) | StreamState::Ended { .. } => Ok(false),
        }
    }

    pub(crate) fn wants_control(&self) -> bool {
        match &self.state {
            StreamState::Dialing(dialing) => dialing.wants_transmit(),
            StreamState::Open(open, _) => open.wants_control(),
            StreamState::Asking(_) | StreamState::Ended { .. } => false,
        }
    }

    pub(crate) fn poll_control(&mut self, now: Instant) -> Result<Option<Bytes>, Ending> {
        match &mut self.state {
            StreamState::Dialing(dialing) => Ok(dialing.poll_transmit(now)),
            StreamState::Open(open, _) => open.poll_control(now, &self.id),
            StreamState::Asking(_) | StreamState::Ended { .. } => Ok(None),
        }
    }

    pub(crate) fn wants_record(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.wants_record())
    }

    pub(crate) fn poll_record(
        &mut self,
        now: Instant,
        scratch: &mut BytesMut,
        stats: &mut Stats,
    ) -> Result<Option<Bytes>, Ending> {
        match &mut self.state {
            StreamState::Open(open, _) => open.poll_record(now, &self.id, scratch, stats),
            _ => Ok(None),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), Ending> {
        match &mut self.state {
            StreamState::Dialing(dialing) => dialing.handle_timeout(now),
            StreamState::Asking(asking) if asking.until <= now => Err(Ending {
                why: Closed::HandshakeTimeout,
                tell: Tell::Peer(ResetReason::HandshakeRefused),
            }),
            StreamState::Open(open, _) => open.handle_timeout(now),
            StreamState::Asking(_) | StreamState::Ended { .. } => Ok(()),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            StreamState::Dialing(dialing) => Some(dialing.poll_timeout()),
            StreamState::Asking(asking) => Some(asking.until),
            StreamState::Open(open, _) => open.poll_timeout(),
            StreamState::Ended { .. } => None,
        }
    }
}
