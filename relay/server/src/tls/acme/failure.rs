//! Why an order did not become a certificate, and whose fault that is.

use std::io;
use std::path::PathBuf;

use instant_acme::{Error, Problem};

use crate::tls::orders::Ordered;

/// Bytes of an ACME server's words that are logged.
const WORDS_MAX_BYTES: usize = 1024;

/// The server that issues too much (RFC 8555, section 6.6).
const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";
/// The server that has lost the account (RFC 8555, section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why an order did not become a certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server says no; the operator asks for what it does not give.
    #[error("the ACME server refuses: {}", words(.0))]
    Refused(Problem),
    /// The server has no proof that a relay can give.
    #[error(
        "the ACME server does not prove {domain} by tls-alpn-01, which is all that a relay can"
    )]
    NoWayToProve {
        /// The name.
        domain: String,
    },
    /// A name does not lead here, or port 443 does not.
    #[error(
        "the ACME server did not find this relay at port 443 of {domain}; does the name lead \
         here, and is the port open? It says: {why}"
    )]
    Unproven {
        /// The name.
        domain: String,
        /// The server's words.
        why: String,
    },
    /// The server does not answer, or not as RFC 8555 has it.
    #[error("the ACME server cannot be reached or understood: {}", words(.0))]
    Unreachable(Error),
    /// The same within its time.
    #[error("the ACME server took too long")]
    Late,
    /// What came back is no certificate for this relay.
    #[error("what the ACME server issued cannot be used: {0}")]
    Unusable(String),
    /// This machine's cryptography fails.
    #[error("cannot make a key or a certificate: {0}")]
    Crypto(String),
    /// The state directory takes nothing.
    #[error("cannot keep what ACME needs: {}: {source}", path.display())]
    NotKept {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

impl Failure {
    /// How it is counted.
    pub(super) fn outcome(&self) -> Ordered {
        match self {
            Failure::Refused(problem) if is(problem, RATE_LIMITED) => Ordered::RateLimited,
            Failure::Refused(_) | Failure::NoWayToProve { .. } => Ordered::Refused,
            Failure::Unproven { .. } => Ordered::Unproven,
            Failure::Unreachable(_) | Failure::Late => Ordered::Unreachable,
            Failure::Unusable(_) | Failure::Crypto(_) => Ordered::Unusable,
            Failure::NotKept { .. } => Ordered::NotKept,
        }
    }

    /// Whether the server does not know who is asking.
    pub(super) fn account_is_gone(&self) -> bool {
        matches!(self, Failure::Refused(problem) if is(problem, NO_ACCOUNT))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(problem) => Failure::Refused(problem),
            Error::Timeout(_) => Failure::Late,
            Error::Crypto | Error::KeyRejected => Failure::Crypto(error.to_string()),
            other => Failure::Unreachable(other),
        }
    }
}

impl From<rcgen::Error> for Failure {
    fn from(error: rcgen::Error) -> Self {
        Failure::Crypto(error.to_string())
    }
}

impl From<rustls::Error> for Failure {
    fn from(error: rustls::Error) -> Self {
        Failure::Crypto(error.to_string())
    }
}

fn is(problem: &Problem, kind: &str) -> bool {
    problem.r#type.as_deref() == Some(kind)
}

/// Another machine's words for a log line: one line, of bounded length.
pub(super) fn words(said: &impl std::fmt::Display) -> String {
    let mut words = said.to_string().replace(char::is_control, " ");
    words.truncate(words.floor_char_boundary(WORDS_MAX_BYTES));
    words
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
    fn refusals_are_told_apart() {
        let failure = |kind: &str| Failure::from(Error::Api(problem(kind, "")));
        assert_eq!(failure(RATE_LIMITED).outcome(), Ordered::RateLimited);
        assert_eq!(failure(NO_ACCOUNT).outcome(), Ordered::Refused);
        assert!(failure(NO_ACCOUNT).account_is_gone() && !failure(RATE_LIMITED).account_is_gone());
        assert_eq!(Failure::from(Error::Timeout(None)).outcome(), Ordered::Unreachable);
        assert_eq!(Failure::from(Error::Str("x")).outcome(), Ordered::Unreachable);
    }

    #[test]
    fn a_servers_words_are_one_bounded_line() {
        let long = "ü".repeat(WORDS_MAX_BYTES);
        let said = words(&problem("k", &format!("a\nb\u{1b}[31m{long}")));
        assert!(said.contains("a b [31m") && said.len() <= WORDS_MAX_BYTES, "{said}");
        let refused = Failure::Refused(problem("k", "not you")).to_string();
        assert_eq!(refused, "the ACME server refuses: API error: not you (k)");
    }
}
