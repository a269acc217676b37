//! The send window: records in flight, sealed once and kept until acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::frame::Ack;
use rendez_proto::ids::Seq;
use rendez_proto::limits::WINDOW_MAX_RECORDS;

use super::{Budget, Congestion, Rto, WINDOW_MIN_BYTES, WINDOW_MIN_RECORDS};

/// Later records that must be acknowledged before a gap is retransmitted early.
/// A relay reorders little; it sheds.
const FAST_RESEND_RECORDS: u32 = 3;

// A selective acknowledgement can name the records that fast retransmission
// looks for.
const _: () = assert!(FAST_RESEND_RECORDS < u32::BITS);

/// An authenticated acknowledgement of a record that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("acknowledgement of a record that was never sent")]
pub struct AckOfUnsent;

/// The sending side of one direction.
#[derive(Debug)]
pub struct SendWindow {
    /// The number of `in_flight[0]`, which is never acknowledged itself. Wider
    /// than a sequence number, so that it can lie past the last one.
    base: u64,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    budget: Budget,
    /// Bytes charged to the budget: those in flight beyond
    /// [`WINDOW_MIN_BYTES`].
    charged: usize,
    /// The highest number that the peer accepts.
    credit: u32,
    congestion: Congestion,
    /// The number of records that wait for their acknowledgement.
    waiting: u32,
    /// The number of records that wait for their retransmission.
    due: usize,
    /// Since when the peer has made no progress, while records wait (RFC 6298,
    /// section 5).
    timer: Option<Instant>,
    rto: Rto,
}

#[derive(Debug)]
struct InFlight {
    /// The frame with the sealed record; empty once acknowledged.
    wire: Bytes,
    state: RecordState,
    sent: Sent,
}

/// How a record was sent, which determines what its acknowledgement measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Once, at this time.
    Once(Instant),
    /// More than once. Which transmission was acknowledged is unknown, unless
    /// the acknowledgement came sooner than any round trip takes.
    Again { first: Instant, last: Instant },
    /// Over a former path, and perhaps also over this one.
    OldPath,
}

/// The measurement that an acknowledgement gives.
enum AckSample {
    None,
    /// The round trip of a record.
    RoundTrip(Duration),
    /// The round trip of a record that was presumed lost, although its first
    /// transmission arrived.
    Spurious(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordState {
    /// Sent, and not acknowledged.
    Waiting,
    /// To be retransmitted.
    Due,
    Acked,
}

impl SendWindow {
    /// A window whose first record is `first`, with [`WINDOW_MIN_RECORDS`] of
    /// credit.
    pub fn new(first: Seq, budget: Budget) -> Self {
        Self {
            base: first.0.into(),
            in_flight: VecDeque::new(),
            bytes: 0,
            budget,
            charged: 0,
            credit: first.0.saturating_add(WINDOW_MIN_RECORDS - 1),
            congestion: Congestion::new(),
            waiting: 0,
            due: 0,
            timer: None,
            rto: Rto::new(),
        }
    }

    /// The number of the next record; `None` when the numbers are exhausted.
    pub fn next(&self) -> Option<Seq> {
        u32::try_from(self.end()).ok().map(Seq)
    }

    /// Whether a frame of `len` bytes may be sent. Check before sealing: a
    /// sealed number must be sent.
    pub fn has_room(&self, len: usize) -> bool {
        self.due == 0
            && self.waiting < self.congestion.window()
            && self.in_flight.len() < WINDOW_MAX_RECORDS as usize
            && self.has_memory(len)
            && self.has_credit()
    }

    /// Whether the peer accepts the next record.
    pub fn has_credit(&self) -> bool {
        self.next().is_some_and(|next| next.0 <= self.credit)
    }

    fn has_memory(&self, len: usize) -> bool {
        let bytes = self.bytes + len;
        extra(bytes).saturating_sub(self.charged) <= self.budget.free()
    }

    /// Keeps the frame that carries record [`next`](Self::next).
    pub fn push(&mut self, wire: Bytes, now: Instant) {
        self.account(self.bytes + wire.len());
        let (state, sent) = (RecordState::Waiting, Sent::Once(now));
        self.in_flight.push_back(InFlight { wire, state, sent });
        self.waiting += 1;
        self.timer.get_or_insert(now);
    }

    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Handles an authenticated acknowledgement. An old one has no effect.
    ///
    /// # Errors
    /// [`AckOfUnsent`]: the peer broke the protocol.
    pub fn on_ack(&mut self, ack: Ack, credit: u32, now: Instant) -> Result<(), AckOfUnsent> {
        let newest = match ack.bits {
            0 => u64::from(ack.up_to),
            bits => u64::from(ack.up_to) + 2 + u64::from(bits.ilog2()),
        };
        if newest >= self.end() {
            return Err(AckOfUnsent);
        }
        self.credit = self.credit.max(credit);

        let under_way = self.waiting;
        // the last sample of a waiting record, and of one presumed lost
        let (mut sample, mut late) = (None, None);
        let mut mark_acked = |window: &mut Self, index| match window.mark_acked(index, now) {
            AckSample::Spurious(round_trip) => late = Some(round_trip),
            AckSample::RoundTrip(round_trip) => sample = Some(round_trip),
            AckSample::None => {}
        };
        let cumulative = (u64::from(ack.up_to) + 1).saturating_sub(self.base) as usize;
        for index in 0..cumulative.min(self.in_flight.len()) {
            mark_acked(self, index);
        }
        for bit in (0..u32::BITS).filter(|bit| ack.bits >> bit & 1 == 1) {
            let seq = u64::from(ack.up_to) + 2 + u64::from(bit);
            if let Some(index) = seq.checked_sub(self.base) {
                mark_acked(self, index as usize);
            }
        }
        if let Some(rtt) = sample {
            self.rto.sample(rtt);
        }
        self.congestion.on_ack(under_way - self.waiting, under_way);
        if let Some(rtt) = late
            && self.congestion.undo_timeout()
        {
            self.rto.sample(rtt);
            self.unmark_all_due(now);
        }

        let mut progress = false;
        while self.in_flight.front().is_some_and(|record| record.state == RecordState::Acked) {
            self.in_flight.pop_front();
            self.base += 1;
            progress = true;
        }
        self.congestion.acked_through(self.base);
        if ack.bits != 0 {
            self.resend_gaps();
        }
        if progress {
            self.rto.progress();
            self.timer = Some(now);
        }
        if self.waiting == 0 {
            self.timer = None;
        }
        Ok(())
    }

    /// Returns the next frame to retransmit, unchanged.
    pub fn poll_retransmit(&mut self, now: Instant) -> Option<Bytes> {
        if !self.wants_retransmit() {
            return None;
        }
        let index = self.in_flight.iter().position(|record| record.state == RecordState::Due)?;
        let record = self.in_flight.get_mut(index)?;
        record.state = RecordState::Waiting;
        record.sent = match record.sent {
            Sent::Once(first) | Sent::Again { first, .. } => Sent::Again { first, last: now },
            Sent::OldPath => Sent::OldPath,
        };
        self.due -= 1;
        self.waiting += 1;
        // The oldest gap gets a whole timeout.
        if index == 0 || self.timer.is_none() {
            self.timer = Some(now);
        }
        Some(record.wire.clone())
    }

    /// Whether [`poll_retransmit`](Self::poll_retransmit) has a frame.
    pub fn wants_retransmit(&self) -> bool {
        self.due > 0 && self.waiting < self.congestion.window()
    }

    /// The time at which to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timer.map(|since| since + self.rto.current())
    }

    /// If the timeout has expired, presumes everything in flight lost. It is
    /// retransmitted in bursts that double as acknowledgements return.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.rto.back_off();
            self.congestion.on_timeout(self.end());
            self.mark_all_due();
        }
    }

    /// Presumes everything in flight lost because the path was replaced, and
    /// forgets what was measured on the former one.
    pub fn path_replaced(&mut self) {
        self.rto.path_replaced();
        self.congestion = Congestion::new();
        self.mark_all_due();
        for record in &mut self.in_flight {
            record.sent = Sent::OldPath;
        }
    }

    /// The round-trip estimate, for probes of this peer.
    pub fn rto(&self) -> &Rto {
        &self.rto
    }

    /// One past the newest number that was sent.
    fn end(&self) -> u64 {
        self.base + self.in_flight.len() as u64
    }

    fn mark_all_due(&mut self) {
        for index in 0..self.in_flight.len() {
            self.mark_due(index);
        }
        self.timer = None;
    }

    /// Considers records that wait for their first retransmission to be in
    /// flight again.
    fn unmark_all_due(&mut self, now: Instant) {
        for record in &mut self.in_flight {
            if record.state == RecordState::Due && matches!(record.sent, Sent::Once(_)) {
                record.state = RecordState::Waiting;
                self.due -= 1;
                self.waiting += 1;
            }
        }
        if self.waiting > 0 {
            self.timer.get_or_insert(now);
        }
    }

    fn mark_due(&mut self, index: usize) {
        if let Some(record) = self.in_flight.get_mut(index)
            && record.state == RecordState::Waiting
        {
            record.state = RecordState::Due;
            self.waiting -= 1;
            self.due += 1;
        }
    }

    /// Marks a record as acknowledged.
    fn mark_acked(&mut self, index: usize, now: Instant) -> AckSample {
        let Some(record) = self.in_flight.get_mut(index) else { return AckSample::None };
        let given_up = match record.state {
            RecordState::Acked => return AckSample::None,
            RecordState::Due => {
                self.due -= 1;
                true
            }
            RecordState::Waiting => {
                self.waiting -= 1;
                false
            }
        };
        record.state = RecordState::Acked;
        let sent = record.sent;
        let len = std::mem::take(&mut record.wire).len();
        self.account(self.bytes - len);
        let since = |sent| now.saturating_duration_since(sent);
        match sent {
            Sent::Once(at) if given_up => AckSample::Spurious(since(at)),
            Sent::Once(at) => AckSample::RoundTrip(since(at)),
            // RFC 8985, section 6.2, step 2
            Sent::Again { first, last }
                if self.rto.shortest().is_some_and(|shortest| since(last) < shortest) =>
            {
                AckSample::Spurious(since(first))
            }
            Sent::Again { .. } | Sent::OldPath => AckSample::None,
        }
    }

    /// Marks records for retransmission that enough later ones have overtaken.
    /// Once each: a second loss waits for the timeout.
    fn resend_gaps(&mut self) {
        let end = self.end();
        let mut later = 0;
        for index in (0..self.in_flight.len()).rev() {
            let record = &self.in_flight[index];
            match record.state {
                RecordState::Acked => later += 1,
                RecordState::Waiting
                    if later >= FAST_RESEND_RECORDS && matches!(record.sent, Sent::Once(_)) =>
                {
                    self.mark_due(index);
                    self.congestion.on_loss(self.base + index as u64, end);
                }
                RecordState::Waiting | RecordState::Due => {}
            }
        }
    }

    /// Updates the bytes in flight and their charge.
    fn account(&mut self, bytes: usize) {
        self.bytes = bytes;
        let due = extra(bytes);
        if due < self.charged {
            self.budget.release(self.charged - due);
            self.charged = due;
        } else if self.budget.try_acquire(due - self.charged) {
            self.charged = due;
        }
    }
}

impl Drop for SendWindow {
    fn drop(&mut self) {
        self.account(0);
    }
}

/// The bytes that are charged to the budget.
fn extra(bytes: usize) -> usize {
    bytes.saturating_sub(WINDOW_MIN_BYTES)
}

#[cfg(test)]
mod tests;
