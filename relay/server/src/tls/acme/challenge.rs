//! Proofs by TLS-ALPN-01 (RFC 8737): a handshake for `acme-tls/1` and the name
//! that is proved shows a certificate with a digest that only the account's
//! holder can compute.
//!
//! * A proof is shown while it is pending, to who asks for nothing else, and
//!   for its own name. Its configuration is its own: no client certificate is
//!   asked for, and no HTTP can follow.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert, WantsServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ConfigBuilder, ServerConfig};

use super::failure::Failure;
use crate::tls::error::TlsError;

/// The protocol that only these handshakes name.
const ALPN: &[u8] = b"acme-tls/1";

/// What is proved at the moment, by name; no more than an order has names.
pub(super) struct Challenges {
    pending: Arc<Mutex<BTreeMap<String, Arc<ServerConfig>>>>,
    nothing: Arc<ServerConfig>,
}

/// A proof that is shown until this is dropped.
pub(super) struct Pending {
    domain: String,
    pending: Arc<Mutex<BTreeMap<String, Arc<ServerConfig>>>>,
}

/// RFC 8737, section 3: the one protocol, and no other beside it.
pub(super) fn is_asked<'a>(alpn: Option<impl Iterator<Item = &'a [u8]>>) -> bool {
    alpn.is_some_and(|protocols| protocols.eq([ALPN]))
}

impl Challenges {
    pub(super) fn new() -> Result<Self, TlsError> {
        let builder = builder()
            .map_err(|error| TlsError::Setup { what: "TLS for proofs", why: error.to_string() })?;
        let nothing = Arc::new(builder.with_cert_resolver(Arc::new(Shown(None))));
        Ok(Self { pending: Arc::default(), nothing })
    }

    /// Shows `digest` of a key authorization for `domain`.
    pub(super) fn show(&self, domain: &str, digest: &[u8; 32]) -> Result<Pending, Failure> {
        let config = Arc::new(proof(domain, digest)?);
        lock(&self.pending).insert(domain.to_owned(), config);
        Ok(Pending { domain: domain.to_owned(), pending: self.pending.clone() })
    }

    /// What a client sees that asks for this name's proof.
    pub(super) fn proof(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        lock(&self.pending).get(&server_name.to_ascii_lowercase()).cloned()
    }

    /// Shows nothing, and says so to the client by an alert.
    pub(super) fn nothing(&self) -> Arc<ServerConfig> {
        self.nothing.clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.pending).remove(&self.domain);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn proof(domain: &str, digest: &[u8; 32]) -> Result<ServerConfig, Failure> {
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    // Key and certificate are not compared as others are: the library refuses to
    // look into a certificate with a critical extension that it does not know.
    let key = aws_lc_rs::sign::any_supported_type(&key.into())?;
    let shown = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = builder()?.with_cert_resolver(Arc::new(Shown(Some(Arc::new(shown)))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// RFC 8737, section 4: TLS 1.2 or later.
fn builder() -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    Ok(builder.with_protocol_versions(&[&TLS13, &TLS12])?.with_no_client_auth())
}

/// The same for everybody, or nothing.
#[derive(Debug)]
struct Shown(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(protocols: &[&[u8]]) -> bool {
        is_asked(Some(protocols.iter().copied()))
    }

    #[test]
    fn only_who_wants_nothing_else_asks_for_a_proof() {
        assert!(asked(&[b"acme-tls/1"]));
        assert!(!asked(&[]) && !asked(&[b"http/1.1"]) && !asked(&[b"acme-tls/2"]));
        assert!(!asked(&[b"acme-tls/1", b"http/1.1"]) && !asked(&[b"h2", b"acme-tls/1"]));
        assert!(!asked(&[b"acme-tls/1", b"acme-tls/1"]));
        assert!(!is_asked(None::<std::iter::Empty<&[u8]>>));
    }

    #[test]
    fn a_proof_is_there_for_its_name_while_it_is_pending() {
        let challenges = Challenges::new().unwrap();
        let one = challenges.show("a.example", &[1; 32]).unwrap();
        let two = challenges.show("b.example", &[2; 32]).unwrap();
        let config = challenges.proof("A.example").unwrap();
        assert_eq!(config.alpn_protocols, [b"acme-tls/1".to_vec()]);
        assert!(challenges.proof("c.example").is_none());
        assert!(challenges.proof("x.a.example").is_none());
        drop(one);
        assert!(challenges.proof("a.example").is_none());
        assert!(challenges.proof("b.example").is_some());
        drop(two);
        assert!(challenges.proof("b.example").is_none());
    }
}
