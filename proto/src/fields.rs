//! Bytes that are signed: a version, a code, and fields in a fixed order.
//!
//! ```text
//! offset
//! 0        version, 1 byte
//! 1        code, 1 byte: the purpose of the bytes
//! 2        fields, each [length: u16 big endian][bytes]
//! ```
//!
//! Invariants: there is one encoding of each value, and nothing may follow the
//! last field, so that everything sent is verified.

use std::str::FromStr;

/// Encodes these fields. The caller bounds each of them to below 2^16 bytes.
pub(crate) fn encode(version: u8, code: u8, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![version, code];
    for field in fields {
        bytes.extend_from_slice(&(field.len() as u16).to_be_bytes());
        bytes.extend_from_slice(field);
    }
    bytes
}

/// Reads fields, one after the other.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The code of bytes of this version, and their fields.
    pub(crate) fn new(bytes: &'a [u8], version: u8) -> Option<(u8, Self)> {
        let (&[found, code], fields) = bytes.split_first_chunk()?;
        (found == version).then_some((code, Self(fields)))
    }

    /// The next field.
    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (field, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        self.0 = rest;
        Some(field)
    }

    /// The next field, which has this length.
    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes()?.try_into().ok()
    }

    /// The next field, a number.
    pub(crate) fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next field, a text.
    pub(crate) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    /// The next field, a text that parses as a `T`.
    pub(crate) fn parse<T: FromStr>(&mut self) -> Option<T> {
        self.text()?.parse().ok()
    }

    /// Checks that there are no more bytes.
    pub(crate) fn end(self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_round_trip_in_order() {
        let bytes = encode(7, 3, &[b"text", b"", &9_u64.to_be_bytes(), &[1, 2]]);
        assert_eq!(bytes, b"\x07\x03\0\x04text\0\0\0\x08\0\0\0\0\0\0\0\x09\0\x02\x01\x02");
        let (code, mut fields) = Reader::new(&bytes, 7).unwrap();
        assert_eq!((code, fields.text(), fields.bytes()), (3, Some("text"), Some(&[][..])));
        assert_eq!((fields.number(), fields.array()), (Some(9), Some([1, 2])));
        assert_eq!((fields.bytes(), fields.end()), (None, Some(())));
        let (_, mut fields) = Reader::new(&bytes, 7).unwrap();
        assert_eq!((fields.array::<3>(), fields.end()), (None, None));
    }

    #[test]
    fn other_versions_and_short_bytes_are_refused() {
        let bytes = encode(1, 0, &[b"text"]);
        assert!(Reader::new(&bytes, 2).is_none() && Reader::new(&bytes[..1], 1).is_none());
        for end in 2..bytes.len() {
            let (_, mut fields) = Reader::new(&bytes[..end], 1).unwrap();
            assert_eq!(fields.bytes(), None, "of {end} bytes");
        }
    }
}
