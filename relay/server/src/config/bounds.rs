//! The text form of quotas: `memory=64MiB streams=100`.
//!
//! A named bound replaces that bound of the level's default, and `none` removes
//! it. Bounds that are not named keep their default.

use rendez_program::settings::value::Size;
use rendez_program::settings::{Value, suggestion};
use rendez_relay_core::Quota;

/// A bound's name, whether it is a size, and the field that holds it.
type Bound = (&'static str, bool, fn(&mut Quota) -> &mut u64);

const BOUNDS: [Bound; 7] = [
    ("memory", true, |quota| &mut quota.memory_bytes),
    ("connections", false, |quota| &mut quota.connections),
    ("streams", false, |quota| &mut quota.streams),
    ("handshakes_per_minute", false, |quota| &mut quota.handshakes_per_minute),
    ("handshake_failures", false, |quota| &mut quota.handshake_failures),
    ("frames_per_second", false, |quota| &mut quota.frames_per_second),
    ("bytes_per_second", true, |quota| &mut quota.bytes_per_second),
];
const NONE: &str = "none";

/// Some bounds of a quota.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds([Option<u64>; BOUNDS.len()]);

impl Bounds {
    /// Returns the bounds of a quota.
    pub fn of(mut quota: Quota) -> Self {
        let bound = |(_, _, field): Bound| Some(*field(&mut quota)).filter(|n| *n != Quota::NONE);
        Self(BOUNDS.map(bound))
    }

    /// Returns the name of a bound that is zero, if there is one.
    pub(super) fn first_zero(&self) -> Option<&'static str> {
        let mut named = BOUNDS.iter().zip(self.0);
        named.find_map(|((name, _, _), bound)| (bound == Some(0)).then_some(*name))
    }

    /// Returns `quota` with these bounds in place of its own.
    pub fn apply_to(&self, mut quota: Quota) -> Quota {
        for ((_, _, field), bound) in BOUNDS.iter().zip(self.0) {
            if let Some(bound) = bound {
                *field(&mut quota) = bound;
            }
        }
        quota
    }
}

impl Value for Bounds {
    fn parse(text: &str) -> Result<Self, String> {
        let mut bounds = [None; BOUNDS.len()];
        for pair in text.split_whitespace() {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not NAME=BOUND"))?;
            let index = BOUNDS.iter().position(|(known, _, _)| *known == name);
            let index = index.ok_or_else(|| {
                let known = BOUNDS.map(|(known, _, _)| known).join(", ");
                let meant = suggestion(name, BOUNDS.iter().map(|(known, _, _)| *known));
                format!("there is no bound {name:?}, but {known}{meant}")
            })?;
            let number = match value {
                NONE => Quota::NONE,
                value if BOUNDS[index].1 => value.parse::<Size>()?.0,
                value => value.parse().map_err(|error| format!("{name}: {value:?}: {error}"))?,
            };
            if bounds[index].replace(number).is_some() {
                return Err(format!("{name} is listed twice"));
            }
        }
        Ok(Self(bounds))
    }

    fn text(&self) -> String {
        let named = BOUNDS.iter().zip(self.0).filter_map(|((name, size, _), bound)| {
            Some(match bound? {
                Quota::NONE => format!("{name}={NONE}"),
                bytes if *size => format!("{name}={}", Size(bytes)),
                number => format!("{name}={number}"),
            })
        });
        named.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_bounds_replace_and_the_rest_stays() {
        let default = Quota { memory_bytes: 64 << 20, streams: 7, ..Quota::UNLIMITED };
        let text = "memory=1KiB connections=3 streams=none bytes_per_second=10MiB";
        let bounds = Bounds::parse(text).unwrap();
        assert_eq!(bounds.text(), text);
        let quota = bounds.apply_to(default);
        assert_eq!((quota.memory_bytes, quota.connections), (1024, 3));
        assert_eq!((quota.streams, quota.bytes_per_second), (Quota::NONE, 10 << 20));
        assert_eq!(Bounds::parse("").unwrap().apply_to(default), default);
        assert_eq!(Bounds::of(default).text(), "memory=64MiB streams=7");
        assert_eq!(Bounds::of(default).apply_to(Quota::UNLIMITED), default);
    }

    #[test]
    fn invalid_bounds_are_named() {
        for (text, expected) in [
            ("streams", "NAME=BOUND"),
            ("stream=1", "there is no bound \"stream\", but memory, connections, streams"),
            ("handshake_per_minute=1", "; did you mean `handshakes_per_minute`?"),
            ("streams=-1", "streams: \"-1\""),
            ("memory=64", "is no size"),
            ("streams=1 streams=2", "twice"),
        ] {
            let said = Bounds::parse(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
