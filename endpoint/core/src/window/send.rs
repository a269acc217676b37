//! What is in flight: sealed once, kept until acknowledged.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use rendez_proto::frame::Ack;
use rendez_proto::ids::Seq;
use rendez_proto::limits::{FAST_RESEND_RECORDS, WINDOW_MAX_BYTES, WINDOW_MAX_RECORDS};

use super::Rto;

/// An authenticated acknowledgement of something that was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("acknowledged what was never sent")]
pub struct AckOfUnsent;

/// The sending side of one direction.
#[derive(Debug)]
pub struct SendWindow {
    /// The number of `slots[0]`, which is never acknowledged itself. Wider
    /// than a sequence number, so that it can lie past the last one.
    base: u64,
    slots: VecDeque<InFlight>,
    bytes: usize,
    /// The highest number that the peer accepts.
    credit: u32,
    /// How many slots wait to be resent.
    due: usize,
    rto: Rto,
    recovery: Option<Recovery>,
}

#[derive(Debug)]
struct InFlight {
    /// The frame with the sealed record; empty once acknowledged.
    wire: Bytes,
    sent: Instant,
    state: SlotState,
    /// Sent more than once: its round trip measures nothing.
    resent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Waiting,
    /// Waits to be handed out again.
    Due,
    Acked,
}

/// After a timeout: everything sent before it is suspect, and goes out again
/// in bursts that double with each sign that bursts arrive.
#[derive(Debug)]
struct Recovery {
    began: Instant,
    burst: usize,
}

impl SendWindow {
    /// A window whose first record is `first`, with [`WINDOW_MAX_RECORDS`] of
    /// credit.
    pub fn new(first: Seq) -> Self {
        Self {
            base: first.0.into(),
            slots: VecDeque::new(),
            bytes: 0,
            credit: first.0.saturating_add(WINDOW_MAX_RECORDS - 1),
            due: 0,
            rto: Rto::new(),
            recovery: None,
        }
    }

    /// The number of the next record; `None` when the numbers have run out.
    pub fn next(&self) -> Option<Seq> {
        u32::try_from(self.end()).ok().map(Seq)
    }

    /// Whether a frame of `len` bytes may be sent. Ask before sealing: a
    /// number that was sealed must go out.
    pub fn has_room(&self, len: usize) -> bool {
        self.slots.len() < WINDOW_MAX_RECORDS as usize
            && self.bytes + len <= WINDOW_MAX_BYTES
            && self.has_credit()
    }

    /// Whether the peer accepts the next record.
    pub fn has_credit(&self) -> bool {
        self.next().is_some_and(|next| next.0 <= self.credit)
    }

    /// Keeps the frame that carries record [`next`](Self::next).
    pub fn push(&mut self, wire: Bytes, now: Instant) {
        self.bytes += wire.len();
        self.slots.push_back(InFlight {
            wire,
            sent: now,
            state: SlotState::Waiting,
            resent: false,
        });
    }

    /// Whether everything is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes an authenticated acknowledgement. Old ones do no harm.
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

        let mut sample = None;
        let cumulative = (u64::from(ack.up_to) + 1).saturating_sub(self.base) as usize;
        for index in 0..cumulative.min(self.slots.len()) {
            sample = self.settle(index, now).or(sample);
        }
        for bit in (0..u32::BITS).filter(|bit| ack.bits >> bit & 1 == 1) {
            let seq = u64::from(ack.up_to) + 2 + u64::from(bit);
            if let Some(index) = seq.checked_sub(self.base) {
                sample = self.settle(index as usize, now).or(sample);
            }
        }
        if let Some(rtt) = sample {
            self.rto.sample(rtt);
        }

        let mut progress = false;
        while self.slots.front().is_some_and(|slot| slot.state == SlotState::Acked) {
            self.slots.pop_front();
            self.base += 1;
            progress = true;
        }
        if ack.bits != 0 {
            self.resend_gaps();
        }
        if progress {
            self.rto.progress();
            self.continue_recovery();
        }
        Ok(())
    }

    /// The next frame to send again, exactly as it was sent.
    pub fn poll_retransmit(&mut self, now: Instant) -> Option<Bytes> {
        if self.due == 0 {
            return None;
        }
        let slot = self.slots.iter_mut().find(|slot| slot.state == SlotState::Due)?;
        self.due -= 1;
        slot.state = SlotState::Waiting;
        slot.resent = true;
        slot.sent = now;
        Some(slot.wire.clone())
    }

    /// Whether [`poll_retransmit`](Self::poll_retransmit) has something.
    pub fn wants_retransmit(&self) -> bool {
        self.due > 0
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self.slots.front()?;
        (self.due == 0).then(|| oldest.sent + self.rto.current())
    }

    /// Marks the oldest gap for resending if its time has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.rto.back_off();
            self.recovery = Some(Recovery { began: now, burst: 1 });
            self.mark(0);
        }
    }

    /// Marks everything in flight for resending: the path was replaced.
    pub fn resend_all(&mut self) {
        self.rto.progress();
        self.recovery = None;
        for index in 0..self.slots.len() {
            self.mark(index);
        }
    }

    /// The present retransmission timeout, for whoever probes this peer.
    pub fn rto(&self) -> &Rto {
        &self.rto
    }

    /// One past the newest number that was sent.
    fn end(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    fn mark(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index)
            && slot.state == SlotState::Waiting
        {
            slot.state = SlotState::Due;
            self.due += 1;
        }
    }

    /// Notes that a slot arrived; its round trip, if it was sent once.
    fn settle(&mut self, index: usize, now: Instant) -> Option<std::time::Duration> {
        let slot = self.slots.get_mut(index)?;
        match slot.state {
            SlotState::Acked => return None,
            SlotState::Due => self.due -= 1,
            SlotState::Waiting => {}
        }
        slot.state = SlotState::Acked;
        self.bytes -= slot.wire.len();
        slot.wire = Bytes::new();
        (!slot.resent).then(|| now.saturating_duration_since(slot.sent))
    }

    /// Marks records that were overtaken by enough later ones. Once each: what
    /// is lost twice waits for the timeout.
    fn resend_gaps(&mut self) {
        let mut later = 0;
        for index in (0..self.slots.len()).rev() {
            let slot = &self.slots[index];
            match slot.state {
                SlotState::Acked => later += 1,
                SlotState::Waiting if later >= FAST_RESEND_RECORDS && !slot.resent => {
                    self.mark(index);
                }
                SlotState::Waiting | SlotState::Due => {}
            }
        }
    }

    fn continue_recovery(&mut self) {
        let Some(recovery) = &mut self.recovery else { return };
        recovery.burst = (recovery.burst * 2).min(WINDOW_MAX_RECORDS as usize);
        let (began, burst) = (recovery.began, recovery.burst);
        let mut suspects: Vec<usize> = (0..self.slots.len())
            .filter(|index| {
                let slot = &self.slots[*index];
                slot.state == SlotState::Waiting && slot.sent < began
            })
            .collect();
        if suspects.is_empty() {
            self.recovery = None;
        }
        suspects.truncate(burst);
        for index in suspects {
            self.mark(index);
        }
    }
}
