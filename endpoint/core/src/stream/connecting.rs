//! The state of an initiator that waits for message 2.

use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::limits::{HANDSHAKE_FAILURES, HANDSHAKE_TIMEOUT};
use rendez_proto::profile::Profile;

use super::path::Probe;
use super::stream_end::{StreamEnd, wire_name};
use crate::error::Closed;
use crate::noise::{AUTHENTICATION_REJECTED, AwaitingResponse, Established};
use crate::stats::Stats;
use crate::window::Rto;

/// An initiator that has sent message 1 and waits for message 2.
#[derive(Debug)]
pub(crate) struct Connecting {
    /// The executor's registration that message 1 is bound to.
    registration: RegistrationId,
    /// `None` only while a message is being read.
    handshake: Option<AwaitingResponse>,
    /// Sent first, once, as stock harnesses do.
    resume: Option<Bytes>,
    message_1: Bytes,
    retry: Probe,
    /// Whether message 1 is retransmitted until it is answered.
    repeats: bool,
    until: Instant,
    failures: u32,
}

impl Connecting {
    pub(crate) fn new(
        id: &StreamId,
        profile: Profile,
        registration: RegistrationId,
        handshake: AwaitingResponse,
        message: Bytes,
        now: Instant,
    ) -> Self {
        let reliable = profile.is_reliable();
        let resume = Frame::bare(id.clone(), Body::Resume { next_seq: 0 });
        let message_1 = Body::Handshake { message, profile: wire_name(profile) };
        Self {
            registration,
            handshake: Some(handshake),
            resume: (!reliable).then(|| resume.encode()),
            message_1: Frame::bare(id.clone(), message_1).encode(),
            retry: Probe::due(),
            repeats: reliable,
            until: now + HANDSHAKE_TIMEOUT,
            failures: 0,
        }
    }

    /// Sends message 1 again, over the new socket. Ends if the executor has registered
    /// again since: it cannot read a message that is bound to its old registration, and
    /// its refusal would count as a failed handshake of this orchestrator.
    pub(crate) fn socket_opened(&mut self, registration: &RegistrationId) -> Result<(), StreamEnd> {
        if self.registration != *registration {
            return Err(StreamEnd { why: Closed::Lost, reset: Some(ResetReason::Finished) });
        }
        if self.repeats {
            self.retry = Probe::due();
        }
        Ok(())
    }

    /// Reads message 2. Returns `None` if it was damaged or forged: wait for
    /// another.
    pub(crate) fn finish(
        &mut self,
        message: &[u8],
        stats: &mut Stats,
    ) -> Result<Option<Established>, StreamEnd> {
        let rejected = |why| StreamEnd { why, reset: None };
        let Some(handshake) = self.handshake.take() else {
            return Err(rejected(Closed::HandshakeRejected));
        };
        match handshake.finish(message) {
            Ok(keys) if keys.payload.is_empty() => Ok(Some(keys)),
            Ok(keys) if keys.payload == AUTHENTICATION_REJECTED => {
                Err(rejected(Closed::AuthenticationRejected))
            }
            Ok(_) => Err(rejected(Closed::HandshakeRejected)),
            Err(refused) => {
                stats.handshake_failures += 1;
                self.failures += 1;
                self.handshake = refused.state;
                if self.failures >= HANDSHAKE_FAILURES || self.handshake.is_none() {
                    return Err(rejected(Closed::HandshakeRejected));
                }
                Ok(None)
            }
        }
    }

    pub(crate) fn wants_transmit(&self) -> bool {
        self.resume.is_some() || self.retry.is_due()
    }

    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<Bytes> {
        if let Some(resume) = self.resume.take() {
            return Some(resume);
        }
        if !self.retry.is_due() {
            return None;
        }
        self.retry.sent(now, &Rto::new());
        Some(self.message_1.clone())
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Result<(), StreamEnd> {
        if self.until <= now {
            return Err(StreamEnd {
                why: Closed::HandshakeTimeout,
                reset: Some(ResetReason::Finished),
            });
        }
        if self.repeats {
            self.retry.handle_timeout(now);
        }
        Ok(())
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        match self.retry.poll_timeout() {
            Some(at) if self.repeats => at.min(self.until),
            _ => self.until,
        }
    }
}
