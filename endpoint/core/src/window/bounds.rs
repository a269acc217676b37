//! The smallest window, and the memory that larger windows share.

use rendez_proto::limits::{FRAME_MAX_BYTES, RECORD_PLAINTEXT_MAX_BYTES, WINDOW_MAX_RECORDS};

/// Records in flight, not yet acknowledged, with which a stream of a reliable
/// profile begins, and which it may always have: 2 MB keep 1 Gbit/s busy at a
/// round trip of 15 ms.
pub const WINDOW_MIN_RECORDS: u32 = 32;
/// Bytes in flight of one stream that are not charged to [`SEND_MEMORY_BYTES`]:
/// a smallest window of largest frames.
pub const WINDOW_MIN_BYTES: usize = WINDOW_MIN_RECORDS as usize * FRAME_MAX_BYTES;
/// Bytes that all streams of one endpoint may have in flight beyond
/// [`WINDOW_MIN_BYTES`] each: room for four of the largest windows. The exact
/// sealed bytes are kept until they are acknowledged.
pub const SEND_MEMORY_BYTES: usize = 4 * WINDOW_MAX_RECORDS as usize * FRAME_MAX_BYTES;
/// Plaintext that all streams of one endpoint may be promised room for, beyond
/// a smallest window each: room for four of the largest windows.
pub const RECEIVE_MEMORY_BYTES: usize =
    4 * WINDOW_MAX_RECORDS as usize * RECORD_PLAINTEXT_MAX_BYTES;
