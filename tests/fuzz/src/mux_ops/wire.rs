//! An observer of both sockets: it checks that no nonce is used twice, and
//! notes which ends received "unknown stream".

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash as _, Hasher as _};

use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::limits::{FRAME_OVERHEAD_MAX_BYTES, NOISE_MESSAGE_MAX_BYTES};

use super::Side;
use super::model::Ends;
use crate::noise::stream;

/// A stream at one end.
type At = (Side, String);

#[derive(Debug, Default)]
pub(super) struct Wire {
    /// Digests of the frames with each record number.
    records: BTreeMap<(At, u32), BTreeSet<u64>>,
    /// How often each proof counter was used.
    proofs: BTreeMap<(At, u64), usize>,
    resumed: BTreeSet<At>,
    /// The ends that received "unknown stream" after a resume.
    unknown_answers: BTreeSet<At>,
}

impl Wire {
    /// Notes a frame that an end sends.
    pub(super) fn left(&mut self, from: Side, wire: &Bytes, ends: &Ends) {
        assert!(wire.len() <= NOISE_MESSAGE_MAX_BYTES + FRAME_OVERHEAD_MAX_BYTES, "a huge frame");
        let frame = Frame::decode(wire.clone()).expect("an end sends frames");
        let at = (from, frame.stream.as_str().to_owned());
        let keys = ends.opened(from, &at.1);
        match frame.body {
            Body::Data { seq, .. } => {
                let mut hash = DefaultHasher::new();
                wire.hash(&mut hash);
                let alike = self.records.entry((at, seq.0)).or_default();
                alike.insert(hash.finish());
                assert!(alike.len() <= keys, "two records under one nonce");
                return;
            }
            Body::Resume { .. } if frame.proof.is_some() => {
                self.resumed.insert(at.clone());
            }
            _ => {}
        }
        if let Some(proof) = frame.proof {
            let times = self.proofs.entry((at, proof.counter)).or_default();
            *times += 1;
            assert!(*times <= keys, "two proofs under one nonce");
        }
    }

    /// Notes a message that an end receives.
    pub(super) fn arrives(&mut self, to: Side, wire: &Bytes) {
        let Ok(frame) = Frame::decode(wire.clone()) else { return };
        let at = (to, frame.stream.as_str().to_owned());
        if let (Body::Reset { reason }, None) = (frame.body, frame.proof)
            && matches!(
                ResetReason::parse(&reason),
                ResetReason::UnknownStream | ResetReason::ProtocolError
            )
            && self.resumed.contains(&at)
        {
            self.unknown_answers.insert(at);
        }
    }

    /// Whether a resume of this end was answered with "unknown stream".
    pub(super) fn got_unknown_stream(&self, side: Side, id: u8) -> bool {
        self.unknown_answers.contains(&(side, stream(id).as_str().to_owned()))
    }
}
