//! The root cause of an error.

use std::error::Error;

/// Returns the innermost cause of an error, which names the failure. The errors
/// around it add context; those of an HTTP library repeat the URL, which may hold a
/// ticket.
pub fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Around(&'static str, #[source] Option<Box<dyn Error + 'static>>);

    #[test]
    fn innermost_cause_is_returned() {
        let inner = Around("refused", None);
        assert_eq!(innermost(&inner).to_string(), "refused");
        let middle = Around("connect", Some(inner.into()));
        let outer = Around("https://relay/?ticket", Some(middle.into()));
        assert_eq!(innermost(&outer).to_string(), "refused");
    }
}
