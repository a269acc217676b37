//! Values of settings as people write them.
//!
//! Every value has one text, which parsing gives back: what `--print-config`
//! prints can be read again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use rendez_program::logging::{LogFormat, LogLevel};
use rendez_registry::PublicUrl;
use rendez_registry::model::SourceCidrs;

/// A type that a setting may have.
pub(crate) trait Value: Sized {
    /// Whether TOML writes it without quotes.
    const BARE: bool = false;
    /// Whether a file holds it as a section, with a name and a text per line.
    const TABLE: bool = false;

    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with the text, for the operator.
    fn parse(text: &str) -> Result<Self, String>;

    /// Writes it.
    fn text(&self) -> String;

    /// The lines of its section, if it has one.
    fn entries(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// An address to listen on, or none at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaybeListen {
    /// `off`
    Off,
    /// `IP:PORT`
    On(SocketAddr),
}

/// Whether clients show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// None is asked for.
    Off,
    /// One that is shown must be good.
    Optional,
    /// Without a good one there is no connection.
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

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The same as the length of a buffer.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Where traces go, or nowhere. It stands in logs, so it names nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collector(String);

impl Collector {
    /// Its URL, unless it is nowhere.
    pub fn url(&self) -> Option<&str> {
        Some(self.0.as_str()).filter(|url| !url.is_empty())
    }
}

const DAY_SECS: u64 = 24 * 60 * 60;
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no size; write a number and B, KiB, MiB or GiB");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let unit = unit.trim();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(*factor).map(Size).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    /// In the largest unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |factor: u64| self.0 >= factor && self.0.is_multiple_of(factor);
        let (unit, factor) =
            UNITS.iter().find(|(_, factor)| fits(*factor)).copied().unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

macro_rules! value_by_from_str {
    ($($type:ty, $bare:literal;)+) => {$(
        impl Value for $type {
            const BARE: bool = $bare;

            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| format!("{text:?}: {error}"))
            }

            fn text(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

value_by_from_str! {
    SourceCidrs, false;
    LogLevel, false;
    LogFormat, false;
    u32, true;
    u64, true;
    usize, true;
    bool, true;
}

/// Values that are one of a few words.
macro_rules! value_by_word {
    ($($type:ident { $($variant:ident = $word:literal),+ })+) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Result<Self, String> {
                match text {
                    $( $word => Ok($type::$variant), )+
                    _ => Err(format!("{text:?} is none of {}", [$($word),+].join(", "))),
                }
            }

            fn text(&self) -> String {
                match self { $( $type::$variant => $word, )+ }.to_owned()
            }
        }
    )+};
}

value_by_word! {
    ClientAuth { Off = "off", Optional = "optional", Required = "required" }
    TlsVersion { Tls12 = "1.2", Tls13 = "1.3" }
}

impl Value for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = "an IP address, not a name, and a port are wanted, such as 127.0.0.1:7700";
        text.parse().map_err(|_| format!("{text:?}: {wrong}"))
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Value for Size {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl Value for Duration {
    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map_err(|error| format!("{text:?} is no duration such as 20s or 1m 30s: {error}"))
    }

    /// Without months and years, which are of no length that people know.
    fn text(&self) -> String {
        let days = self.as_secs() / DAY_SECS;
        let rest = self.saturating_sub(Duration::from_secs(days * DAY_SECS));
        let rest_text = humantime::format_duration(rest);
        match days {
            0 => rest_text.to_string(),
            days => {
                let plural = if days == 1 { "" } else { "s" };
                let rest = if rest.is_zero() { String::new() } else { format!(" {rest_text}") };
                format!("{days}day{plural}{rest}")
            }
        }
    }
}

impl Value for Collector {
    /// What is wrong is said without the text: there may be a password in it.
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let url: Uri = text.parse().map_err(|error| format!("this is no URL: {error}"))?;
        if !matches!(url.scheme_str(), Some("http" | "https")) {
            return Err("a URL with http:// or https:// is wanted".to_owned());
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

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Err("a path is wanted".into()) } else { Ok(text.into()) }
    }

    fn text(&self) -> String {
        self.display().to_string()
    }
}

impl Value for Option<PathBuf> {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from))
    }

    fn text(&self) -> String {
        self.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }
}

impl Value for PublicUrl {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(PublicUrl::FromHost);
        }
        text.parse().map_err(|error: rendez_registry::public_url::InvalidPublicUrl| {
            format!("{text:?}: {error}")
        })
    }

    fn text(&self) -> String {
        match self {
            PublicUrl::Fixed(base) => base.to_string(),
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
    fn values_are_read_back_as_they_are_written() {
        round_trip::<Size>(&["0B", "1B", "1023B", "1KiB", "1536B", "64MiB", "3GiB"]);
        round_trip::<Duration>(&["0s", "20s", "1m 30s", "250ms", "1day", "365days", "40days 5h"]);
        round_trip::<MaybeListen>(&["off", "127.0.0.1:7701", "[::1]:1"]);
        round_trip::<Option<PathBuf>>(&["", "/a/b"]);
        round_trip::<PublicUrl>(&["", "wss://relay.example.com"]);
        round_trip::<LogLevel>(&["off", "error", "warn", "info", "debug", "trace"]);
        round_trip::<LogFormat>(&["human", "json"]);
        round_trip::<ClientAuth>(&["off", "optional", "required"]);
        round_trip::<TlsVersion>(&["1.2", "1.3"]);
        round_trip::<usize>(&["0", "20000"]);
        round_trip::<Collector>(&["", "http://127.0.0.1:4318/v1/traces", "https://a?b=c"]);
        round_trip::<bool>(&["true", "false"]);
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for text in ["", "64", "64M", "MiB", "-1B", "1.5KiB", "99999999999GiB", "64 mib"] {
            assert!(Size::parse(text).is_err(), "{text:?}");
        }
        for text in ["", "20", "s", "-1s"] {
            assert!(Duration::parse(text).is_err(), "{text:?}");
        }
        assert!(MaybeListen::parse("on").unwrap_err().ends_with("127.0.0.1:7700, or off"));
        for text in ["localhost:7700", "127.0.0.1", ":7700"] {
            let said = <SocketAddr as Value>::parse(text).unwrap_err();
            assert!(said.contains("an IP address, not a name"), "{said}");
        }
        assert_eq!(TlsVersion::parse("1.1").unwrap_err(), "\"1.1\" is none of 1.2, 1.3");
        assert!(PathBuf::parse("").is_err());
        assert!(PublicUrl::parse("ftp://x").is_err());
        for (url, why) in [
            ("http://me:hunter2@collector/", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("ftp://me:hunter2@collector/", "http://"),
            ("http://me:hunter2@", "no URL"),
            ("hunter2", "http://"),
        ] {
            let said = Collector::parse(url).unwrap_err();
            assert!(said.contains(why) && !said.contains("hunter2"), "{said}");
        }
    }
}
