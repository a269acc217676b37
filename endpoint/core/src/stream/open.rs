//! An open stream: keys, windows and framing, in either kind of profile.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use rendez_proto::frame::{Ack, Body, Frame, ResetReason};
use rendez_proto::ids::{Seq, StreamId};
use rendez_proto::limits::{
    FRAME_OVERHEAD_MAX_BYTES, PING_INTERVAL, RECORD_PLAINTEXT_MAX_BYTES, TAG_BYTES,
};

use super::proofs::record_ad;
use super::reliable::{self, Reliable};
use super::stream_config::StreamConfig;
use super::stream_end::StreamEnd;
use crate::error::{Closed, Misbehaviour, SendError};
use crate::framing::{ReceiveQueue, SendQueue};
use crate::noise::{Opener, Sealer};
use crate::stats::Stats;
use crate::window::{Arrival, Budget, RecvWindow};

/// Bytes of early records that a receiver of the Codex profile holds
/// (docs/codex-wire.md#messages-and-sequence-numbers).
const CODEX_REORDER_MAX_BYTES: usize = 1024 * 1024;
/// Unread plaintext of a Codex-profile stream at which the whole socket is no
/// longer read: that profile has no credit.
pub const CODEX_UNREAD_MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long an executor's socket stays unread because of such a stream. Then
/// that stream is reset, since all others wait; the stock executor resets at
/// the 129th message (docs/codex-wire.md#messages-and-sequence-numbers). The
/// same time as `STALL_MAX` of a relay.
pub const CODEX_UNREAD_TIMEOUT: Duration = Duration::from_secs(2);

// A waiting executor must not be mistaken for a lost one.
const _: () = assert!(CODEX_UNREAD_TIMEOUT.as_secs() * 2 < PING_INTERVAL.as_secs());

/// The first sequence number of the Codex profile
/// (docs/codex-wire.md#messages-and-sequence-numbers).
const CODEX_FIRST: Seq = Seq(0);

/// The keys, windows and queues of an open stream.
#[derive(Debug)]
pub(crate) struct Open {
    sealer: Sealer,
    opener: Opener,
    send_queue: SendQueue,
    pub(super) receive_queue: ReceiveQueue,
    /// For incomplete messages; shared by all streams of the endpoint.
    partial_memory: Budget,
    recv: RecvWindow,
    layer: Layer,
    /// The application has closed the stream; queued messages are still
    /// delivered.
    closing: bool,
    /// A message was refused: emit `Writable` when there is room.
    pub(super) writer_blocked: bool,
}

#[derive(Debug)]
enum Layer {
    Codex {
        next: Option<Seq>,
        /// Whether other streams share the socket that this one can block.
        shared: bool,
        /// When a stream that blocks the socket is reset.
        give_up: Option<Instant>,
    },
    Reliable(Box<Reliable>),
}

impl Open {
    /// The responder's side. Its socket carries the streams of all
    /// orchestrators, so a stream that is not read for [`CODEX_UNREAD_TIMEOUT`]
    /// must not block the others.
    pub(super) fn codex_responder(config: &StreamConfig, sealer: Sealer, opener: Opener) -> Self {
        Self::codex(config, sealer, opener, true)
    }

    /// The initiator's side. It may leave messages unread, since it blocks only
    /// itself.
    pub(super) fn codex_initiator(config: &StreamConfig, sealer: Sealer, opener: Opener) -> Self {
        Self::codex(config, sealer, opener, false)
    }

    fn codex(config: &StreamConfig, sealer: Sealer, opener: Opener, shared: bool) -> Self {
        let recv = RecvWindow::unbounded(CODEX_FIRST);
        let layer = Layer::Codex { next: Some(CODEX_FIRST), shared, give_up: None };
        Self::new(config, sealer, opener, recv, layer)
    }

    pub(super) fn reliable_initiator(
        config: &StreamConfig,
        sealer: Sealer,
        opener: Opener,
    ) -> Self {
        let mut recv = RecvWindow::new(reliable::FIRST, config.receive_memory.clone());
        let layer = Reliable::initiator(config, &mut recv);
        Self::new(config, sealer, opener, recv, Layer::Reliable(Box::new(layer)))
    }

    pub(super) fn reliable_responder(
        config: &StreamConfig,
        sealer: Sealer,
        opener: Opener,
        now: Instant,
        socket: bool,
        message_2: Bytes,
    ) -> Self {
        let mut recv = RecvWindow::new(reliable::FIRST, config.receive_memory.clone());
        let layer = Reliable::responder(config, &mut recv, now, socket, message_2);
        Self::new(config, sealer, opener, recv, Layer::Reliable(Box::new(layer)))
    }

    fn new(
        config: &StreamConfig,
        sealer: Sealer,
        opener: Opener,
        recv: RecvWindow,
        layer: Layer,
    ) -> Self {
        Self {
            sealer,
            opener,
            send_queue: SendQueue::default(),
            receive_queue: ReceiveQueue::default(),
            partial_memory: config.partial_memory.clone(),
            recv,
            layer,
            closing: false,
            writer_blocked: false,
        }
    }

    // ---- the application ---------------------------------------------------

    pub(super) fn send(&mut self, message: &Bytes) -> Result<(), SendError> {
        if self.closing {
            return Err(SendError::Closed(Closed::Finished));
        }
        if !self.send_queue.has_room() {
            self.writer_blocked = true;
            return Err(SendError::Blocked);
        }
        self.send_queue.push(message.clone()).map_err(|_| SendError::TooLarge)
    }

    pub(super) fn recv(&mut self) -> Option<Bytes> {
        let message = self.receive_queue.pop();
        let unread = self.receive_queue.unread_bytes();
        match &mut self.layer {
            Layer::Reliable(layer) => layer.unread_changed(&mut self.recv, unread),
            Layer::Codex { give_up, .. } if unread <= CODEX_UNREAD_MAX_BYTES => *give_up = None,
            Layer::Codex { .. } => {}
        }
        message
    }

    /// Takes the unread messages. A stream that its application closed has no
    /// reader.
    pub(super) fn take_unread(&mut self) -> ReceiveQueue {
        let whole = self.receive_queue.take_whole();
        if self.closing { ReceiveQueue::default() } else { whole }
    }

    /// Whether everything was delivered and the peer was notified of the end.
    pub(super) fn is_announced(&self) -> bool {
        matches!(&self.layer, Layer::Reliable(layer) if layer.is_announced())
    }

    pub(super) fn close(&mut self) {
        self.closing = true;
        self.finish_when_delivered();
    }

    /// Whether the peer was probed and has not answered yet.
    pub(super) fn is_probing(&self) -> bool {
        matches!(&self.layer, Layer::Reliable(layer) if layer.path.is_probing())
    }

    /// Whether a blocked writer should try again. Returns `true` once.
    pub(super) fn take_writable(&mut self) -> bool {
        self.writer_blocked
            && self.send_queue.is_drained()
            && std::mem::take(&mut self.writer_blocked)
    }

    /// Whether this stream holds too much unread data and cannot slow its peer
    /// down by credit, so that socket reads must pause.
    pub(super) fn needs_backpressure(&self) -> bool {
        matches!(self.layer, Layer::Codex { .. })
            && self.receive_queue.unread_bytes() > CODEX_UNREAD_MAX_BYTES
    }

    // ---- the socket --------------------------------------------------------

    pub(super) fn socket_lost(&mut self, now: Instant) -> Result<(), StreamEnd> {
        match &mut self.layer {
            Layer::Codex { .. } => Err(StreamEnd { why: Closed::Lost, reset: None }),
            Layer::Reliable(layer) if layer.is_announced() => {
                Err(StreamEnd { why: Closed::Finished, reset: None })
            }
            Layer::Reliable(layer) => {
                layer.socket_lost(now);
                Ok(())
            }
        }
    }

    pub(super) fn socket_opened(&mut self, now: Instant) {
        if let Layer::Reliable(layer) = &mut self.layer {
            layer.socket_opened(now);
        }
    }

    /// Handles a repeated message 1: the peer lacks our answer.
    pub(super) fn on_repeated_message_1(&mut self) {
        if let Layer::Reliable(layer) = &mut self.layer {
            layer.resend_message_2();
        }
    }

    /// Handles a repeated message 2: the responder lacks our confirmation.
    pub(super) fn on_repeated_message_2(&mut self) {
        if let Layer::Reliable(layer) = &mut self.layer {
            layer.ack_now();
        }
    }

    pub(super) fn handle_frame(
        &mut self,
        now: Instant,
        frame: Frame,
        stats: &mut Stats,
    ) -> Result<(), StreamEnd> {
        if let Body::Data { seq, record } = frame.body {
            return self.handle_record(now, frame.ack, frame.credit, seq, record, stats);
        }
        let Layer::Reliable(layer) = &mut self.layer else {
            return match frame.body {
                Body::Reset { reason } => Err(StreamEnd::reset_by_peer(&reason)),
                _ => Ok(()), // both ends ignore it (docs/codex-wire.md#frame)
            };
        };
        if frame.proof.is_none()
            && let Body::Reset { reason } = &frame.body
        {
            return layer.on_unproven_reset(now, ResetReason::parse(reason), stats);
        }
        if !layer.proofs.verify(&self.opener, &frame) {
            stats.refused_control += 1;
            return Ok(());
        }
        if let Body::Resume { .. } = frame.body {
            layer.peer_path_replaced();
        }
        layer.on_authenticated(now, frame.ack, frame.credit)?;
        match frame.body {
            Body::Heartbeat => layer.ack_now(),
            Body::Reset { reason } => {
                let mut end = StreamEnd::reset_by_peer(&reason);
                if !layer.is_announced() {
                    end.reset = Some(ResetReason::Finished); // so that the peer stops repeating
                }
                return Err(end);
            }
            Body::Resume { .. } | Body::Ack | Body::Data { .. } | Body::Handshake { .. } => {}
        }
        self.finish_when_delivered();
        Ok(())
    }

    fn handle_record(
        &mut self,
        now: Instant,
        ack: Ack,
        credit: u32,
        seq: Seq,
        record: Bytes,
        stats: &mut Stats,
    ) -> Result<(), StreamEnd> {
        let arrival = self.recv.classify(seq);
        match (arrival, &mut self.layer) {
            (Arrival::Fresh, _) | (Arrival::TooFar, Layer::Codex { .. }) => {}
            (Arrival::TooFar, Layer::Reliable(_)) => {
                stats.out_of_window += 1;
                return Ok(());
            }
            (Arrival::Duplicate, layer) => {
                stats.duplicates += 1;
                if let Layer::Reliable(layer) = layer {
                    layer.ack_now();
                }
                return Ok(());
            }
        }
        let opened = match &self.layer {
            Layer::Codex { .. } => self.opener.open(nonce(CODEX_FIRST, seq), &[], record),
            Layer::Reliable(_) => {
                let ad = record_ad(ack, credit, seq);
                self.opener.open(nonce(reliable::FIRST, seq), &ad, record)
            }
        };
        let Ok(plaintext) = opened else {
            stats.refused_records += 1;
            return Ok(());
        };
        if plaintext.len() > RECORD_PLAINTEXT_MAX_BYTES {
            return Err(StreamEnd::misbehaved(Misbehaviour::RecordLength));
        }
        stats.records_in += 1;
        stats.bytes_in += plaintext.len() as u64;
        if arrival == Arrival::TooFar {
            return Err(StreamEnd::out_of_sequence());
        }
        if let Layer::Reliable(layer) = &mut self.layer {
            layer.on_authenticated(now, ack, credit)?;
        }
        self.recv.insert(seq, plaintext);
        let in_order = self.deliver()?;
        match &mut self.layer {
            Layer::Reliable(layer) => {
                let round_trip = layer.send.rto().shortest();
                self.recv.autotune(now, round_trip, self.receive_queue.unread_bytes());
                layer.record_arrived(now, in_order);
            }
            Layer::Codex { .. } if self.recv.held_bytes() > CODEX_REORDER_MAX_BYTES => {
                return Err(StreamEnd::out_of_sequence());
            }
            Layer::Codex { shared: true, give_up, .. }
                if self.receive_queue.unread_bytes() > CODEX_UNREAD_MAX_BYTES =>
            {
                give_up.get_or_insert(now + CODEX_UNREAD_TIMEOUT);
            }
            Layer::Codex { .. } => {}
        }
        self.finish_when_delivered();
        Ok(())
    }

    /// Moves plaintexts that are in order to the receive queue. Returns whether
    /// no early record is held.
    fn deliver(&mut self) -> Result<bool, StreamEnd> {
        while let Some(plaintext) = self.recv.pop() {
            self.receive_queue.push(plaintext, &self.partial_memory)?;
        }
        Ok(self.recv.held_bytes() == 0)
    }

    fn finish_when_delivered(&mut self) {
        if let Layer::Reliable(layer) = &mut self.layer
            && self.closing
            && self.send_queue.is_empty()
            && layer.send.is_empty()
        {
            layer.finish();
        }
    }

    /// Whether [`poll_control`](Self::poll_control) has a frame.
    pub(super) fn wants_control(&self) -> bool {
        match &self.layer {
            Layer::Codex { .. } => self.closing && self.send_queue.is_empty(),
            Layer::Reliable(layer) => layer.wants_control(self.wants_record()),
        }
    }

    /// Returns the next frame without a record.
    pub(super) fn poll_control(
        &mut self,
        now: Instant,
        id: &StreamId,
    ) -> Result<Option<Bytes>, StreamEnd> {
        let record_ready = self.wants_record();
        match &mut self.layer {
            Layer::Codex { .. } if self.closing && self.send_queue.is_empty() => {
                Err(StreamEnd { why: Closed::Finished, reset: Some(ResetReason::Finished) })
            }
            Layer::Codex { .. } => Ok(None),
            Layer::Reliable(layer) => Ok(layer.poll_control(
                now,
                id,
                &self.sealer,
                &mut self.recv,
                self.receive_queue.unread_bytes(),
                record_ready,
            )),
        }
    }

    /// Whether [`poll_record`](Self::poll_record) has a frame.
    pub(super) fn wants_record(&self) -> bool {
        match &self.layer {
            Layer::Codex { .. } => !self.send_queue.is_empty(),
            Layer::Reliable(layer) => {
                layer.path.is_up()
                    && (layer.send.wants_retransmit()
                        || (!self.send_queue.is_empty()
                            && (layer.send.next().is_none()
                                || layer.send.has_room(self.next_frame_bytes()))))
            }
        }
    }

    /// The largest size of the next frame.
    fn next_frame_bytes(&self) -> usize {
        self.send_queue.bytes().min(RECORD_PLAINTEXT_MAX_BYTES)
            + TAG_BYTES
            + FRAME_OVERHEAD_MAX_BYTES
    }

    /// Returns the next frame with a record; retransmissions come first. A new
    /// record has at most `max_bytes` of plaintext. `scratch` is reused between
    /// calls.
    pub(super) fn poll_record(
        &mut self,
        now: Instant,
        id: &StreamId,
        max_bytes: usize,
        scratch: &mut BytesMut,
        stats: &mut Stats,
    ) -> Result<Option<Bytes>, StreamEnd> {
        if !self.wants_record() {
            return Ok(None);
        }
        if let Layer::Reliable(layer) = &mut self.layer
            && let Some(wire) = layer.send.poll_retransmit(now)
        {
            stats.retransmits += 1;
            return Ok(Some(wire));
        }
        let next = match &self.layer {
            Layer::Codex { next, .. } => *next,
            Layer::Reliable(layer) => layer.send.next(),
        };
        let seq = next.ok_or_else(StreamEnd::out_of_sequence)?;

        scratch.clear();
        scratch.reserve(max_bytes + TAG_BYTES);
        self.send_queue.take(max_bytes, scratch);
        stats.records_out += 1;
        stats.bytes_out += scratch.len() as u64;
        let mut frame = Frame::bare(id.clone(), Body::Ack);
        let sealed = match &mut self.layer {
            Layer::Codex { .. } => self.sealer.seal_in_place(nonce(CODEX_FIRST, seq), &[], scratch),
            Layer::Reliable(layer) => {
                let unread = self.receive_queue.unread_bytes();
                self.recv.autotune(now, layer.send.rto().shortest(), unread);
                (frame.ack, frame.credit) = layer.report(&mut self.recv, unread);
                let ad = record_ad(frame.ack, frame.credit, seq);
                self.sealer.seal_in_place(nonce(reliable::FIRST, seq), &ad, scratch)
            }
        };
        sealed.map_err(|_| StreamEnd::out_of_sequence())?;
        frame.body = Body::Data { seq, record: scratch.split().freeze() };
        let wire = frame.encode();
        match &mut self.layer {
            Layer::Codex { next, .. } => *next = seq.next(),
            Layer::Reliable(layer) => layer.send.push(wire.clone(), now),
        }
        Ok(Some(wire))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), StreamEnd> {
        match &mut self.layer {
            Layer::Codex { give_up: Some(at), .. } if *at <= now => Err(StreamEnd {
                why: Closed::ReaderStalled,
                reset: Some(ResetReason::ProtocolError),
            }),
            Layer::Codex { .. } => Ok(()),
            Layer::Reliable(layer) => layer.handle_timeout(now),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.layer {
            Layer::Codex { give_up, .. } => *give_up,
            Layer::Reliable(layer) => layer.poll_timeout(),
        }
    }

    /// Returns the frame that notifies the peer of the end, authenticated where
    /// the profile supports it.
    pub(super) fn reset_frame(&mut self, id: &StreamId, reason: ResetReason) -> Option<Bytes> {
        match &mut self.layer {
            Layer::Codex { .. } => None,
            Layer::Reliable(layer) => layer.reset_frame(
                id,
                &self.sealer,
                &mut self.recv,
                self.receive_queue.unread_bytes(),
                reason,
            ),
        }
    }
}

fn nonce(first: Seq, seq: Seq) -> u64 {
    seq.since(first).into()
}
