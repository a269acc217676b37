//! Binary fields of messages, for `#[serde(with)]`: standard base64 with
//! padding, like [`super::base64_bytes`].
//!
//! These are nearly all of the bytes on the wire. They are decoded directly out of
//! the message and encoded into it, without a string in between and without the
//! search for characters to escape, which takes longer than the encoding. So they
//! are byte strings to serde, which messages and
//! [`super::Json::of`] write as base64. Any other serializer, such as
//! `serde_json::to_value`, writes arrays of numbers, and those are not read.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

pub use super::base64_bytes::deserialize;

/// Bytes that are encoded at once: whole groups, and in the fastest cache.
const CHUNK_BYTES: usize = 3 * 2048;

/// For `#[serde(with)]`.
pub fn serialize<T: AsRef<[u8]>, S: Serializer>(
    bytes: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes.as_ref())
}

/// The JSON of `value`, with binary fields in base64.
pub(super) fn to_vec<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(128);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Base64))?;
    Ok(text)
}

/// Compact JSON; byte strings are base64.
struct Base64;

impl Formatter for Base64 {
    fn write_byte_array<W: ?Sized + Write>(&mut self, to: &mut W, bytes: &[u8]) -> io::Result<()> {
        let mut text = [0; CHUNK_BYTES / 3 * 4];
        to.write_all(b"\"")?;
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let len = STANDARD.encode_slice(chunk, &mut text).map_err(io::Error::other)?;
            to.write_all(&text[..len])?;
        }
        to.write_all(b"\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde::Deserialize;
    use serde_json::from_slice;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Field<T: AsRef<[u8]> + From<Vec<u8>>>(#[serde(with = "super")] T);

    #[test]
    fn every_length_round_trips() {
        let around = |len: usize| len - 4..len + 5;
        for len in (0..70).chain(around(CHUNK_BYTES)).chain(around(5 * CHUNK_BYTES)) {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let text = to_vec(&Field(bytes.clone())).unwrap();
            assert_eq!(text, format!("\"{}\"", STANDARD.encode(&bytes)).into_bytes());
            assert_eq!(from_slice::<Field<Bytes>>(&text).unwrap().0, bytes);
        }
    }
}
