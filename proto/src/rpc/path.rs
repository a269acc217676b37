//! Paths on the executor, as `file:` URLs (docs/codex-wire.md#paths).
//!
//! A [`PathUri`] is parsed once and is from then on an absolute path without
//! `.`, `..`, empty segments and NUL. Parsing is text only: no file system, no
//! links resolved.
//!
//! ```text
//! file:///tmp/a%20b     /tmp/a b
//! file://localhost/tmp  /tmp
//! file:etc              /etc
//! file:///a/%2e%2e/b    /b
//! ```
//! Refused: other schemes and hosts, a query, a fragment, drive letters, `%00`,
//! bytes that are not UTF-8, and an escaped slash, which would bypass the
//! normalisation.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An absolute path on the executor; a `file:` URL on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathUri(Box<str>);

/// Why a text is not a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// A path where a URL is needed, such as `/tmp`.
    #[error("invalid URI: relative URL without a base")]
    NoScheme,
    /// A URL of another kind.
    #[error("unsupported path URI scheme `{0}`")]
    Scheme(String),
    /// A file of another machine.
    #[error("path URI names the host `{0}`; only an empty host or localhost is allowed")]
    Host(String),
    /// A query, a fragment, an escape or a character that paths don't have.
    #[error("invalid path URI: {0}")]
    Malformed(&'static str),
    /// [`PathUri::from_path`] got a path that is not absolute.
    #[error("path `{0}` is not absolute")]
    Relative(String),
}

impl PathUri {
    /// From an absolute path with `/` between its segments; `.`, `..` and
    /// empty segments are resolved as text.
    ///
    /// # Errors
    /// [`InvalidPath`] if the path is relative or contains NUL.
    pub fn from_path(path: &str) -> Result<Self, InvalidPath> {
        if !path.starts_with('/') {
            return Err(InvalidPath::Relative(shorten(path)));
        }
        if path.contains('\0') {
            return Err(InvalidPath::Malformed("it contains NUL"));
        }
        let mut segments = Vec::new();
        path.split('/').for_each(|segment| push(&mut segments, segment.to_owned()));
        Ok(Self::of(&segments))
    }

    /// The absolute path, decoded.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// This path with one more segment; `None` if `name` is not a segment.
    pub fn join(&self, name: &str) -> Option<Self> {
        if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
            return None;
        }
        let slash = if self.0.ends_with('/') { "" } else { "/" };
        Some(Self(format!("{}{slash}{name}", self.0).into()))
    }

    fn of(segments: &[String]) -> Self {
        Self(format!("/{}", segments.join("/")).into())
    }
}

impl FromStr for PathUri {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        let (scheme, rest) = text.split_once(':').ok_or(InvalidPath::NoScheme)?;
        let mut letters = scheme.chars();
        if !letters.next().is_some_and(|c| c.is_ascii_alphabetic())
            || !letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        {
            return Err(InvalidPath::NoScheme);
        }
        if !scheme.eq_ignore_ascii_case("file") {
            return Err(InvalidPath::Scheme(shorten(scheme)));
        }
        for (found, why) in
            [('?', "it has a query"), ('#', "it has a fragment"), ('\\', "it has a backslash")]
        {
            if rest.contains(found) {
                return Err(InvalidPath::Malformed(why));
            }
        }
        if rest.contains(|c: char| c.is_ascii_control()) {
            return Err(InvalidPath::Malformed("it has a control character"));
        }
        let path = match rest.strip_prefix("//") {
            None => rest,
            Some(rest) => {
                let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
                if !host.is_empty() && !host.eq_ignore_ascii_case("localhost") {
                    return Err(InvalidPath::Host(shorten(host)));
                }
                path
            }
        };
        let path = path.strip_prefix('/').unwrap_or(path);
        if let [letter, b':' | b'|', ..] = path.as_bytes()
            && letter.is_ascii_alphabetic()
            && matches!(path.as_bytes().get(2), None | Some(b'/'))
        {
            return Err(InvalidPath::Malformed("it has a drive letter"));
        }
        let mut segments = Vec::new();
        for segment in path.split('/') {
            push(&mut segments, decode(segment)?);
        }
        Ok(Self::of(&segments))
    }
}

impl TryFrom<String> for PathUri {
    type Error = InvalidPath;
    fn try_from(text: String) -> Result<Self, InvalidPath> {
        text.parse()
    }
}

impl From<PathUri> for String {
    fn from(path: PathUri) -> String {
        path.to_string()
    }
}

/// The URL.
impl fmt::Display for PathUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("file://")?;
        self.0.bytes().try_for_each(|byte| match byte {
            // RFC 3986 `pchar` without ':', which could read as a drive letter
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => f.write_char(char::from(byte)),
            b'/' | b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*'
            | b'+' | b',' | b';' | b'=' | b'@' => f.write_char(char::from(byte)),
            _ => write!(f, "%{byte:02X}"),
        })
    }
}

fn push(segments: &mut Vec<String>, segment: String) {
    match segment.as_str() {
        "" | "." => {}
        ".." => drop(segments.pop()),
        _ => segments.push(segment),
    }
}

fn decode(segment: &str) -> Result<String, InvalidPath> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(InvalidPath::Malformed("'%' without two hexadecimal digits"));
        };
        match (high << 4 | low) as u8 {
            0 => return Err(InvalidPath::Malformed("it contains NUL")),
            b'/' => return Err(InvalidPath::Malformed("it contains an escaped slash")),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| InvalidPath::Malformed("it is not UTF-8"))
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_paths() {
        for (url, path) in [
            ("file:///tmp/a%20b", "/tmp/a b"),
            ("file://localhost/tmp", "/tmp"),
            ("FILE://LocalHost/tmp/", "/tmp"),
            ("file:etc", "/etc"),
            ("file:/etc//x/./y", "/etc/x/y"),
            ("file:///", "/"),
            ("file://", "/"),
            ("file:", "/"),
            ("file:///a/b/../c", "/a/c"),
            ("file:///a/%2e%2E/../../b", "/b"),
            ("file:///%C3%A4/ä", "/ä/ä"),
            ("file:///C%3A/x", "/C:/x"),
            ("file:///ab:/x", "/ab:/x"),
        ] {
            assert_eq!(url.parse::<PathUri>().unwrap().path(), path, "{url}");
        }
    }

    #[test]
    fn paths_and_urls_round_trip() {
        for (path, url) in [
            ("/tmp/a b", "file:///tmp/a%20b"),
            ("/", "file:///"),
            ("/C:/x", "file:///C%3A/x"),
            ("/ä?#%\\", "file:///%C3%A4%3F%23%25%5C"),
            ("//a/../b/", "file:///b"),
        ] {
            let uri = PathUri::from_path(path).unwrap();
            assert_eq!(uri.to_string(), url);
            assert_eq!(url.parse::<PathUri>().unwrap(), uri);
        }
        assert!(PathUri::from_path("tmp").is_err());
        assert!(PathUri::from_path("/a\0").is_err());
    }

    #[test]
    fn other_urls_are_refused_with_a_reason() {
        for (text, why) in [
            ("/tmp", "invalid URI: relative URL without a base"),
            ("", "invalid URI: relative URL without a base"),
            ("1x:/tmp", "invalid URI: relative URL without a base"),
            ("http://h/tmp", "unsupported path URI scheme `http`"),
            (
                "file://other/tmp",
                "path URI names the host `other`; only an empty host or localhost is allowed",
            ),
            ("file:///a?b", "invalid path URI: it has a query"),
            ("file:///a#b", "invalid path URI: it has a fragment"),
            ("file:///a%00", "invalid path URI: it contains NUL"),
            ("file:///..%2f..%2Fetc", "invalid path URI: it contains an escaped slash"),
            ("file:///C:/x", "invalid path URI: it has a drive letter"),
            ("file:///c|", "invalid path URI: it has a drive letter"),
            ("file:///%ff", "invalid path URI: it is not UTF-8"),
            ("file:///%4", "invalid path URI: '%' without two hexadecimal digits"),
            ("file:///a\\b", "invalid path URI: it has a backslash"),
            ("file:///a\nb", "invalid path URI: it has a control character"),
        ] {
            assert_eq!(text.parse::<PathUri>().unwrap_err().to_string(), why, "{text:?}");
        }
    }

    #[test]
    fn join_appends_a_segment() {
        let root = PathUri::from_path("/").unwrap();
        assert_eq!(root.join("a").unwrap().join("b").unwrap().path(), "/a/b");
        for bad in ["", ".", "..", "a/b", "a\0"] {
            assert_eq!(root.join(bad), None);
        }
    }

    #[test]
    fn serde_reports_the_same_message() {
        let error = serde_json::from_value::<PathUri>("/tmp".into()).unwrap_err();
        assert_eq!(error.to_string(), "invalid URI: relative URL without a base");
    }
}
