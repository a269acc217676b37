//! Follows the frames of a websocket (RFC 6455, section 5.2) in the bytes that the
//! library reads. The library shows a message only when it is complete.

use rendez_proto::limits;

/// Longest head of a frame: two bytes, a length of eight and a mask of four.
const HEAD_MAX_BYTES: usize = 14;

/// The position within the frames and messages of one websocket.
#[derive(Debug, Default)]
pub(super) struct FrameParser {
    /// `head[..head_bytes]` is the part of a frame's head that has arrived.
    head: [u8; HEAD_MAX_BYTES],
    head_bytes: usize,
    /// The frame whose payload is not complete.
    frame: Option<Frame>,
    /// Payload bytes of the complete fragments of a message that lacks its last one.
    fragments: Option<usize>,
    /// The payload of the largest frame since [`reset_largest`](Self::reset_largest).
    largest: usize,
    /// Times that a frame began while no message was unfinished.
    begun: u64,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: FrameKind,
    /// At most [`limits::MESSAGE_MAX_BYTES`]: the library reads no larger payload.
    length: usize,
    remaining: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameKind {
    Control,
    /// A frame of data that is not the last of its message.
    Fragment,
    /// A whole message, or its last fragment.
    Last,
}

impl FrameParser {
    /// Advances by bytes that were read.
    pub(super) fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = match &mut self.frame {
                Some(frame) => {
                    let length =
                        bytes.len().min(usize::try_from(frame.remaining).unwrap_or(usize::MAX));
                    frame.remaining -= length as u64;
                    if frame.remaining == 0 {
                        self.end_frame();
                    }
                    &bytes[length..]
                }
                None => self.advance_head(bytes),
            };
        }
    }

    /// Whether no frame and no message is unfinished.
    pub(super) fn is_between_messages(&self) -> bool {
        self.head_bytes == 0 && self.frame.is_none() && self.fragments.is_none()
    }

    /// Identifies the unfinished message.
    pub(super) fn message(&self) -> Option<u64> {
        (!self.is_between_messages()).then_some(self.begun)
    }

    /// Bytes that the library holds or has reserved: a buffer for the largest frame,
    /// which it keeps afterwards, and a second one for the fragments of a message.
    pub(super) fn buffered_bytes(&self) -> usize {
        let fragments = match (self.fragments, self.frame) {
            (Some(before), Some(frame)) if frame.kind != FrameKind::Control => {
                before + frame.length
            }
            (Some(before), _) => before,
            (None, Some(frame)) if frame.kind == FrameKind::Fragment => frame.length,
            (None, _) => 0,
        };
        self.largest + fragments.min(limits::MESSAGE_MAX_BYTES)
    }

    /// The payload of the largest frame.
    pub(super) fn largest(&self) -> usize {
        self.largest
    }

    /// The library has dropped its buffer.
    pub(super) fn reset_largest(&mut self) {
        self.largest = 0;
    }

    /// Takes bytes of a head; returns the rest.
    fn advance_head<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.is_between_messages() {
            self.begun += 1;
        }
        let length = bytes.len().min(self.head_length() - self.head_bytes);
        self.head[self.head_bytes..self.head_bytes + length].copy_from_slice(&bytes[..length]);
        self.head_bytes += length;
        // The first two bytes tell the length of the rest.
        if self.head_bytes == self.head_length() {
            self.begin_frame();
        }
        &bytes[length..]
    }

    /// The length of the head, as far as it is known.
    fn head_length(&self) -> usize {
        if self.head_bytes < 2 {
            return 2;
        }
        let length = match self.head[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.head[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    fn begin_frame(&mut self) {
        let [first, second, length @ ..] = self.head;
        let [a, b, c, d, e, f, g, h, ..] = length;
        let remaining = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes([a, b])),
            127 => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            short => u64::from(short),
        };
        let kind = match (first & 0x08 != 0, first & 0x80 != 0) {
            (true, _) => FrameKind::Control,
            (false, false) => FrameKind::Fragment,
            (false, true) => FrameKind::Last,
        };
        let length =
            usize::try_from(remaining).unwrap_or(usize::MAX).min(limits::MESSAGE_MAX_BYTES);
        self.head_bytes = 0;
        self.largest = self.largest.max(length);
        self.frame = Some(Frame { kind, length, remaining });
        if remaining == 0 {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        let Some(frame) = self.frame.take() else { return };
        match frame.kind {
            FrameKind::Control => {}
            FrameKind::Fragment => {
                let before = self.fragments.unwrap_or_default();
                self.fragments = Some((before + frame.length).min(limits::MESSAGE_MAX_BYTES));
            }
            FrameKind::Last => self.fragments = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTINUE: u8 = 0;
    const BINARY: u8 = 2;
    const PING: u8 = 9;

    /// A masked frame, as clients send it.
    fn frame(opcode: u8, last: bool, length: usize) -> Vec<u8> {
        let mut bytes = vec![opcode | if last { 0x80 } else { 0 }];
        match length {
            0..126 => bytes.push(0x80 | length as u8),
            126..65_536 => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        bytes.resize(bytes.len() + length, 7);
        bytes
    }

    #[test]
    fn frames_end_where_their_heads_say() {
        for length in [0, 1, 125, 126, 65_535, 65_536, limits::MESSAGE_MAX_BYTES] {
            let bytes = frame(BINARY, true, length);
            for piece in [1, 2, 3, 13, 2048, bytes.len()] {
                let mut parser = FrameParser::default();
                let (last, before) = bytes.split_last().unwrap();
                before.chunks(piece).for_each(|piece| parser.advance(piece));
                assert!(!parser.is_between_messages(), "{length} in pieces of {piece}");
                assert_eq!(parser.message(), Some(1));
                parser.advance(&[*last]);
                assert!(parser.is_between_messages(), "{length} in pieces of {piece}");
                assert_eq!(parser.buffered_bytes(), length);
            }
        }
    }

    #[test]
    fn declared_length_counts_before_the_payload() {
        let mut parser = FrameParser::default();
        parser.advance(&frame(BINARY, true, 60_000)[..8]);
        assert_eq!(parser.buffered_bytes(), 60_000);
        let mut parser = FrameParser::default();
        parser.advance(&[0x82, 0xff]);
        parser.advance(&[0xff; 12]);
        assert_eq!(parser.buffered_bytes(), limits::MESSAGE_MAX_BYTES, "the library refuses it");
    }

    #[test]
    fn fragments_count_twice_until_the_last() {
        let mut parser = FrameParser::default();
        parser.advance(&frame(BINARY, false, 1000));
        assert_eq!((parser.message(), parser.buffered_bytes()), (Some(1), 2000));
        parser.advance(&frame(PING, true, 10));
        assert_eq!((parser.message(), parser.buffered_bytes()), (Some(1), 2000));
        parser.advance(&frame(CONTINUE, false, 0));
        parser.advance(&frame(CONTINUE, true, 500)[..20]);
        assert_eq!((parser.message(), parser.buffered_bytes()), (Some(1), 2500));
        parser.advance(&frame(CONTINUE, true, 500)[20..]);
        assert_eq!((parser.message(), parser.buffered_bytes()), (None, 1000));
        parser.reset_largest();
        assert_eq!(parser.buffered_bytes(), 0);
        parser.advance(&frame(PING, true, 10)[..1]);
        assert_eq!(parser.message(), Some(2), "also a control frame must end");
    }
}
