//! Why TLS cannot be served.

use std::io;
use std::path::PathBuf;

/// Why TLS cannot be served. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Half of a pair.
    #[error("tls.cert and tls.key belong together; one of them is not set")]
    HalfAPair,
    /// Clients are to show certificates, and nobody says whose.
    #[error("tls.client_auth needs tls.client_ca, the authority of the clients' certificates")]
    NoClientCa,
    /// Two ways to one certificate.
    #[error(
        "acme.domains has the relay get its certificate, and tls.cert or tls.key names one: set \
         the one or the other"
    )]
    AcmeAndFiles,
    /// Nobody has agreed to the authority's terms.
    #[error(
        "acme.domains is set: read the terms of service of {directory} and agree to them with \
         acme.terms_agreed = true"
    )]
    AcmeTerms {
        /// The ACME server's directory.
        directory: String,
    },
    /// The code for it was left out.
    #[error(
        "acme.domains is set, but this program was built without ACME: build it with `--features \
         acme`, or get a certificate otherwise and name it in tls.cert and tls.key"
    )]
    AcmeNotBuilt,
    /// HTTPS or TLS cannot be set up on this machine.
    #[error("cannot set up {what}: {why}")]
    Setup {
        /// What for.
        what: &'static str,
        /// The library's words.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}
