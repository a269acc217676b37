//! How a stream ends, and frames that can be made without a stream.

use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::profile::Profile;

use crate::error::{Closed, Misbehaviour};
use crate::framing::ReceiveError;

/// Why a stream ends, and the reset that notifies the peer, if any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamEnd {
    pub(crate) why: Closed,
    pub(crate) reset: Option<ResetReason>,
}

impl StreamEnd {
    pub(crate) fn misbehaved(how: Misbehaviour) -> Self {
        Self { why: Closed::PeerMisbehaved(how), reset: Some(ResetReason::ProtocolError) }
    }

    pub(super) fn out_of_sequence() -> Self {
        Self { why: Closed::OutOfSequence, reset: Some(ResetReason::ProtocolError) }
    }

    pub(super) fn reset_by_peer(reason: &str) -> Self {
        let why = match ResetReason::parse(reason) {
            ResetReason::Finished => Closed::Finished,
            reason => Closed::Reset(reason),
        };
        Self { why, reset: None }
    }
}

impl From<ReceiveError> for StreamEnd {
    fn from(error: ReceiveError) -> Self {
        match error {
            ReceiveError::InvalidLength(_) => Self::misbehaved(Misbehaviour::MessageLength),
            ReceiveError::MemoryExhausted => {
                Self { why: Closed::MemoryExhausted, reset: Some(ResetReason::Overloaded) }
            }
        }
    }
}

/// Encodes an unauthenticated reset.
pub(crate) fn reset(id: &StreamId, reason: ResetReason) -> Bytes {
    Frame::bare(id.clone(), Body::Reset { reason: reason.as_str().to_owned() }).encode()
}

/// The profile's name in a handshake frame; stock peers send and expect none.
pub(crate) fn wire_name(profile: Profile) -> String {
    if profile.is_reliable() { profile.name().to_owned() } else { String::new() }
}
