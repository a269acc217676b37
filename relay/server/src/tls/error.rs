//! Why TLS cannot be served.

use std::io;
use std::path::PathBuf;

/// Why TLS cannot be served. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Only one of two files is configured.
    #[error("tls.cert and tls.key must both be set; one of them is missing")]
    HalfAPair,
    /// Client certificates are required without an authority.
    #[error("tls.client_auth needs tls.client_ca, the authority of the clients' certificates")]
    NoClientCa,
    /// Both ACME and a certificate file are configured.
    #[error(
        "acme.domains and tls.cert or tls.key are both set: use either ACME or a certificate file"
    )]
    AcmeAndFiles,
    /// The terms of service of the authority are not agreed to.
    #[error(
        "acme.domains needs acme.terms_agreed = true: read the terms of service of {directory} \
         and agree to them"
    )]
    AcmeTerms {
        /// The ACME server's directory.
        directory: String,
    },
    /// The program was built without ACME.
    #[error(
        "acme.domains is set, but this program was built without ACME: build it with `--features \
         acme`, or set tls.cert and tls.key"
    )]
    AcmeNotBuilt,
    /// HTTPS or TLS cannot be set up on this machine.
    #[error("cannot set up {what}: {why}")]
    Setup {
        /// The part that could not be set up.
        what: &'static str,
        /// The library's error.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file has the wrong content.
    #[error("{}: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why it is wrong.
        why: String,
    },
}
