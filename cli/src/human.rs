//! Times as people write and read them.

/// Units, longest first, with their seconds.
const UNITS: [(char, u64); 5] =
    [('w', 7 * 86_400), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// Reads a time such as `90s`, `12h`, `30d` or `1h30m`, in seconds; `0` needs
/// no unit.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || "must be numbers with units, such as 90s, 12h, 30d or 1h30m".to_owned();
    if text == "0" {
        return Ok(0);
    }
    let (mut total, mut number) = (0_u64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == c).ok_or_else(wrong)?;
        let part = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        number.clear();
    }
    if text.is_empty() || !number.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// A time in its two largest units, such as `29d23h`.
pub(crate) fn span(mut seconds: u64) -> String {
    if seconds == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    let mut parts = 0;
    // weeks are harder to read than days
    for (name, unit) in &UNITS[1..] {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, value) in [
            ("0", 0),
            ("0s", 0),
            ("90s", 90),
            ("15m", 900),
            ("1h30m", 5400),
            ("30d", 2_592_000),
            ("2w", 1_209_600),
        ] {
            assert_eq!(seconds(text), Ok(value), "{text}");
        }
        for bad in ["", "5", "d", "1h30", "-5s", "5y", "99999999999999999999d", "99999999999999w"] {
            assert!(seconds(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
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
    }
}
