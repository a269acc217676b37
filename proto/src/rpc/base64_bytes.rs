//! Binary fields, for `#[serde(with)]`: standard base64 with padding.
//!
//! These are nearly all of the bytes on the wire, so there is no string in
//! between: they are encoded into the message and decoded out of it.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine as _;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// For `#[serde(with)]`.
pub fn serialize<T: AsRef<[u8]>, S: Serializer>(
    bytes: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes.as_ref(), &STANDARD))
}

/// For `#[serde(with)]`.
pub fn deserialize<'de, T: From<Vec<u8>>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(Text(PhantomData))
}

struct Text<T>(PhantomData<T>);

impl<T: From<Vec<u8>>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        STANDARD.decode(text).map(T::from).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Field<T: AsRef<[u8]> + From<Vec<u8>>>(#[serde(with = "super")] T);

    #[test]
    fn every_length_comes_back() {
        for len in (0..70).chain(1500..1540) {
            let bytes: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
            let text = serde_json::to_string(&Field(bytes.clone())).unwrap();
            assert_eq!(text.len(), 2 + bytes.len().div_ceil(3) * 4);
            assert_eq!(serde_json::from_str::<Field<Bytes>>(&text).unwrap().0, bytes);
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in ["\"a\"", "\"aGk\"", "\"aGk=\\n\"", "\"a-k=\"", "[104]", "null", "1"] {
            assert!(serde_json::from_str::<Field<Vec<u8>>>(bad).is_err(), "{bad} was accepted");
        }
        let error = serde_json::from_str::<Field<Vec<u8>>>("1").unwrap_err().to_string();
        assert!(error.starts_with("invalid type: integer `1`, expected a string"), "{error}");
    }
}
