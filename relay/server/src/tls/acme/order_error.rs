//! Why an order of a certificate failed.

use std::io;
use std::path::PathBuf;

use instant_acme::{Error, Problem};

use crate::tls::order_stats::OrderOutcome;

/// Bytes of an ACME server's text that are logged.
const LOG_TEXT_MAX_BYTES: usize = 1024;

/// The problem type of a rate limit (RFC 8555, section 6.6).
const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";
/// The problem type of an unknown account (RFC 8555, section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why an order of a certificate failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OrderError {
    /// The server refused the order; the operator has to change the settings.
    #[error("the ACME server refused the order: {}", log_text(.0))]
    Refused(Problem),
    /// The server offers no challenge that a relay can answer.
    #[error(
        "the ACME server offers no tls-alpn-01 challenge for {domain}, the only kind that a \
         relay can answer"
    )]
    NoSupportedChallenge {
        /// The name.
        domain: String,
    },
    /// A name, or its port 443, does not lead to this relay.
    #[error(
        "the ACME server did not reach this relay at port 443 of {domain}: {why}; check that the \
         name leads here and that the port is open"
    )]
    Unproven {
        /// The name.
        domain: String,
        /// The server's error.
        why: String,
    },
    /// The server does not answer, or not according to RFC 8555.
    #[error("cannot reach the ACME server, or its reply is invalid: {}", log_text(.0))]
    Unreachable(Error),
    /// The server did not finish in time.
    #[error("the ACME server took too long")]
    Timeout,
    /// The issued certificate does not fit this relay.
    #[error("cannot use the certificate from the ACME server: {0}")]
    Unusable(String),
    /// The cryptographic library failed.
    #[error("cannot create a key or a certificate: {0}")]
    Crypto(String),
    /// The state directory cannot be written.
    #[error("cannot store ACME data: {}: {source}", path.display())]
    NotStored {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl OrderError {
    /// The outcome that it is counted as.
    pub(super) fn outcome(&self) -> OrderOutcome {
        match self {
            OrderError::Refused(problem) if is(problem, RATE_LIMITED) => OrderOutcome::RateLimited,
            OrderError::Refused(_) | OrderError::NoSupportedChallenge { .. } => {
                OrderOutcome::Refused
            }
            OrderError::Unproven { .. } => OrderOutcome::Unproven,
            OrderError::Unreachable(_) | OrderError::Timeout => OrderOutcome::Unreachable,
            OrderError::Unusable(_) | OrderError::Crypto(_) => OrderOutcome::Unusable,
            OrderError::NotStored { .. } => OrderOutcome::NotStored,
        }
    }

    /// Whether the server does not know the account.
    pub(super) fn is_unknown_account(&self) -> bool {
        matches!(self, OrderError::Refused(problem) if is(problem, NO_ACCOUNT))
    }
}

impl From<Error> for OrderError {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => OrderError::Refused(problem),
            Error::Timeout(_) => OrderError::Timeout,
            Error::Crypto | Error::KeyRejected => OrderError::Crypto(error.to_string()),
            other => OrderError::Unreachable(other),
        }
    }
}

impl From<rcgen::Error> for OrderError {
    fn from(error: rcgen::Error) -> Self {
        OrderError::Crypto(error.to_string())
    }
}

impl From<rustls::Error> for OrderError {
    fn from(error: rustls::Error) -> Self {
        OrderError::Crypto(error.to_string())
    }
}

fn is(problem: &Problem, kind: &str) -> bool {
    problem.r#type.as_deref() == Some(kind)
}

/// Another machine's text for a log line: one line, of bounded length.
pub(super) fn log_text(text: &impl std::fmt::Display) -> String {
    let mut text = text.to_string().replace(char::is_control, " ");
    text.truncate(text.floor_char_boundary(LOG_TEXT_MAX_BYTES));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, detail: &str) -> Problem {
        Problem {
            r#type: Some(kind.to_owned()),
            detail: Some(detail.to_owned()),
            status: Some(403),
            subproblems: Vec::new(),
        }
    }

    #[test]
    fn problem_type_decides_the_outcome() {
        let failure = |kind: &str| OrderError::from(Error::Api(problem(kind, "")));
        assert_eq!(failure(RATE_LIMITED).outcome(), OrderOutcome::RateLimited);
        assert_eq!(failure(NO_ACCOUNT).outcome(), OrderOutcome::Refused);
        assert!(
            failure(NO_ACCOUNT).is_unknown_account() && !failure(RATE_LIMITED).is_unknown_account()
        );
        assert_eq!(OrderError::from(Error::Timeout(None)).outcome(), OrderOutcome::Unreachable);
        assert_eq!(OrderError::from(Error::Str("x")).outcome(), OrderOutcome::Unreachable);
    }

    #[test]
    fn log_text_is_one_bounded_line() {
        let long = "ü".repeat(LOG_TEXT_MAX_BYTES);
        let text = log_text(&problem("k", &format!("a\nb\u{1b}[31m{long}")));
        assert!(text.contains("a b [31m") && text.len() <= LOG_TEXT_MAX_BYTES, "{text}");
        let refused = OrderError::Refused(problem("k", "not you")).to_string();
        assert_eq!(refused, "the ACME server refused the order: API error: not you (k)");
    }
}
