//! Search for secrets in bytes: as they are, as base64 of either alphabet at each of
//! the three alignments, and as hexadecimal digits of either case.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Fewest bytes of a marker. Shorter ones might be found by chance.
const MARKER_MIN_BYTES: usize = 16;

/// A secret and its name.
#[derive(Clone)]
pub(crate) struct Marker {
    name: String,
    bytes: Vec<u8>,
}

impl Marker {
    /// A marker of at least 16 bytes.
    pub(crate) fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        let marker = Self { name: name.into(), bytes: bytes.into() };
        assert!(marker.bytes.len() >= MARKER_MIN_BYTES, "{} is too short", marker.name);
        marker
    }

    /// A unique text.
    pub(crate) fn text(name: &str) -> Self {
        let [first, second] = [random(), random()];
        Self::new(name, format!("{name}-{first:016x}{second:016x}"))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The bytes as they are.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of a marker that was made as text.
    pub(crate) fn as_text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// All encodings of the marker.
    pub(crate) fn forms(&self) -> BTreeSet<Vec<u8>> {
        let mut forms = BTreeSet::from([self.bytes.clone()]);
        for alphabet in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            for before in 0..3 {
                let text = alphabet.encode([&[0; 3][..before], &self.bytes].concat());
                // only the characters that depend on the marker alone
                let first = (before * 8).div_ceil(6);
                let end = (before + self.bytes.len()) * 8 / 6;
                forms.insert(text.as_bytes()[first..end].to_vec());
            }
        }
        let hex: String = self.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        forms.insert(hex.to_uppercase().into_bytes());
        forms.insert(hex.into_bytes());
        forms
    }
}

/// Looks for many markers in one pass.
pub(crate) struct Search {
    /// Encodings and names, by their first two bytes.
    patterns: Vec<Vec<(Vec<u8>, String)>>,
}

impl Search {
    /// Creates the search for all encodings of these markers.
    pub(crate) fn new<'a>(markers: impl IntoIterator<Item = &'a Marker>) -> Self {
        let mut patterns = vec![Vec::new(); 1 << 16];
        for marker in markers {
            for form in marker.forms() {
                patterns[prefix(form[0], form[1])].push((form, marker.name.clone()));
            }
        }
        Self { patterns }
    }

    /// The names of the markers that are in `bytes`.
    pub(crate) fn find(&self, bytes: &[u8]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, pair) in bytes.windows(2).enumerate() {
            for (form, name) in &self.patterns[prefix(pair[0], pair[1])] {
                if bytes[at..].starts_with(form) {
                    found.insert(name.clone());
                }
            }
        }
        found
    }
}

/// A random number: the seed of the standard library's hash tables.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn prefix(first: u8, second: u8) -> usize {
    usize::from(u16::from_be_bytes([first, second]))
}
