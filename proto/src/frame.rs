//! The relay frame as endpoints see it: decoded once into [`Frame`].
//!
//! ```text
//! frame   = version(1) stream_id ack ack_bits body [trace] [credit] [proof]
//! body    = data{seq, record} | ack | resume{next_seq} | reset{reason}
//!         | heartbeat | handshake{message, profile}
//! ```
//!
//! Contract: docs/codex-wire.md#frame. [`Frame::decode`] enforces the rules of
//! the stock ends: a version other than 1, a blank stream id, a missing
//! body, an empty payload, a segmented record or an empty reset reason is not
//! a frame. A receiver drops such bytes and keeps the socket.

use bytes::Bytes;
use prost::Message as _;

use crate::ids::{Seq, StreamId};
use crate::wire;

const VERSION: u32 = 1;

/// One parsed frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream that the frame belongs to.
    pub stream: StreamId,
    /// The frames that its sender has received (all zero in the Codex profile).
    pub ack: Ack,
    /// The highest sequence that its sender will accept (0 in the Codex profile).
    pub credit: u32,
    /// The body.
    pub body: Body,
    /// Authenticates a frame without a record in a reliable profile.
    pub proof: Option<Proof>,
}

/// Cumulative and selective acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ack {
    /// Every sequence up to this one has arrived; 0: none yet.
    pub up_to: u32,
    /// Bit `n`: sequence `up_to + 2 + n` has arrived as well.
    pub bits: u32,
}

/// The body of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// One sealed record.
    Data {
        /// Its position and nonce.
        seq: Seq,
        /// Ciphertext and tag.
        record: Bytes,
    },
    /// Only the frame's ack and credit.
    Ack,
    /// The sender has a new websocket and expects `next_seq`.
    Resume {
        /// The next sequence that the sender has not received.
        next_seq: u32,
    },
    /// The stream is over, or (unauthenticated, in a reliable profile) a hint
    /// by the relay that the far end is away.
    Reset {
        /// Text of an untrusted party; see [`ResetReason::parse`].
        reason: String,
    },
    /// Keeps a path alive; carries nothing.
    Heartbeat,
    /// A Noise handshake message.
    Handshake {
        /// The message.
        message: Bytes,
        /// The profile's name; empty for the Codex profile.
        profile: String,
    },
}

/// An empty AEAD seal over the rest of the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Strictly increasing per direction of a stream.
    pub counter: u64,
    /// The AEAD tag.
    pub tag: [u8; 16],
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not the protobuf message.
    #[error("not a protobuf frame")]
    NotProtobuf,
    /// Another version than 1.
    #[error("frame version {0} is not supported")]
    Version(u32),
    /// A blank or overlong stream id.
    #[error("{0}")]
    StreamId(#[from] crate::ids::InvalidId),
    /// No body, or an unknown kind of body.
    #[error("frame without a known body")]
    NoBody,
    /// A body that breaks its own rules.
    #[error("{0}")]
    Body(&'static str),
}

impl Frame {
    /// A frame without acknowledgement, credit and proof, like all frames of the
    /// Codex profile.
    pub fn bare(stream: StreamId, body: Body) -> Self {
        Self { stream, ack: Ack::default(), credit: 0, body, proof: None }
    }

    /// Parses one websocket message. The record or handshake message is a
    /// slice of `message`, not a copy.
    ///
    /// # Errors
    /// [`FrameError`] names the rule that the bytes break.
    pub fn decode(message: Bytes) -> Result<Self, FrameError> {
        let frame =
            wire::RelayMessageFrame::decode(message).map_err(|_| FrameError::NotProtobuf)?;
        if frame.version != VERSION {
            return Err(FrameError::Version(frame.version));
        }
        let stream = frame.stream_id.parse()?;
        let proof = match frame.proof {
            None => None,
            Some(proof) => Some(Proof {
                counter: proof.counter,
                tag: <[u8; 16]>::try_from(proof.tag.as_ref())
                    .map_err(|_| FrameError::Body("a proof's tag has 16 bytes"))?,
            }),
        };
        Ok(Self {
            stream,
            ack: Ack { up_to: frame.ack, bits: frame.ack_bits },
            credit: frame.credit,
            body: Body::parse(frame.body.ok_or(FrameError::NoBody)?)?,
            proof,
        })
    }

    /// The frame's bytes: one binary websocket message.
    pub fn encode(&self) -> Bytes {
        use wire::relay_message_frame::Body as Wire;
        let body = match &self.body {
            Body::Data { seq, record } => Wire::Data(wire::RelayData {
                seq: seq.0,
                segment_index: 0,
                segment_count: 1,
                payload: record.clone(),
            }),
            Body::Ack => Wire::AckFrame(wire::RelayAck {}),
            Body::Resume { next_seq } => Wire::Resume(wire::RelayResume { next_seq: *next_seq }),
            Body::Reset { reason } => Wire::Reset(wire::RelayReset { reason: reason.clone() }),
            Body::Heartbeat => Wire::Heartbeat(wire::RelayHeartbeat {}),
            Body::Handshake { message, profile } => Wire::Handshake(wire::RelayHandshake {
                payload: message.clone(),
                profile: profile.clone(),
            }),
        };
        wire::RelayMessageFrame {
            version: VERSION,
            stream_id: self.stream.as_str().to_owned(),
            ack: self.ack.up_to,
            ack_bits: self.ack.bits,
            body: Some(body),
            traceparent: None,
            tracestate: None,
            credit: self.credit,
            proof: self.proof.as_ref().map(|proof| wire::RelayProof {
                counter: proof.counter,
                tag: Bytes::copy_from_slice(&proof.tag),
            }),
        }
        .encode_to_vec()
        .into()
    }
}

impl Body {
    fn parse(body: wire::relay_message_frame::Body) -> Result<Self, FrameError> {
        use wire::relay_message_frame::Body as Wire;
        Ok(match body {
            Wire::Data(data) => {
                if data.segment_index != 0 || data.segment_count != 1 {
                    return Err(FrameError::Body("a record is never segmented"));
                }
                if data.payload.is_empty() {
                    return Err(FrameError::Body("a data frame carries a record"));
                }
                Body::Data { seq: Seq(data.seq), record: data.payload }
            }
            Wire::AckFrame(_) => Body::Ack,
            Wire::Resume(resume) => Body::Resume { next_seq: resume.next_seq },
            Wire::Reset(reset) => {
                if reset.reason.is_empty() {
                    return Err(FrameError::Body("a reset has a reason"));
                }
                Body::Reset { reason: reset.reason }
            }
            Wire::Heartbeat(_) => Body::Heartbeat,
            Wire::Handshake(handshake) => {
                if handshake.payload.is_empty() {
                    return Err(FrameError::Body("a handshake carries a message"));
                }
                Body::Handshake { message: handshake.payload, profile: handshake.profile }
            }
        })
    }
}

/// Why a stream was reset: a closed set, so that text of a peer is never
/// logged, shown or matched on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResetReason {
    /// The relay: the orchestrator's websocket is gone.
    OrchestratorGone,
    /// The relay: the executor's websocket is gone.
    ExecutorGone,
    /// The relay: another orchestrator holds this stream id.
    StreamInUse,
    /// The relay: a stream that cannot resend did not read fast enough.
    Overloaded,
    /// An endpoint: the stream has finished.
    Finished,
    /// An endpoint: it has no stream of this id.
    UnknownStream,
    /// An endpoint: a handshake failed, was refused or came too often.
    HandshakeRefused,
    /// An endpoint: the peer broke the protocol. Also what stock executors
    /// send for any reason.
    ProtocolError,
    /// Any other text.
    Other,
}

impl ResetReason {
    /// All reasons, for documentation and counters.
    pub const ALL: [ResetReason; 9] = [
        ResetReason::OrchestratorGone,
        ResetReason::ExecutorGone,
        ResetReason::StreamInUse,
        ResetReason::Overloaded,
        ResetReason::Finished,
        ResetReason::UnknownStream,
        ResetReason::HandshakeRefused,
        ResetReason::ProtocolError,
        ResetReason::Other,
    ];

    /// The text on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            ResetReason::OrchestratorGone => "orchestrator_gone",
            ResetReason::ExecutorGone => "executor_gone",
            ResetReason::StreamInUse => "stream_in_use",
            ResetReason::Overloaded => "overloaded",
            ResetReason::Finished => "finished",
            ResetReason::UnknownStream => "unknown_stream",
            ResetReason::HandshakeRefused => "handshake_refused",
            ResetReason::ProtocolError => "noise_relay_protocol_error",
            ResetReason::Other => "other",
        }
    }

    /// Reads the text of a peer; an unknown text becomes [`ResetReason::Other`].
    pub fn parse(text: &str) -> Self {
        ResetReason::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .unwrap_or(ResetReason::Other)
    }
}

impl std::fmt::Display for ResetReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) const ID: &str = "00000000-0000-4000-8000-000000000001";

    fn id() -> StreamId {
        ID.parse().unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn id_hex() -> String {
        hex(ID.as_bytes())
    }

    /// docs/codex-wire.md#frame.
    #[test]
    fn codex_golden_bytes() {
        let resume = Frame::bare(id(), Body::Resume { next_seq: 0 });
        assert_eq!(hex(&resume.encode()), format!("08011224{}3a00", id_hex()));
        let data = Frame::bare(
            id(),
            Body::Data { seq: Seq(1), record: Bytes::from_static(&[0xaa, 0xbb]) },
        );
        assert_eq!(hex(&data.encode()), format!("08011224{}2a08080118012202aabb", id_hex()));
        let zero =
            Frame::bare(id(), Body::Data { seq: Seq(0), record: Bytes::from_static(&[0xaa]) });
        assert_eq!(hex(&zero.encode()), format!("08011224{}2a0518012201aa", id_hex()));
        let reset = Frame::bare(
            id(),
            Body::Reset { reason: ResetReason::ProtocolError.as_str().to_owned() },
        );
        assert_eq!(
            hex(&reset.encode()),
            format!("08011224{}421c0a1a{}", id_hex(), hex(b"noise_relay_protocol_error"))
        );
    }

    #[test]
    fn our_golden_bytes() {
        let ack = Frame {
            ack: Ack { up_to: 7, bits: 1 },
            credit: 70,
            proof: Some(Proof { counter: 3, tag: [0x11; 16] }),
            ..Frame::bare(id(), Body::Ack)
        };
        assert_eq!(
            hex(&ack.encode()),
            format!(
                "08011224{}180720013200684672140803121011111111111111111111111111111111",
                id_hex()
            )
        );
    }

    #[test]
    fn frames_that_stock_ends_drop_are_refused() {
        let good = wire::RelayMessageFrame {
            version: 1,
            stream_id: ID.into(),
            body: Some(wire::relay_message_frame::Body::Heartbeat(wire::RelayHeartbeat {})),
            ..Default::default()
        };
        let decode = |frame: &wire::RelayMessageFrame| Frame::decode(frame.encode_to_vec().into());
        assert!(decode(&good).is_ok());

        use wire::relay_message_frame::Body as Wire;
        let with = |body| wire::RelayMessageFrame { body, ..good.clone() };
        let data = |index, count, payload: &'static [u8]| {
            with(Some(Wire::Data(wire::RelayData {
                seq: 0,
                segment_index: index,
                segment_count: count,
                payload: payload.into(),
            })))
        };
        for bad in [
            wire::RelayMessageFrame { version: 0, ..good.clone() },
            wire::RelayMessageFrame { version: 2, ..good.clone() },
            wire::RelayMessageFrame { stream_id: " ".into(), ..good.clone() },
            wire::RelayMessageFrame { stream_id: "x".repeat(129), ..good.clone() },
            with(None),
            data(1, 1, b"x"),
            data(0, 2, b"x"),
            data(0, 1, b""),
            with(Some(Wire::Reset(wire::RelayReset::default()))),
            with(Some(Wire::Handshake(wire::RelayHandshake::default()))),
        ] {
            assert!(decode(&bad).is_err(), "{bad:?} was accepted");
        }
        assert_eq!(Frame::decode(Bytes::from_static(b"\xff")), Err(FrameError::NotProtobuf));
    }

    pub(crate) fn any_frame() -> impl Strategy<Value = Frame> {
        let bytes = || proptest::collection::vec(any::<u8>(), 1..200).prop_map(Bytes::from);
        let body = prop_oneof![
            (any::<u32>(), bytes()).prop_map(|(seq, record)| Body::Data { seq: Seq(seq), record }),
            Just(Body::Ack),
            any::<u32>().prop_map(|next_seq| Body::Resume { next_seq }),
            "[a-z_]{1,20}".prop_map(|reason| Body::Reset { reason }),
            Just(Body::Heartbeat),
            (bytes(), "[a-z_]{0,20}")
                .prop_map(|(message, profile)| Body::Handshake { message, profile }),
        ];
        let proof = proptest::option::of((any::<u64>(), any::<[u8; 16]>()))
            .prop_map(|proof| proof.map(|(counter, tag)| Proof { counter, tag }));
        ("[!-~]{1,128}", any::<[u32; 3]>(), body, proof).prop_map(
            |(stream, [up_to, bits, credit], body, proof)| Frame {
                stream: stream.parse().unwrap(),
                ack: Ack { up_to, bits },
                credit,
                body,
                proof,
            },
        )
    }

    proptest! {
        #[test]
        fn frames_round_trip(frame in any_frame()) {
            prop_assert_eq!(Frame::decode(frame.encode()), Ok(frame));
        }

        #[test]
        fn damaged_bytes_never_panic(
            frame in any_frame(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = frame.encode().to_vec();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            let _ = Frame::decode(bytes.into());
        }
    }
}
