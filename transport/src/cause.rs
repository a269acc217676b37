//! The root cause of an error.

use std::error::Error;
use std::io;

use crate::tls;

/// Describes the failure of a request or a connection: the innermost cause, or in plain
/// words why the peer's certificate is refused.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(why)) = cause.downcast_ref() {
            return tls::explain_certificate(why);
        }
        // The error within an I/O error is not among its sources.
        let within = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = within.map(|within| within as _).or_else(|| cause.source());
    }
    innermost(error).to_string()
}

/// Returns the innermost cause of an error, which names the failure. The errors
/// around it add context; those of an HTTP library repeat the URL, which may hold a
/// ticket.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
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
