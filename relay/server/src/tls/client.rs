//! A summary of a certificate, for logs.

use std::fmt;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Longest subject in a log line, in bytes.
const SUBJECT_MAX_BYTES: usize = 256;

/// The summary of a verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    subject: String,
    fingerprint: [u8; 32],
    not_after: i64,
    until: String,
}

impl ClientCertificate {
    pub(super) fn new(der: &CertificateDer<'_>) -> Self {
        let fingerprint = Sha256::digest(der.as_ref()).into();
        match X509Certificate::from_der(der.as_ref()) {
            Ok((_, certificate)) => {
                let mut subject = certificate.subject().to_string();
                if subject.is_empty() {
                    // Newer certificates name their holder only here.
                    let names = certificate.subject_alternative_name().ok().flatten();
                    let names = names.map(|names| &names.value.general_names);
                    let name = names.and_then(|names| names.first());
                    subject = name.map(ToString::to_string).unwrap_or_default();
                }
                let end = (0..=SUBJECT_MAX_BYTES.min(subject.len()))
                    .rev()
                    .find(|end| subject.is_char_boundary(*end));
                subject.truncate(end.unwrap_or_default());
                let not_after = certificate.validity().not_after;
                let until = not_after.to_string();
                Self { subject, fingerprint, not_after: not_after.timestamp(), until }
            }
            Err(_) => Self {
                subject: String::new(),
                fingerprint,
                not_after: 0,
                until: "unknown".to_owned(),
            },
        }
    }

    /// When it expires, in seconds since 1970.
    pub(super) fn not_after(&self) -> i64 {
        self.not_after
    }

    /// When it expires, as text.
    pub(super) fn until(&self) -> &str {
        &self.until
    }
}

impl fmt::Display for ClientCertificate {
    /// The subject, quoted because its holder chose it, and the first half of the
    /// certificate's SHA-256.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} sha256:", self.subject)?;
        self.fingerprint[..16].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
