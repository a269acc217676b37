//! One stream, from its handshake to its end.
//!
//! ```text
//! connect ─► Connecting ──message 2───────────┐
//!                                             ▼
//! message 1 ─► Authorizing ──authorize─────► Open ──finished──► Ended ──all read──► removed
//!                 │                           │                   ▲
//!                 └── refused, early data,    └── reset, lost, ───┘
//!                     reset, timeout ► Ended      misbehaviour
//! ```
//!
//! An open reliable stream also tracks whether its peer can be reached
//! ([`path`]). A [`StreamEnd`] holds why a stream ends and how the peer learns
//! it; the [`Mux`](crate::Mux) turns it into an event and a frame.

mod connecting;
mod open;
mod path;
mod proofs;
mod reliable;
mod stream_config;
mod stream_end;

use std::time::Instant;

use bytes::{Bytes, BytesMut};
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::limits::AUTHORIZATION_TIMEOUT;
use rendez_proto::profile::Profile;
use sha2::{Digest as _, Sha256};

use crate::error::{Closed, Misbehaviour, SendError};
use crate::framing::ReceiveQueue;
use crate::noise::{Authorized, AwaitingAuthorization, HandshakeError};
use crate::stats::Stats;

pub(crate) use connecting::Connecting;
use open::Open;
pub use open::{CODEX_UNREAD_MAX_BYTES, CODEX_UNREAD_TIMEOUT};
pub use reliable::{ACK_DELAY, ACK_EVERY_RECORDS};
pub(crate) use stream_config::StreamConfig;
pub(crate) use stream_end::{StreamEnd, reset, wire_name};

/// One stream of a [`Mux`](crate::Mux).
///
/// The order of calls is that of the [`Mux`](crate::Mux): `handle_timeout` when
/// `poll_timeout` has passed, `poll_control` and then `poll_record` while the
/// socket has room, `handle_frame` (or `handle_message_1`, `handle_message_2`)
/// for a frame received. After each of them the `Mux` asks `take_readable`,
/// `take_writable` and `drained` for events.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) profile: Profile,
    state: StreamState,
    /// [`Event::Readable`](crate::Event::Readable) was emitted, and `recv` has
    /// not returned `None` since.
    readable: bool,
}

#[derive(Debug)]
enum StreamState {
    Connecting(Box<Connecting>),
    Authorizing(Box<Authorizing>),
    Open(Box<Open>, Option<Message1Digest>),
    Ended { why: Closed, unread: ReceiveQueue },
}

/// An executor's side of a handshake that waits for the registry's verdict.
#[derive(Debug)]
struct Authorizing {
    handshake: AwaitingAuthorization,
    accepted: Message1Digest,
    until: Instant,
}

/// The digest of the accepted message 1, to recognize a repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message1Digest([u8; 32]);

impl Message1Digest {
    fn new(message_1: &[u8]) -> Self {
        Self(Sha256::digest(message_1).into())
    }
}

/// The reply to a handshake frame for an existing stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeReply {
    /// No reply.
    None,
    /// Reset the handshake, but keep the stream.
    Refuse,
}

impl Stream {
    pub(crate) fn connecting(id: StreamId, profile: Profile, connecting: Connecting) -> Self {
        Self { id, profile, state: StreamState::Connecting(Box::new(connecting)), readable: false }
    }

    pub(crate) fn authorizing(
        id: StreamId,
        profile: Profile,
        handshake: AwaitingAuthorization,
        message_1: &[u8],
        now: Instant,
    ) -> Self {
        let authorizing = Authorizing {
            handshake,
            accepted: Message1Digest::new(message_1),
            until: now + AUTHORIZATION_TIMEOUT,
        };
        Self {
            id,
            profile,
            state: StreamState::Authorizing(Box::new(authorizing)),
            readable: false,
        }
    }

    pub(crate) fn is_authorizing(&self) -> bool {
        matches!(self.state, StreamState::Authorizing(_))
    }

    // ---- the executor's verdict --------------------------------------------

    /// Opens the stream, if it waits for a verdict.
    pub(crate) fn authorize(
        &mut self,
        now: Instant,
        authorized: Authorized,
        socket: bool,
        config: &StreamConfig,
    ) -> Result<Option<Bytes>, HandshakeError> {
        let Some(authorizing) = self.take_authorizing() else { return Ok(None) };
        let (keys, message) = authorizing.handshake.authorize(authorized)?;
        let message_2 = self.message_2(message);
        let (open, once) = if self.profile.is_reliable() {
            let open =
                Open::reliable_responder(config, keys.sealer, keys.opener, now, socket, message_2);
            (open, None) // sends message 2 until it is confirmed
        } else {
            (Open::codex_responder(config, keys.sealer, keys.opener), Some(message_2))
        };
        self.state = StreamState::Open(Box::new(open), Some(authorizing.accepted));
        Ok(once)
    }

    /// Returns a message 2 that reports rejected credentials.
    pub(crate) fn reject(&mut self) -> Option<Bytes> {
        let message = self.take_authorizing()?.handshake.reject().ok()?;
        Some(self.message_2(message))
    }

    fn take_authorizing(&mut self) -> Option<Authorizing> {
        if !self.is_authorizing() {
            return None;
        }
        let ended =
            StreamState::Ended { why: Closed::HandshakeRejected, unread: ReceiveQueue::default() };
        match std::mem::replace(&mut self.state, ended) {
            StreamState::Authorizing(authorizing) => Some(*authorizing),
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
            StreamState::Connecting(_) | StreamState::Authorizing(_) => Err(SendError::Blocked),
            StreamState::Ended { why, .. } => Err(SendError::Closed(*why)),
        }
    }

    pub(crate) fn recv(&mut self) -> Option<Bytes> {
        let message = match &mut self.state {
            StreamState::Open(open, _) => open.recv(),
            StreamState::Ended { unread, .. } => unread.pop(),
            StreamState::Connecting(_) | StreamState::Authorizing(_) => None,
        };
        if message.is_none() {
            self.readable = false;
        }
        message
    }

    /// Closes an open stream gracefully; ends any other at once.
    pub(crate) fn close(&mut self) -> Result<(), StreamEnd> {
        match &mut self.state {
            StreamState::Open(open, _) => {
                open.close();
                Ok(())
            }
            StreamState::Connecting(_) | StreamState::Authorizing(_) => {
                Err(StreamEnd { why: Closed::Finished, reset: Some(ResetReason::Finished) })
            }
            StreamState::Ended { unread, .. } => {
                *unread = ReceiveQueue::default();
                Ok(())
            }
        }
    }

    /// Whether to emit [`Event::Readable`](crate::Event::Readable). Returns
    /// `true` once until `recv` has returned `None`.
    pub(crate) fn take_readable(&mut self) -> bool {
        let waits = match &self.state {
            StreamState::Open(open, _) => !open.receive_queue.is_empty(),
            StreamState::Ended { unread, .. } => !unread.is_empty(),
            StreamState::Connecting(_) | StreamState::Authorizing(_) => false,
        };
        waits && !std::mem::replace(&mut self.readable, true)
    }

    pub(crate) fn take_writable(&mut self) -> bool {
        match &mut self.state {
            StreamState::Open(open, _) => open.take_writable(),
            _ => false,
        }
    }

    pub(crate) fn needs_backpressure(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.needs_backpressure())
    }

    /// Whether the peer was probed and has not answered yet.
    pub(crate) fn is_probing(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.is_probing())
    }

    /// Whether the application is done with the stream, though the stream
    /// remains to repeat its end.
    pub(crate) fn is_finished(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.is_announced())
    }

    /// The reason, once the stream has ended and every message was read.
    pub(crate) fn drained(&self) -> Option<Closed> {
        match &self.state {
            StreamState::Ended { why, unread } if unread.is_empty() => Some(*why),
            _ => None,
        }
    }

    /// Ends the stream; received messages stay readable. Returns the frame that
    /// notifies the peer, and whether a blocked writer must be woken.
    pub(crate) fn end(&mut self, end: StreamEnd) -> (Option<Bytes>, bool) {
        let unauthenticated = |reason: ResetReason| {
            let reason = match (self.profile.is_reliable(), reason) {
                (true, reason) | (false, reason @ ResetReason::Finished) => reason,
                (false, _) => ResetReason::ProtocolError, // the only reason of stock executors
            };
            reset(&self.id, reason)
        };
        let mut unread = ReceiveQueue::default();
        let mut writer_blocked = false;
        let reset_frame = match (&mut self.state, end.reset) {
            (StreamState::Ended { .. }, _) => return (None, false),
            (StreamState::Open(open, _), tell) => {
                unread = open.take_unread();
                writer_blocked = open.writer_blocked;
                match tell {
                    None => None,
                    Some(reason) => {
                        open.reset_frame(&self.id, reason).or_else(|| Some(unauthenticated(reason)))
                    }
                }
            }
            (_, None) => None,
            (_, Some(reason)) => Some(unauthenticated(reason)),
        };
        self.state = StreamState::Ended { why: end.why, unread };
        (reset_frame, writer_blocked)
    }

    // ---- the socket --------------------------------------------------------

    pub(crate) fn socket_lost(&mut self, now: Instant) -> Result<(), StreamEnd> {
        match &mut self.state {
            StreamState::Open(open, _) => open.socket_lost(now),
            StreamState::Connecting(_) | StreamState::Authorizing(_)
                if !self.profile.is_reliable() =>
            {
                Err(StreamEnd { why: Closed::Lost, reset: None })
            }
            StreamState::Connecting(_)
            | StreamState::Authorizing(_)
            | StreamState::Ended { .. } => Ok(()),
        }
    }

    pub(crate) fn socket_opened(
        &mut self,
        now: Instant,
        registration: &RegistrationId,
    ) -> Result<(), StreamEnd> {
        match &mut self.state {
            StreamState::Open(open, _) => open.socket_opened(now),
            StreamState::Connecting(connecting) => return connecting.socket_opened(registration),
            StreamState::Authorizing(_) | StreamState::Ended { .. } => {}
        }
        Ok(())
    }

    /// Handles any frame but a handshake.
    pub(crate) fn handle_frame(
        &mut self,
        now: Instant,
        frame: Frame,
        stats: &mut Stats,
    ) -> Result<(), StreamEnd> {
        match (&mut self.state, &frame.body) {
            (StreamState::Open(open, _), _) => open.handle_frame(now, frame, stats),
            (StreamState::Connecting(_) | StreamState::Authorizing(_), Body::Reset { reason }) => {
                Err(StreamEnd::reset_by_peer(reason))
            }
            // Early data cancels the handshake
            // (docs/codex-wire.md#handshake-limits).
            (StreamState::Authorizing(_), Body::Data { .. }) if !self.profile.is_reliable() => {
                Err(StreamEnd::misbehaved(Misbehaviour::EarlyData))
            }
            _ => {
                stats.unexpected += 1;
                Ok(())
            }
        }
    }

    /// Handles a handshake frame, at an executor.
    pub(crate) fn handle_message_1(&mut self, message: &[u8]) -> Result<HandshakeReply, StreamEnd> {
        let known = match &self.state {
            StreamState::Authorizing(authorizing) => Some(authorizing.accepted),
            StreamState::Open(_, accepted) => *accepted,
            StreamState::Connecting(_) | StreamState::Ended { .. } => None,
        };
        let same = known == Some(Message1Digest::new(message));
        match &mut self.state {
            StreamState::Open(open, _) if same => {
                open.on_repeated_message_1();
                Ok(HandshakeReply::None)
            }
            // Refused, but the stream stays open (docs/codex-wire.md#frame).
            StreamState::Open(..) if !self.profile.is_reliable() => Ok(HandshakeReply::Refuse),
            StreamState::Authorizing(_) if !self.profile.is_reliable() => {
                Err(StreamEnd::misbehaved(Misbehaviour::EarlyData))
            }
            // A relay may repeat or damage a handshake; that must have no
            // effect.
            _ => Ok(HandshakeReply::None),
        }
    }

    /// Handles a handshake frame, at an orchestrator. Returns whether it opened
    /// the stream.
    pub(crate) fn handle_message_2(
        &mut self,
        message: &[u8],
        config: &StreamConfig,
        stats: &mut Stats,
    ) -> Result<bool, StreamEnd> {
        match &mut self.state {
            StreamState::Connecting(connecting) => {
                let Some(keys) = connecting.finish(message, stats)? else { return Ok(false) };
                let open = if self.profile.is_reliable() {
                    Open::reliable_initiator(config, keys.sealer, keys.opener)
                } else {
                    Open::codex_initiator(config, keys.sealer, keys.opener)
                };
                self.state = StreamState::Open(Box::new(open), None);
                Ok(true)
            }
            StreamState::Open(open, _) => {
                open.on_repeated_message_2();
                Ok(false)
            }
            StreamState::Authorizing(_) | StreamState::Ended { .. } => Ok(false),
        }
    }

    pub(crate) fn wants_control(&self) -> bool {
        match &self.state {
            StreamState::Connecting(connecting) => connecting.wants_transmit(),
            StreamState::Open(open, _) => open.wants_control(),
            StreamState::Authorizing(_) | StreamState::Ended { .. } => false,
        }
    }

    pub(crate) fn poll_control(&mut self, now: Instant) -> Result<Option<Bytes>, StreamEnd> {
        match &mut self.state {
            StreamState::Connecting(connecting) => Ok(connecting.poll_transmit(now)),
            StreamState::Open(open, _) => open.poll_control(now, &self.id),
            StreamState::Authorizing(_) | StreamState::Ended { .. } => Ok(None),
        }
    }

    pub(crate) fn wants_record(&self) -> bool {
        matches!(&self.state, StreamState::Open(open, _) if open.wants_record())
    }

    pub(crate) fn poll_record(
        &mut self,
        now: Instant,
        max_bytes: usize,
        scratch: &mut BytesMut,
        stats: &mut Stats,
    ) -> Result<Option<Bytes>, StreamEnd> {
        match &mut self.state {
            StreamState::Open(open, _) => {
                open.poll_record(now, &self.id, max_bytes, scratch, stats)
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), StreamEnd> {
        match &mut self.state {
            StreamState::Connecting(connecting) => connecting.handle_timeout(now),
            StreamState::Authorizing(authorizing) if authorizing.until <= now => Err(StreamEnd {
                why: Closed::HandshakeTimeout,
                reset: Some(ResetReason::HandshakeRefused),
            }),
            StreamState::Open(open, _) => open.handle_timeout(now),
            StreamState::Authorizing(_) | StreamState::Ended { .. } => Ok(()),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            StreamState::Connecting(connecting) => Some(connecting.poll_timeout()),
            StreamState::Authorizing(authorizing) => Some(authorizing.until),
            StreamState::Open(open, _) => open.poll_timeout(),
            StreamState::Ended { .. } => None,
        }
    }
}
