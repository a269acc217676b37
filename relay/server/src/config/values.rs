//! Values of settings that only a relay has.

use std::net::SocketAddr;

use http::Uri;
use rendez_program::settings::Value;
use rendez_program::value_by_word;
use rendez_registry::model::SourceCidrs;

/// An address to listen on, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaybeListen {
    /// `off`
    Off,
    /// `IP:PORT`
    On(SocketAddr),
}

/// A number that bounds something, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaybeMax {
    /// `none`
    None,
    /// A number, at least 1.
    Max(usize),
}

impl MaybeMax {
    /// The number, if there is one.
    pub fn get(self) -> Option<usize> {
        match self {
            MaybeMax::None => None,
            MaybeMax::Max(max) => Some(max),
        }
    }
}

impl Value for MaybeMax {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(MaybeMax::None),
            text => match text.parse() {
                Ok(max) if max > 0 => Ok(MaybeMax::Max(max)),
                _ => Err(format!("{text:?}: expected a number of at least 1, or none")),
            },
        }
    }

    fn text(&self) -> String {
        self.get().map_or_else(|| "none".to_owned(), |max| max.to_string())
    }
}

/// Whether clients present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// The relay requests none.
    Off,
    /// A presented certificate must be valid.
    Optional,
    /// A connection needs a valid certificate.
    Required,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

/// The collector of traces, if any. Logs contain its URL, so the URL has no user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collector(String);

impl Collector {
    /// Returns its URL, if there is one.
    pub fn url(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|url| !url.is_empty())
    }
}

value_by_word! {
    ClientAuth { Off = "off", Optional = "optional", Required = "required" }
    TlsVersion { Tls12 = "1.2", Tls13 = "1.3" }
}

impl Value for Collector {
    /// Errors do not contain the text, because it may contain a password.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let url: Uri = text.parse().map_err(|error| format!("invalid URL: {error}"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err("expected a URL with http:// or https://".to_owned());
        }
        if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("a URL with a user or password would stand in logs; give them by the \
                        variable OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    fn text(&self) -> String {
        self.0.clone()
    }
}

/// The configured URL by which clients reach a relay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicUrl(pub rendez_registry::PublicUrl);

/// The proxies whose `X-Forwarded-For` is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(pub SourceCidrs);

impl Value for TrustedProxies {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{text:?}: {error}"))
    }

    fn text(&self) -> String {
        self.0.to_string()
    }
}

impl Value for PublicUrl {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.parse().map(Self).map_err(|error: rendez_registry::public_url::InvalidPublicUrl| {
            format!("{text:?}: {error}")
        })
    }

    fn text(&self) -> String {
        match &self.0 {
            rendez_registry::PublicUrl::Fixed(base) => base.to_string(),
            _ => String::new(),
        }
    }
}

impl Value for MaybeListen {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(MaybeListen::Off);
        }
        let address = <SocketAddr as Value>::parse(text).map_err(|why| format!("{why}, or off"))?;
        Ok(MaybeListen::On(address))
    }

    fn text(&self) -> String {
        match self {
            MaybeListen::Off => "off".to_owned(),
            MaybeListen::On(address) => address.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip<T: Value>(texts: &[&str]) {
        for text in texts {
            assert_eq!(T::parse(text).unwrap().text(), *text);
        }
    }

    #[test]
    fn written_values_parse_to_themselves() {
        round_trip::<MaybeListen>(&["off", "127.0.0.1:7701", "[::1]:1"]);
        round_trip::<PublicUrl>(&["", "wss://relay.example.com"]);
        round_trip::<ClientAuth>(&["off", "optional", "required"]);
        round_trip::<TlsVersion>(&["1.2", "1.3"]);
        round_trip::<Collector>(&["", "http://127.0.0.1:4318/v1/traces", "https://a?b=c"]);
    }

    #[test]
    fn ambiguous_values_are_refused() {
        assert!(MaybeListen::parse("on").unwrap_err().ends_with("127.0.0.1:7700, or off"));
        assert_eq!(TlsVersion::parse("1.1").unwrap_err(), "\"1.1\" is none of 1.2, 1.3");
        assert!(PublicUrl::parse("ftp://x").is_err());
        for (url, why) in [
            ("http://me:hunter2@collector/", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("ftp://me:hunter2@collector/", "http://"),
            ("http://me:hunter2@", "invalid URL"),
            ("hunter2", "http://"),
        ] {
            let said = Collector::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
    }
}
