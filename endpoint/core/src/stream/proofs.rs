//! Proofs on control frames, and the associated data of records, of a reliable
//! stream.
//!
//! ```text
//! record:  nonce = seq - 1                 ad = ack(4) bits(4) credit(4) seq(4)
//! proof:   nonce = 2^63 | counter          ad = kind(1) ack(4) bits(4) credit(4) rest
//!          rest  = next_seq(4) of a resume, the reason of a reset, nothing else
//! ```
//! All numbers are big-endian; `kind` is the body's field number in the frame.
//! Record nonces stay below 2^32, so the two ranges never meet. A counter is
//! used once and accepted once. A relay lets acknowledgements overtake, so a
//! counter slightly below the highest may be new; one far below, or accepted
//! before, is a replay.

use rendez_proto::frame::{Ack, Body, Frame, Proof};
use rendez_proto::ids::Seq;

use crate::noise::{Opener, SealError, Sealer};

/// How many proofs with a higher counter may arrive before one: a relay lets
/// acknowledgements overtake the resumes and resets of their stream.
const PROOF_REORDER: u64 = u64::BITS as u64;

/// The bit that marks nonces of proofs.
const PROOF: u64 = 1 << 63;

/// The associated data of a record.
pub(super) fn record_ad(ack: Ack, credit: u32, seq: Seq) -> [u8; 16] {
    let mut ad = [0; 16];
    for (to, value) in ad.chunks_exact_mut(4).zip([ack.up_to, ack.bits, credit, seq.0]) {
        to.copy_from_slice(&value.to_be_bytes());
    }
    ad
}

/// The associated data of a frame without a record; `None` for a body that
/// never has a proof.
fn proof_ad(frame: &Frame) -> Option<Vec<u8>> {
    let next_seq;
    let (kind, rest): (u8, &[u8]) = match &frame.body {
        Body::Ack => (6, &[]),
        Body::Resume { next_seq: next } => {
            next_seq = next.to_be_bytes();
            (7, &next_seq)
        }
        Body::Reset { reason } => (8, reason.as_bytes()),
        Body::Heartbeat => (9, &[]),
        Body::Data { .. } | Body::Handshake { .. } => return None,
    };
    let mut ad = vec![kind];
    for value in [frame.ack.up_to, frame.ack.bits, frame.credit] {
        ad.extend_from_slice(&value.to_be_bytes());
    }
    ad.extend_from_slice(rest);
    Some(ad)
}

/// The proof counters of both directions.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    sent: u64,
    seen: Seen,
}

/// A replay window over the accepted counters.
#[derive(Debug, Default)]
struct Seen {
    /// The highest accepted counter; 0, which is never used, if there is none.
    highest: u64,
    /// Bit `n`: `highest - n` was accepted.
    recent: u64,
}

impl Seen {
    fn is_new(&self, counter: u64) -> bool {
        match self.highest.checked_sub(counter) {
            None => true,
            Some(age) => counter > 0 && age < PROOF_REORDER && self.recent >> age & 1 == 0,
        }
    }

    /// Accepts a new counter.
    fn take(&mut self, counter: u64) {
        if let Some(ahead) = counter.checked_sub(self.highest) {
            let shifted =
                u32::try_from(ahead).ok().and_then(|ahead| self.recent.checked_shl(ahead));
            self.recent = shifted.unwrap_or(0);
            self.highest = counter;
        }
        self.recent |= 1 << (self.highest - counter);
    }
}

impl Proofs {
    /// Adds a proof to `frame`.
    pub(super) fn prove(&mut self, sealer: &Sealer, frame: &mut Frame) -> Result<(), SealError> {
        let ad = proof_ad(frame).ok_or(SealError)?;
        let counter = self.sent + 1;
        let tag = sealer.prove(PROOF | counter, &ad)?;
        self.sent = counter;
        frame.proof = Some(Proof { counter, tag });
        Ok(())
    }

    /// Whether the peer made `frame`, and its counter was not accepted before.
    pub(super) fn verify(&mut self, opener: &Opener, frame: &Frame) -> bool {
        let Some(proof) = &frame.proof else { return false };
        if proof.counter >= PROOF || !self.seen.is_new(proof.counter) {
            return false;
        }
        let valid =
            proof_ad(frame).is_some_and(|ad| opener.verify(PROOF | proof.counter, &ad, &proof.tag));
        if valid {
            self.seen.take(proof.counter);
        }
        valid
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compares with a plain set of the accepted counters.
        #[test]
        fn each_proof_counter_is_accepted_once(
            steps in proptest::collection::vec((any::<bool>(), 0u64..100), 1..200),
        ) {
            let (mut seen, mut taken) = (Seen::default(), BTreeSet::new());
            for (ahead, distance) in steps {
                let highest = taken.last().copied().unwrap_or(0);
                let counter = if ahead {
                    highest + distance
                } else {
                    highest.saturating_sub(distance)
                };
                let recent = counter + PROOF_REORDER > highest;
                let new = counter > 0 && recent && !taken.contains(&counter);
                prop_assert_eq!(seen.is_new(counter), new, "{} after {}", counter, highest);
                if new {
                    seen.take(counter);
                    taken.insert(counter);
                }
            }
        }
    }

    #[test]
    fn large_counter_jump_refuses_old_counters() {
        let mut seen = Seen::default();
        seen.take(1);
        seen.take(PROOF - 1);
        assert!(!seen.is_new(1) && !seen.is_new(2) && !seen.is_new(PROOF - 1));
        assert!(seen.is_new(PROOF - 2));
    }
}
