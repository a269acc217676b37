//! The reliable layer that the `rendez_` profiles add to an open stream:
//! acknowledgements, retransmission, credit, resume, and proofs on control
//! frames.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::frame::{Ack, Body, Frame, ResetReason};
use rendez_proto::ids::{Seq, StreamId};

use super::path::{PathState, Probe};
use super::proofs::Proofs;
use super::stream_config::StreamConfig;
use super::stream_end::StreamEnd;
use crate::error::{Closed, Misbehaviour};
use crate::noise::Sealer;
use crate::stats::Stats;
use crate::window::{RTO_MIN, RecvWindow, SendWindow, WINDOW_MIN_RECORDS};

/// How long an acknowledgement waits for a record that can carry it.
pub const ACK_DELAY: Duration = Duration::from_millis(5);
/// Received records that are acknowledged immediately: half of the smallest
/// window, so that a sender never stalls on a delayed acknowledgement.
pub const ACK_EVERY_RECORDS: u32 = WINDOW_MIN_RECORDS / 2;
/// Consecutive retransmission timeouts after which a stream sends no more
/// records until its peer has answered a resume.
const SILENT_TIMEOUTS: u32 = 4;
/// How often the end of a reliable stream is announced. If all announcements
/// are lost, the peer waits for its grace, no more.
const FINISH_ATTEMPTS: u32 = 3;

const _: () = assert!(ACK_DELAY.as_millis() * 4 < RTO_MIN.as_millis());

/// The first sequence number of our profiles; an acknowledgement of 0 means
/// none.
pub(super) const FIRST: Seq = Seq(1);

/// The reliable layer of one open stream.
#[derive(Debug)]
pub(super) struct Reliable {
    pub(super) send: SendWindow,
    pub(super) path: PathState,
    /// How long the path may be down.
    grace: Duration,
    pub(super) proofs: Proofs,
    /// The highest sequence number that the peer knows it may send.
    advertised_credit: u32,
    ack: AckTimer,
    /// Requests credit while there is none and nothing is in flight.
    credit_probe: Option<Probe>,
    /// Requests for credit since the peer was last heard. A peer that forgot the stream
    /// answers none, and there may be no record in flight whose timeouts show it.
    unanswered_probes: u32,
    /// Announces the end, once everything was delivered.
    finish: Option<Probe>,
    /// A responder's message 2, until the initiator confirms it.
    unconfirmed: Option<Unconfirmed>,
}

#[derive(Debug)]
struct Unconfirmed {
    message_2: Bytes,
    retry: Probe,
    until: Instant,
}

#[derive(Debug, Default)]
struct AckTimer {
    now: bool,
    at: Option<Instant>,
    records: u32,
}

impl Reliable {
    /// Creates an initiator's layer; its first acknowledgement confirms message
    /// 2.
    pub(super) fn initiator(config: &StreamConfig, recv: &mut RecvWindow) -> Self {
        let mut layer = Self::new(config, recv, PathState::Up);
        layer.ack.now = true;
        layer
    }

    /// Creates a responder's layer; `message_2` is the encoded frame.
    pub(super) fn responder(
        config: &StreamConfig,
        recv: &mut RecvWindow,
        now: Instant,
        socket: bool,
        message_2: Bytes,
    ) -> Self {
        let until = now + config.grace;
        let path = if socket { PathState::Up } else { PathState::Down { until } };
        let mut layer = Self::new(config, recv, path);
        layer.unconfirmed = Some(Unconfirmed { message_2, retry: Probe::due(), until });
        layer
    }

    fn new(config: &StreamConfig, recv: &mut RecvWindow, path: PathState) -> Self {
        Self {
            send: SendWindow::new(FIRST, config.send_memory.clone()),
            path,
            grace: config.grace,
            proofs: Proofs::default(),
            advertised_credit: recv.grant(0),
            ack: AckTimer::default(),
            credit_probe: None,
            unanswered_probes: 0,
            finish: None,
            unconfirmed: None,
        }
    }

    /// Handles the ack and credit of an authenticated frame.
    pub(super) fn on_authenticated(
        &mut self,
        now: Instant,
        ack: Ack,
        credit: u32,
    ) -> Result<(), StreamEnd> {
        self.unconfirmed = None;
        self.unanswered_probes = 0;
        // First, because frames that crossed a former path measure no round
        // trip.
        if self.path.on_authenticated() {
            self.peer_path_replaced();
        }
        self.send
            .on_ack(ack, credit, now)
            .map_err(|_| StreamEnd::misbehaved(Misbehaviour::AckOfUnsent))?;
        if self.send.has_credit() || !self.send.is_empty() {
            self.credit_probe = None;
        } else if self.credit_probe.is_none() {
            self.credit_probe = Some(Probe::after(now, self.send.rto()));
        }
        Ok(())
    }

    /// Notes that the peer has a new path: the frames in flight are lost, and announcements
    /// of the end may have been.
    pub(super) fn peer_path_replaced(&mut self) {
        self.send.path_replaced();
        self.ack.now = true;
        if let Some(finish) = &mut self.finish {
            finish.repeat();
        }
    }

    pub(super) fn socket_lost(&mut self, now: Instant) {
        self.path.socket_lost(now, self.grace);
    }

    pub(super) fn socket_opened(&mut self, now: Instant) {
        self.path.socket_opened(now, self.grace);
    }

    /// Schedules the acknowledgement of a record; `in_order` if no earlier one
    /// is missing.
    pub(super) fn record_arrived(&mut self, now: Instant, in_order: bool) {
        self.ack.records += 1;
        if !in_order || self.ack.records >= ACK_EVERY_RECORDS {
            self.ack.now = true;
        } else if self.ack.at.is_none() {
            self.ack.at = Some(now + ACK_DELAY);
        }
    }

    /// Acknowledges immediately: the peer asked, or repeated a frame.
    pub(super) fn ack_now(&mut self) {
        self.ack.now = true;
    }

    /// Advertises credit if enough was freed by reading.
    pub(super) fn unread_changed(&mut self, recv: &mut RecvWindow, unread: usize) {
        let credit = recv.grant(unread);
        let closed = self.advertised_credit < recv.next();
        let worth_it = credit - self.advertised_credit >= recv.credit_step();
        if worth_it || (closed && credit > self.advertised_credit) {
            self.ack.now = true;
        }
    }

    /// Returns the ack and credit of a frame that is sent now.
    pub(super) fn report(&mut self, recv: &mut RecvWindow, unread: usize) -> (Ack, u32) {
        self.ack = AckTimer::default();
        self.advertised_credit = recv.grant(unread);
        (recv.ack(), self.advertised_credit)
    }

    /// Announces the end from now on.
    pub(super) fn finish(&mut self) {
        self.finish.get_or_insert_with(Probe::due);
    }

    /// Whether the end was announced to the peer. From then on this side only
    /// repeats it, in case it was lost.
    pub(super) fn is_announced(&self) -> bool {
        self.finish.as_ref().is_some_and(|finish| finish.attempts > 0)
    }

    /// Whether [`poll_control`](Self::poll_control) has a frame.
    pub(super) fn wants_control(&self, record_ready: bool) -> bool {
        match &self.path {
            PathState::Down { .. } => false,
            PathState::Probing { probe, .. } => probe.is_due() || self.message_2_due(),
            PathState::Up => {
                self.message_2_due()
                    || self.finish.as_ref().is_some_and(Probe::is_due)
                    || (self.ack.now && !record_ready)
                    || (self.credit_probe.as_ref().is_some_and(Probe::is_due))
            }
        }
    }

    fn message_2_due(&self) -> bool {
        self.unconfirmed.as_ref().is_some_and(|unconfirmed| unconfirmed.retry.is_due())
    }

    /// Sends message 2 again, because message 1 was repeated.
    pub(super) fn resend_message_2(&mut self) {
        if let Some(unconfirmed) = &mut self.unconfirmed {
            unconfirmed.retry.at_once();
        }
    }

    /// Returns the next frame without a record: message 2, a resume, the end, a
    /// request for credit, or an acknowledgement.
    pub(super) fn poll_control(
        &mut self,
        now: Instant,
        id: &StreamId,
        sealer: &Sealer,
        recv: &mut RecvWindow,
        unread: usize,
        record_ready: bool,
    ) -> Option<Bytes> {
        if !self.wants_control(record_ready) {
            return None;
        }
        let rto = self.send.rto();
        recv.autotune(now, rto.shortest(), unread);
        if let Some(unconfirmed) = &mut self.unconfirmed
            && unconfirmed.retry.is_due()
        {
            unconfirmed.retry.sent(now, rto);
            return Some(unconfirmed.message_2.clone());
        }
        let due = |probe: &mut Probe| {
            let due = probe.is_due();
            if due {
                probe.sent(now, rto);
            }
            due
        };
        let body = if self.path.probe().is_some_and(due) {
            Body::Resume { next_seq: recv.next() }
        } else if self.finish.as_mut().is_some_and(due) {
            Body::Reset { reason: ResetReason::Finished.as_str().to_owned() }
        } else if self.credit_probe.as_mut().is_some_and(due) {
            self.unanswered_probes += 1;
            Body::Heartbeat
        } else {
            Body::Ack
        };
        self.frame(id, sealer, recv, unread, body)
    }

    /// Returns an authenticated frame that ends the stream.
    pub(super) fn reset_frame(
        &mut self,
        id: &StreamId,
        sealer: &Sealer,
        recv: &mut RecvWindow,
        unread: usize,
        reason: ResetReason,
    ) -> Option<Bytes> {
        let body = Body::Reset { reason: reason.as_str().to_owned() };
        self.frame(id, sealer, recv, unread, body)
    }

    fn frame(
        &mut self,
        id: &StreamId,
        sealer: &Sealer,
        recv: &mut RecvWindow,
        unread: usize,
        body: Body,
    ) -> Option<Bytes> {
        let (ack, credit) = self.report(recv, unread);
        let mut frame = Frame { ack, credit, ..Frame::bare(id.clone(), body) };
        self.proofs.prove(sealer, &mut frame).ok()?;
        Some(frame.encode())
    }

    /// Handles a reset without a proof: at best a hint of the relay.
    pub(super) fn on_unproven_reset(
        &mut self,
        now: Instant,
        reason: ResetReason,
        stats: &mut Stats,
    ) -> Result<(), StreamEnd> {
        match reason {
            ResetReason::OrchestratorGone | ResetReason::ExecutorGone => {
                stats.hints += 1;
                if self.is_announced() {
                    return Err(StreamEnd { why: Closed::Finished, reset: None });
                }
                self.path.on_peer_away(now, self.grace, self.send.rto());
                Ok(())
            }
            // The peer may have lost the stream: probe it. This answer to a
            // resume confirms the loss. A relay gains nothing by forging it
            // that it could not gain by dropping the resume.
            ResetReason::UnknownStream | ResetReason::ProtocolError => {
                stats.hints += 1;
                if matches!(&self.path, PathState::Probing { probe, .. } if probe.attempts > 0) {
                    let why = Closed::Reset(ResetReason::UnknownStream);
                    return Err(StreamEnd { why, reset: None });
                }
                self.path.probe_now(now, self.grace);
                Ok(())
            }
            _ => {
                stats.refused_control += 1;
                Ok(())
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), StreamEnd> {
        let lost = StreamEnd { why: Closed::Lost, reset: None };
        if self.path.is_over(now) || self.unconfirmed.as_ref().is_some_and(|u| u.until <= now) {
            return Err(lost);
        }
        if let Some(probe) = self.path.probe() {
            probe.handle_timeout(now);
        }
        if let Some(unconfirmed) = &mut self.unconfirmed {
            unconfirmed.retry.handle_timeout(now);
        }
        if !self.path.is_up() {
            return Ok(());
        }
        self.send.handle_timeout(now);
        if self.send.rto().timeouts().max(self.unanswered_probes) >= SILENT_TIMEOUTS {
            self.path.probe_now(now, self.grace);
            return Ok(());
        }
        if self.ack.at.is_some_and(|at| at <= now) {
            self.ack.at = None;
            self.ack.now = true;
        }
        if let Some(probe) = &mut self.credit_probe {
            probe.handle_timeout(now);
        }
        if let Some(probe) = &mut self.finish {
            probe.handle_timeout(now);
            if probe.is_due() && probe.attempts >= FINISH_ATTEMPTS {
                return Err(StreamEnd { why: Closed::Finished, reset: None });
            }
        }
        Ok(())
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let probe = |probe: &Option<Probe>| probe.as_ref().and_then(Probe::poll_timeout);
        let unconfirmed = self.unconfirmed.as_ref();
        let always = [
            self.path.poll_timeout(),
            unconfirmed.map(|unconfirmed| unconfirmed.until),
            unconfirmed.and_then(|unconfirmed| unconfirmed.retry.poll_timeout()),
        ];
        let up = self.path.is_up().then(|| {
            [self.send.poll_timeout(), self.ack.at, probe(&self.credit_probe), probe(&self.finish)]
        });
        always.into_iter().chain(up.into_iter().flatten()).flatten().min()
    }
}
