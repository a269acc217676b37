//! Binary fields, for `#[serde(with)]`: standard base64 with padding. They are
//! decoded straight out of the text. Fields of messages, which are large, are
//! [`super::message_bytes`].

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
    deserializer.deserialize_bytes(Text(PhantomData))
}

/// A string as bytes: bytes outside of ASCII are not base64 either.
struct Text<T>(PhantomData<T>);

impl<T: From<Vec<u8>>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: Error>(self, text: &[u8]) -> Result<T, E> {
        STANDARD.decode(text).map(T::from).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        self.visit_bytes(text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};
    use serde_json::{from_str, from_value};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Field<T: AsRef<[u8]> + From<Vec<u8>>>(#[serde(with = "super")] T);

    #[test]
    fn bytes_round_trip() {
        for bytes in [&b""[..], b"hi\n", &[0xff; 1000]] {
            let text = serde_json::to_string(&Field(bytes.to_vec())).unwrap();
            assert_eq!(text, format!("\"{}\"", STANDARD.encode(bytes)));
            assert_eq!(from_str::<Field<Vec<u8>>>(&text).unwrap().0, bytes);
        }
    }

    #[test]
    fn invalid_base64_is_refused() {
        for bad in [
            r#""a""#,
            r#""aGk""#,
            r#""aGk=\n""#,
            r#""a-k=""#,
            r#""\ud800aaa""#,
            r#""\u00e9aa""#,
            "[104]",
            "null",
            "1",
        ] {
            assert!(from_str::<Field<Vec<u8>>>(bad).is_err(), "{bad} was accepted");
            if let Ok(value) = from_str(bad) {
                assert!(from_value::<Field<Vec<u8>>>(value).is_err(), "{bad} was accepted");
            }
        }
        let error = from_value::<Field<Vec<u8>>>(1.into()).unwrap_err().to_string();
        assert_eq!(error, "invalid type: integer `1`, expected a string");
    }
}
