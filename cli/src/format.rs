//! Durations and sizes for users: one grammar for input, that of the relay's
//! settings, and one format for output.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Units of durations in output, longest first, in seconds. Days are easier to read
/// than weeks.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// Parses a duration such as `90s`, `12h`, `30d` or `1h30m`; `0` needs no unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = |error| format!("{error}; write it as 90s, 12h, 30d or 1h30m");
    humantime::parse_duration(text).map_err(wrong)
}

/// Parses a duration of whole seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    let duration = parse_duration(text)?;
    if duration.subsec_nanos() > 0 {
        return Err("must be whole seconds".to_owned());
    }
    Ok(duration.as_secs())
}

/// A duration in its two largest units, such as `29d23h`.
pub(crate) fn span(mut seconds: u64) -> String {
    if seconds == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    let mut parts = 0;
    for (name, unit) in &UNITS {
        let number = seconds / unit;
        seconds %= unit;
        if number > 0 {
            text.push_str(&format!("{number}{name}"));
        }
        parts += usize::from(!text.is_empty());
        if parts == 2 {
            break;
        }
    }
    text
}

/// The time from `then` until `now`; `0s` if the clocks differ.
pub(crate) fn ago(now: u64, then: u64) -> String {
    span(now.saturating_sub(then))
}

/// A size with one decimal digit.
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    // The number comes from a relay and may be anything.
    let mut tenths = u128::from(n) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// The local time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, value) in [
            ("0", 0),
            ("0s", 0),
            ("90s", 90),
            ("15m", 900),
            ("1h30m", 5400),
            ("1h 30m", 5400),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
        ] {
            assert_eq!(parse_seconds(text), Ok(value), "{text}");
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(value)), "{text}");
        }
        for bad in ["", "5", "d", "1h30", "-5s", "5q", "99999999999999999999d", "9999999999999999w"]
        {
            let error = parse_seconds(bad).unwrap_err();
            assert!(error.contains("1h30m"), "{bad:?}: {error}");
        }
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_seconds("250ms").unwrap_err().contains("whole"));
    }

    #[test]
    fn durations_show_at_most_two_units() {
        for (value, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3661, "1h1m"),
            (86_400 * 30 - 1, "29d23h"),
            (86_400 * 30 + 59, "30d"),
        ] {
            assert_eq!(span(value), text);
        }
        assert_eq!(ago(100, 40), "1m");
        assert_eq!(ago(5, 9), "0s", "clocks differ");
    }

    #[test]
    fn sizes_show_one_decimal_digit() {
        for (n, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(n), text);
        }
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
    }
}
