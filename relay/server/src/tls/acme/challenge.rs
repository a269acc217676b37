//! TLS-ALPN-01 challenges (RFC 8737): a handshake for `acme-tls/1` and a pending
//! name presents a certificate with a digest that only the holder of the account
//! can compute.
//!
//! A proof is served only while its challenge is pending, for its own name, and to a
//! client that offers no other protocol. It has its own TLS configuration, which
//! requests no client certificate and after which no HTTP follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert, WantsServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ConfigBuilder, ServerConfig};

use super::order_error::OrderError;
use crate::tls::error::TlsError;

/// The ALPN protocol of these handshakes.
const ALPN: &[u8] = b"acme-tls/1";

/// Pending challenges by name; no more than an order has names.
pub(super) struct Challenges {
    pending: Arc<Mutex<BTreeMap<String, Arc<ServerConfig>>>>,
    no_certificate: Arc<ServerConfig>,
}

/// A proof that is served until this is dropped.
pub(super) struct PendingChallenge {
    domain: String,
    pending: Arc<Mutex<BTreeMap<String, Arc<ServerConfig>>>>,
}

/// Whether a client offers this protocol and no other (RFC 8737, section 3).
pub(super) fn is_challenge<'a>(alpn: Option<impl Iterator<Item = &'a [u8]>>) -> bool {
    alpn.is_some_and(|protocols| protocols.eq([ALPN]))
}

impl Challenges {
    pub(super) fn new() -> Result<Self, TlsError> {
        let builder = builder().map_err(|error| TlsError::Setup {
            what: "TLS for ACME challenges",
            why: error.to_string(),
        })?;
        let no_certificate = builder.with_cert_resolver(Arc::new(FixedCertificate(None)));
        Ok(Self { pending: Arc::default(), no_certificate: Arc::new(no_certificate) })
    }

    /// Serves the `digest` of a key authorization for `domain`.
    pub(super) fn serve(
        &self,
        domain: &str,
        digest: &[u8; 32],
    ) -> Result<PendingChallenge, OrderError> {
        let config = Arc::new(proof(domain, digest)?);
        self.pending.lock().insert(domain.to_owned(), config);
        Ok(PendingChallenge { domain: domain.to_owned(), pending: self.pending.clone() })
    }

    /// The configuration with this name's proof.
    pub(super) fn proof(&self, server_name: &str) -> Option<Arc<ServerConfig>> {
        self.pending.lock().get(&server_name.to_ascii_lowercase()).cloned()
    }

    /// The configuration that presents no certificate: the client gets an alert.
    pub(super) fn no_certificate(&self) -> Arc<ServerConfig> {
        self.no_certificate.clone()
    }
}

impl Drop for PendingChallenge {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.domain);
    }
}

fn proof(domain: &str, digest: &[u8; 32]) -> Result<ServerConfig, OrderError> {
    let mut params = CertificateParams::new([domain.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    // Key and certificate are not compared: the library refuses to parse a certificate
    // with a critical extension that it does not know.
    let key = aws_lc_rs::sign::any_supported_type(&key.into())?;
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config =
        builder()?.with_cert_resolver(Arc::new(FixedCertificate(Some(Arc::new(certified)))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// Allows TLS 1.2 and later (RFC 8737, section 4).
fn builder() -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    Ok(builder.with_protocol_versions(&[&TLS13, &TLS12])?.with_no_client_auth())
}

/// Presents the same certificate to every client, or none.
#[derive(Debug)]
struct FixedCertificate(Option<Arc<CertifiedKey>>);

impl ResolvesServerCert for FixedCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(protocols: &[&[u8]]) -> bool {
        is_challenge(Some(protocols.iter().copied()))
    }

    #[test]
    fn challenge_offers_a_single_protocol() {
        assert!(offered(&[b"acme-tls/1"]));
        assert!(!offered(&[]) && !offered(&[b"http/1.1"]) && !offered(&[b"acme-tls/2"]));
        assert!(!offered(&[b"acme-tls/1", b"http/1.1"]) && !offered(&[b"h2", b"acme-tls/1"]));
        assert!(!offered(&[b"acme-tls/1", b"acme-tls/1"]));
        assert!(!is_challenge(None::<std::iter::Empty<&[u8]>>));
    }

    #[test]
    fn proof_is_served_for_its_name_while_pending() {
        let challenges = Challenges::new().unwrap();
        let one = challenges.serve("a.example", &[1; 32]).unwrap();
        let two = challenges.serve("b.example", &[2; 32]).unwrap();
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
