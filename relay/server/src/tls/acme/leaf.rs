//! Names and validity of a certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The relay's own certificate, without the authorities of its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Seconds since 1970.
    pub(super) not_before: i64,
    /// Seconds since 1970.
    pub(super) not_after: i64,
    names: Vec<String>,
}

impl Leaf {
    /// Returns `None` if this is not a certificate.
    pub(super) fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der.as_ref()).ok()?;
        let names = certificate.subject_alternative_name().ok()?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let dns = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        };
        let validity = certificate.validity();
        Some(Self {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            names: names.iter().filter_map(dns).collect(),
        })
    }

    /// Whether it is valid for all of these names.
    pub(super) fn covers(&self, domains: &[String]) -> bool {
        domains.iter().all(|domain| self.names.contains(domain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_validity_are_parsed() {
        let names = ["A.example".to_owned(), "b.example".to_owned()];
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 4, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = Leaf::parse(params.self_signed(&key).unwrap().der()).unwrap();
        assert_eq!((leaf.not_before, leaf.not_after), (1_767_225_600, 1_775_001_600));
        let covers = |names: &[&str]| {
            leaf.covers(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        assert!(covers(&["a.example"]) && covers(&["b.example", "a.example"]));
        assert!(!covers(&["c.example"]) && !covers(&["a.example", "c.example"]));
        assert_eq!(Leaf::parse(&CertificateDer::from(vec![0x30, 0])), None);
    }
}
