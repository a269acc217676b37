//! [`peek`] accepts every frame that the decoder accepts, and reports the same
//! stream and kind; unknown fields change nothing.

use arbitrary::Unstructured;
use bytes::Bytes;
use rendez_proto::frame::Frame;
use rendez_proto::ids::STREAM_ID_MAX_BYTES;
use rendez_proto::peek::{Peek, peek};

use crate::frames::{self, Patch};
use crate::noise::stream;

/// Reads `data` as a frame, and as the recipe of a damaged one.
pub fn run(data: &[u8]) {
    agree(data);
    let mut u = Unstructured::new(data);
    let made = frames::frame(&mut u, stream(0));
    if let (Ok(frame), Ok(patches)) = (made, u.arbitrary::<Vec<Patch>>()) {
        agree(&frames::patched(&frame.encode(), &patches));
    }
}

fn agree(bytes: &[u8]) {
    let peeked = peek(bytes);
    if let Ok(frame) = Frame::decode(Bytes::copy_from_slice(bytes)) {
        let expected = Peek { stream: frame.stream.as_str(), kind: frames::kind(&frame.body) };
        assert_eq!(peeked, Ok(expected), "the relay sees another frame than the endpoint");
    }
    if let Ok(seen) = peeked {
        assert!(!seen.stream.trim().is_empty() && seen.stream.len() <= STREAM_ID_MAX_BYTES);
        // field 101, length-delimited, one byte
        let longer = [bytes, &[0xaa, 0x06, 0x01, 0xff]].concat();
        assert_eq!(peek(&longer), Ok(seen), "a field of the future changed the route");
    }
}
