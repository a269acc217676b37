//! Values of settings as text.
//!
//! Each value has one text form, which parses to the same value: the output of
//! `--print-config` can be read again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::logging::{LogFormat, LogLevel};

/// A type that a setting may have.
pub trait Value: Sized {
    /// Whether TOML writes it without quotes.
    const BARE: bool = false;
    /// Whether a file holds it as a section, with a name and a text per line.
    const TABLE: bool = false;

    /// Reads it.
    ///
    /// # Errors
    /// The reason why the text is invalid, for the operator.
    fn parse(text: &str) -> Result<Self, String>;

    /// Writes it.
    fn text(&self) -> String;

    /// The lines of its section, if it has one.
    fn entries(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
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
    LogLevel, false;
    LogFormat, false;
    u32, true;
    u64, true;
    usize, true;
    bool, true;
}

/// Implements [`Value`] for enums whose values are words.
#[macro_export]
macro_rules! value_by_word {
    ($($type:ident { $($variant:ident = $word:literal),+ })+) => {$(
        impl $crate::settings::Value for $type {
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

    /// Without months and years, whose length varies.
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
        round_trip::<Option<PathBuf>>(&["", "/a/b"]);
        round_trip::<LogLevel>(&["off", "error", "warn", "info", "debug", "trace"]);
        round_trip::<LogFormat>(&["human", "json"]);
        round_trip::<usize>(&["0", "20000"]);
        round_trip::<bool>(&["true", "false"]);
    }

    #[test]
    fn ambiguous_values_are_refused() {
        for text in ["", "64", "64M", "MiB", "-1B", "1.5KiB", "99999999999GiB", "64 mib"] {
            assert!(Size::parse(text).is_err(), "{text:?}");
        }
        for text in ["", "20", "s", "-1s"] {
            assert!(Duration::parse(text).is_err(), "{text:?}");
        }
        for text in ["localhost:7700", "127.0.0.1", ":7700"] {
            let said = <SocketAddr as Value>::parse(text).unwrap_err();
            assert!(said.contains("an IP address, not a name"), "{said}");
        }
        assert!(PathBuf::parse("").is_err());
    }
}
