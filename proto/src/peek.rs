//! The part of a frame that a relay reads: the stream id and the kind of body.
//!
//! A relay never decodes. [`peek`] walks the top-level protobuf fields once and
//! skips payloads by their length. It does not change the bytes, so unknown
//! fields pass. As in protobuf, the last of a repeated field counts.
//!
//! [`peek`] accepts every frame that [`Frame::decode`](crate::frame::Frame::decode)
//! accepts, with the same stream id and kind (a property test holds this). It
//! may accept more: only the endpoints check the inside of a body.

use crate::ids::STREAM_ID_MAX_BYTES;

/// The kind of a frame's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A sealed record.
    Data,
    /// A bare acknowledgement.
    Ack,
    /// A reattached stream.
    Resume,
    /// The end of a stream.
    Reset,
    /// Nothing.
    Heartbeat,
    /// A Noise handshake message.
    Handshake,
}

impl Kind {
    /// All kinds, for counters.
    pub const ALL: [Kind; 6] =
        [Kind::Data, Kind::Ack, Kind::Resume, Kind::Reset, Kind::Heartbeat, Kind::Handshake];

    /// The name for counters and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Ack => "ack",
            Kind::Resume => "resume",
            Kind::Reset => "reset",
            Kind::Heartbeat => "heartbeat",
            Kind::Handshake => "handshake",
        }
    }

    /// Whether the frame may overtake others of its stream: its content is
    /// cumulative, so only the newest matters.
    pub fn may_overtake(self) -> bool {
        matches!(self, Kind::Ack | Kind::Heartbeat)
    }
}

/// The fields of a frame that a relay knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peek<'a> {
    /// The stream id: not blank, at most [`STREAM_ID_MAX_BYTES`].
    pub stream: &'a str,
    /// The kind of body.
    pub kind: Kind,
}

/// Why bytes cannot be routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeekError {
    /// Truncated, or not protobuf.
    #[error("not a protobuf message")]
    NotProtobuf,
    /// Another version than 1.
    #[error("unsupported frame version")]
    Version,
    /// No usable stream id.
    #[error("missing, blank or overlong stream id")]
    StreamId,
    /// No known body.
    #[error("no known body")]
    NoBody,
}

/// Reads the stream id and the kind of body of an encoded frame.
///
/// # Errors
/// [`PeekError`] if the bytes cannot be routed; the relay drops and counts them.
pub fn peek(frame: &[u8]) -> Result<Peek<'_>, PeekError> {
    const VARINT: u64 = 0;
    const FIXED64: u64 = 1;
    const LENGTH_DELIMITED: u64 = 2;
    const FIXED32: u64 = 5;

    let mut rest = Reader(frame);
    let mut version = 0;
    let mut stream: &[u8] = &[];
    let mut kind = None;
    while !rest.0.is_empty() {
        let tag = rest.varint()?;
        let field = tag >> 3;
        match tag & 7 {
            VARINT => {
                let value = rest.varint()?;
                if field == 1 {
                    version = value as u32; // protobuf truncates a uint32 the same way
                }
            }
            LENGTH_DELIMITED => {
                let len = rest.varint()?;
                let value = rest.take(len)?;
                match field {
                    2 => stream = value,
                    5 => kind = Some(Kind::Data),
                    6 => kind = Some(Kind::Ack),
                    7 => kind = Some(Kind::Resume),
                    8 => kind = Some(Kind::Reset),
                    9 => kind = Some(Kind::Heartbeat),
                    10 => kind = Some(Kind::Handshake),
                    _ => {}
                }
            }
            FIXED64 => drop(rest.take(8)?),
            FIXED32 => drop(rest.take(4)?),
            _ => return Err(PeekError::NotProtobuf),
        }
        if field == 0 {
            return Err(PeekError::NotProtobuf);
        }
    }
    if version != 1 {
        return Err(PeekError::Version);
    }
    let stream = std::str::from_utf8(stream).map_err(|_| PeekError::StreamId)?;
    if stream.len() > STREAM_ID_MAX_BYTES || stream.trim().is_empty() {
        return Err(PeekError::StreamId);
    }
    Ok(Peek { stream, kind: kind.ok_or(PeekError::NoBody)? })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, PeekError> {
        let mut value = 0u64;
        for (i, &byte) in self.0.iter().enumerate().take(10) {
            value |= u64::from(byte & 0x7f) << (7 * i as u32);
            if byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Ok(value);
            }
        }
        Err(PeekError::NotProtobuf)
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], PeekError> {
        let len = usize::try_from(len).map_err(|_| PeekError::NotProtobuf)?;
        let (head, tail) = self.0.split_at_checked(len).ok_or(PeekError::NotProtobuf)?;
        self.0 = tail;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::tests::any_frame;
    use crate::frame::{Body, Frame};
    use proptest::prelude::*;

    fn kind_of(body: &Body) -> Kind {
        match body {
            Body::Data { .. } => Kind::Data,
            Body::Ack => Kind::Ack,
            Body::Resume { .. } => Kind::Resume,
            Body::Reset { .. } => Kind::Reset,
            Body::Heartbeat => Kind::Heartbeat,
            Body::Handshake { .. } => Kind::Handshake,
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let frame = Frame::bare("s".parse().unwrap(), Body::Ack);
        let mut bytes = frame.encode().to_vec();
        bytes.extend([0xa0, 0x06, 0x05]); // field 100, varint
        bytes.extend([0xaa, 0x06, 0x01, 0xff]); // field 101, length-delimited
        bytes.extend([0xb5, 0x06, 1, 2, 3, 4]); // field 102, fixed32
        bytes.extend([0xb9, 0x06, 1, 2, 3, 4, 5, 6, 7, 8]); // field 103, fixed64
        assert_eq!(peek(&bytes), Ok(Peek { stream: "s", kind: Kind::Ack }));
    }

    #[test]
    fn malformed_frames_are_named() {
        assert_eq!(peek(b""), Err(PeekError::Version));
        assert_eq!(peek(b"\x08\x02"), Err(PeekError::Version));
        assert_eq!(peek(b"\x08\x01\x12\x01 "), Err(PeekError::StreamId));
        assert_eq!(peek(b"\x08\x01\x12\x01s"), Err(PeekError::NoBody));
        assert_eq!(peek(b"\x08\x01\x12\x02s"), Err(PeekError::NotProtobuf));
        assert_eq!(peek(&[0xff; 11]), Err(PeekError::NotProtobuf));
    }

    proptest! {
        #[test]
        fn peek_agrees_with_the_decoder(frame in any_frame()) {
            let bytes = frame.encode();
            let peeked = peek(&bytes).unwrap();
            prop_assert_eq!(peeked.stream, frame.stream.as_str());
            prop_assert_eq!(peeked.kind, kind_of(&frame.body));
        }

        #[test]
        fn every_decodable_frame_can_be_routed(
            frame in any_frame(),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        ) {
            let mut bytes = frame.encode().to_vec();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Ok(frame) = Frame::decode(bytes.clone().into()) {
                let peeked = peek(&bytes);
                prop_assert_eq!(
                    peeked,
                    Ok(Peek { stream: frame.stream.as_str(), kind: kind_of(&frame.body) })
                );
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = peek(&bytes);
        }
    }
}
