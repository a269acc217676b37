//! Settings with a value per id.
//!
//! In a file they are a section with an id and its value per line; as a flag or
//! a variable they are one text: `ID VALUE; ID VALUE`.

/// Stands between two entries of the text.
pub const SEPARATOR: char = ';';

/// One entry of the text.
///
/// # Errors
/// The id or the value would break the text.
pub fn entry(id: &str, value: &str) -> Result<String, String> {
    let splits = |c: char| c == SEPARATOR || c.is_whitespace();
    if id.is_empty() || id.contains(splits) || value.contains(SEPARATOR) {
        return Err(format!("{id:?} = {value:?} is not an id and its bounds"));
    }
    Ok(format!("{id} {value}"))
}

/// Entries as one text.
pub fn join(entries: &[String]) -> String {
    entries.join(&format!("{SEPARATOR} "))
}

/// The ids and values of a text.
pub fn split(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let entries = text.split(SEPARATOR).map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(|entry| entry.split_once(char::is_whitespace).unwrap_or((entry, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_values_cannot_break_the_text() {
        assert_eq!(entry("a", "streams=1"), Ok("a streams=1".to_owned()));
        for (id, value) in [("a;b", ""), ("a b", ""), ("", "streams=1"), ("a", ";b")] {
            assert!(entry(id, value).is_err(), "{id:?} {value:?}");
        }
    }

    #[test]
    fn a_joined_text_splits_into_its_entries() {
        let text = join(&["a x=1 y=2".to_owned(), "b ".to_owned()]);
        assert_eq!(split(&text).collect::<Vec<_>>(), [("a", "x=1 y=2"), ("b", "")]);
        assert_eq!(split(" ; ").count(), 0);
    }
}
