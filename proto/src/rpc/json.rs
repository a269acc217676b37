//! JSON that is not parsed yet.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

use super::message_bytes;

/// Longest JSON that is parsed again through a tree of values when it does not
/// parse directly: such a tree may take thirty times the memory.
const JSON_REREAD_MAX_BYTES: usize = 1024 * 1024;

/// One JSON value as it came: a slice of its message, known to be JSON, parsed
/// when its type is known. So large messages, those with files and output, are
/// not held as a tree of values. Small ones are while they are parsed again
/// ([`Json::parse`]).
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Bytes);

impl Json {
    /// `null`, also for an absent member.
    pub fn null() -> Self {
        Self(Bytes::from_static(b"null"))
    }

    /// `{}`
    pub fn empty() -> Self {
        Self(Bytes::from_static(b"{}"))
    }

    /// The JSON of a value as in a message; `null` if it has keys that are not
    /// strings, and so no JSON.
    pub fn of<T: Serialize>(value: &T) -> Self {
        message_bytes::to_vec(value).map_or_else(|_| Self::null(), |text| Self(text.into()))
    }

    /// The part of `message` that `raw` was parsed out of.
    pub(super) fn slice(message: &Bytes, raw: &RawValue) -> Self {
        Self(message.slice_ref(raw.get().as_bytes()))
    }

    /// Whether this is `null`.
    pub fn is_null(&self) -> bool {
        self.0[..] == b"null"[..]
    }

    /// The value as a `T`.
    ///
    /// If it does not parse, it is parsed again through a tree of values, as stock
    /// peers always do: the last one of a repeated member counts, and the error has
    /// their text. Above
    /// [`JSON_REREAD_MAX_BYTES`] it is an error at once, because a tree takes
    /// many times the memory of its text.
    ///
    /// # Errors
    /// It is not a `T`. The text may quote the value: not for a log.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        match serde_json::from_slice(&self.0) {
            Err(_) if self.0.len() <= JSON_REREAD_MAX_BYTES => {
                serde_json::from_slice::<Value>(&self.0).and_then(serde_json::from_value)
            }
            outcome => outcome,
        }
    }
}

/// Sizes only: it may hold secrets.
impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Json({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::process::{Terminate, Write};

    fn json(text: &str) -> Json {
        Json(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn last_duplicate_member_counts() {
        let twice = json(r#"{"processId":"a","processId":"b"}"#);
        assert_eq!(twice.parse::<Terminate>().unwrap().process_id.0, "b");
    }

    #[test]
    fn escaped_strings_parse() {
        let escaped =
            json(r#"{"\u0070rocessId":"\u0061\/\ud83d\ude00","chunk":"\/\/\u002b\u002b"}"#);
        let write: Write = escaped.parse().unwrap();
        assert_eq!(write.process_id.0, "a/\u{1f600}");
        assert_eq!(write.chunk, [0xff, 0xff, 0xbe]);
    }

    #[test]
    fn errors_have_the_stock_text() {
        let error = json("{ }").parse::<Terminate>().unwrap_err();
        assert_eq!(error.to_string(), "missing field `processId`");
    }

    #[test]
    fn large_json_is_not_parsed_twice() {
        let pad = " ".repeat(JSON_REREAD_MAX_BYTES);
        let twice = json(&format!(r#"{{"processId":"a",{pad}"processId":"b"}}"#));
        assert!(twice.parse::<Terminate>().is_err());
    }

    #[test]
    fn debug_output_hides_the_content() {
        assert_eq!(format!("{:?}", json(r#""secret""#)), "Json(8 bytes)");
        assert!(Json::of(&()).is_null() && Json::null().is_null() && !json("{}").is_null());
    }
}
