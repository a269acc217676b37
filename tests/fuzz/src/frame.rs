//! [`Frame`]: a decoded frame encodes to the same bytes, and every frame that
//! an endpoint can make decodes to itself.

use arbitrary::Unstructured;
use bytes::Bytes;
use rendez_proto::frame::Frame;
use rendez_proto::ids::STREAM_ID_MAX_BYTES;
use rendez_proto::ids::StreamId;

use crate::frames;

/// Reads `data` as a frame, and as the recipe of one.
pub fn run(data: &[u8]) {
    if let Ok(frame) = Frame::decode(Bytes::copy_from_slice(data)) {
        round_trip(&frame);
    }
    let mut u = Unstructured::new(data);
    let text: &str = u.arbitrary().unwrap_or_default();
    if let Ok(id) = text.parse::<StreamId>()
        && let Ok(frame) = frames::frame(&mut u, id)
    {
        round_trip(&frame);
    }
}

fn round_trip(frame: &Frame) {
    assert!(!frame.stream.as_str().trim().is_empty(), "a blank stream id");
    assert!(frame.stream.as_str().len() <= STREAM_ID_MAX_BYTES, "a long stream id");
    let wire = frame.encode();
    assert_eq!(Frame::decode(wire.clone()).as_ref(), Ok(frame), "another frame came back");
    let again = Frame::decode(wire.clone()).map(|frame| frame.encode());
    assert_eq!(again, Ok(wire), "one frame has two encodings");
}
