//! The URL of a relay, as users write it.

use std::fmt;
use std::str::FromStr;

use url::Url;

use crate::tls;

/// The base of a registry's API: `http://` or `https://` with a host, without
/// credentials, query and fragment. A trailing slash does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayUrl(Url);

/// Why a text is not a [`RelayUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the relay's URL must look like https://relay.example.com: {0}")]
pub struct InvalidRelayUrl(String);

impl FromStr for RelayUrl {
    type Err = InvalidRelayUrl;

    fn from_str(text: &str) -> Result<Self, InvalidRelayUrl> {
        let refuse = |why: &str| Err(InvalidRelayUrl(why.to_owned()));
        let url = Url::parse(text).map_err(|error| InvalidRelayUrl(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return refuse("it starts with neither http:// nor https://");
        }
        if !url.has_host() {
            return refuse("it names no host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refuse("it must not hold credentials");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return refuse("it must not have a query or a fragment");
        }
        Ok(Self(url))
    }
}

impl RelayUrl {
    /// The URL itself.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// Whether a token would be sent unencrypted over a network.
    pub fn sends_cleartext(&self) -> bool {
        tls::sends_cleartext(&self.0)
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_urls_are_checked() {
        for (url, base) in [("http://h:1", "http://h:1"), ("http://h:1/a/b/", "http://h:1/a/b")] {
            assert_eq!(url.parse::<RelayUrl>().unwrap().to_string(), base);
        }
        for bad in [
            "",
            "h:1",
            "ws://h",
            "http://",
            "http://u:p@h",
            "http://h/?q",
            "http://h/#f",
            "file:///x",
        ] {
            assert!(bad.parse::<RelayUrl>().is_err(), "{bad}");
        }
        for (url, exposed) in [
            ("http://127.0.0.1:1", false),
            ("http://[::1]:1", false),
            ("http://localhost", false),
            ("https://relay.example", false),
            ("http://relay.example", true),
            ("http://10.0.0.1", true),
        ] {
            assert_eq!(url.parse::<RelayUrl>().unwrap().sends_cleartext(), exposed, "{url}");
        }
    }
}
