//! What the seals of a reliable stream cover beside the record.
//!
//! ```text
//! record:  nonce = seq - 1                 ad = ack(4) bits(4) credit(4) seq(4)
//! proof:   nonce = 2^63 | counter          ad = kind(1) ack(4) bits(4) credit(4) rest
//!          rest  = next_seq(4) of a resume, the reason of a reset, nothing else
//! ```
//! All numbers are big-endian; `kind` is the body's field number in the frame.
//! Record nonces stay below 2^32, so the two never meet. A counter is used
//! once and strictly increases; an older one is a replay.

use rendez_proto::frame::{Ack, Body, Frame, Proof};
use rendez_proto::ids::Seq;

use crate::noise::{Opener, Refused, Sealer};

/// Marks nonces of proofs.
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
/// never carries a proof.
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
    seen: u64,
}

impl Proofs {
    /// Adds a proof to `frame`.
    pub(super) fn prove(&mut self, sealer: &Sealer, frame: &mut Frame) -> Result<(), Refused> {
        let ad = proof_ad(frame).ok_or(Refused)?;
        let counter = self.sent + 1;
        let tag = sealer.prove(PROOF | counter, &ad)?;
        self.sent = counter;
        frame.proof = Some(Proof { counter, tag });
        Ok(())
    }

    /// Whether the peer made `frame`, and after all others that were seen.
    pub(super) fn verify(&mut self, opener: &Opener, frame: &Frame) -> bool {
        let Some(proof) = &frame.proof else { return false };
        if proof.counter <= self.seen || proof.counter >= PROOF {
            return false;
        }
        let valid =
            proof_ad(frame).is_some_and(|ad| opener.verify(PROOF | proof.counter, &ad, &proof.tag));
        if valid {
            self.seen = proof.counter;
        }
        valid
    }
}
