//! Validation of a TLS-ALPN-01 challenge (RFC 8737), as an ACME server does it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use rendez_tests::rendez::TIMEOUT;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::version::TLS13;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// RFC 8737, section 3.
pub(crate) const ALPN: &[u8] = b"acme-tls/1";
/// `id-pe-acmeIdentifier`.
const ACME_IDENTIFIER: &str = "1.3.6.1.5.5.7.1.31";

/// Connects to `address` and requires a challenge certificate for `domain` with this
/// digest, and no data after the handshake.
pub(crate) async fn validate(address: SocketAddr, domain: &str, digest: &[u8]) -> Result<()> {
    let certificate = presented_certificate(address, domain, &[ALPN]).await?;
    let (_, certificate) = X509Certificate::from_der(&certificate)?;
    let names = certificate.subject_alternative_name()?.context("no subject alternative names")?;
    let [GeneralName::DNSName(name)] = names.value.general_names.as_slice() else {
        anyhow::bail!("it is for {:?}", names.value.general_names);
    };
    ensure!(*name == domain, "it is for {name}");
    let found = certificate.extensions().iter().find(|e| e.oid.to_string() == ACME_IDENTIFIER);
    let found = found.context("it has no acmeIdentifier")?;
    ensure!(found.critical, "its acmeIdentifier is not critical");
    // an OCTET STRING of 32 bytes
    ensure!(found.value == [&[4, 32], digest].concat(), "it has another digest");
    Ok(())
}

/// The certificate that a server presents to a client with these protocols. The
/// server must close the connection after the handshake.
pub(crate) async fn presented_certificate(
    address: SocketAddr,
    name: &str,
    alpn: &[&[u8]],
) -> Result<Vec<u8>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    let look = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from(name.to_owned())?;
        let mut tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        let (_, session) = tls.get_ref();
        ensure!(session.alpn_protocol() == Some(ALPN), "{:?}", session.alpn_protocol());
        let chain =
            session.peer_certificates().context("a certificate is presented_certificate")?.to_vec();
        ensure!(tls.read(&mut [0; 1]).await? == 0, "data follows the handshake");
        Ok(chain[0].to_vec())
    };
    tokio::time::timeout(TIMEOUT, look).await?
}

/// Accepts any certificate, but requires a signature by its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 was offered".to_owned()))
    }

    /// Verifies with the bare key: the library does not parse a certificate with an
    /// unknown critical extension.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let (_, certificate) =
            X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
