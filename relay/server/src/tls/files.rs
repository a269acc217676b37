//! Certificates and keys from PEM files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::client::ClientCertificate;
use super::error::TlsError;
use crate::config::{ClientAuth, Config, TlsVersion};

/// Largest file that is read: a chain of certificates has under 16 KiB, a
/// bundle of authorities under 1 MiB.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// The digest of files that could not be read.
pub(super) const UNREADABLE: [u8; 32] = [0; 32];

/// The configured files and the requirements on clients.
#[derive(Debug, Clone)]
pub(crate) struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_auth: ClientAuth,
    min_version: TlsVersion,
}

/// The configuration that the files result in.
pub(crate) struct LoadedTls {
    pub(super) config: Arc<ServerConfig>,
    pub(super) digest: [u8; 32],
    /// When the certificate expires, in seconds since 1970.
    pub(super) not_after: i64,
}

impl TlsFiles {
    /// Returns `None` if no certificate is configured. `own` is the file of an ACME
    /// certificate with its key.
    pub(super) fn new(config: &Config, own: Option<&Path>) -> Result<Option<Self>, TlsError> {
        let (certificate, key) = match (own, &config.tls_cert, &config.tls_key) {
            (None, None, None) => return Ok(None),
            (None, Some(certificate), Some(key)) => (certificate.clone(), key.clone()),
            (Some(own), None, None) => (own.to_owned(), own.to_owned()),
            (Some(_), _, _) => return Err(TlsError::AcmeAndFiles),
            _ => return Err(TlsError::HalfAPair),
        };
        if config.tls_client_auth != ClientAuth::Off && config.tls_client_ca.is_none() {
            return Err(TlsError::NoClientCa);
        }
        Ok(Some(Self {
            certificate,
            key,
            client_ca: config.tls_client_ca.clone(),
            client_auth: config.tls_client_auth,
            min_version: config.tls_min_version,
        }))
    }

    /// The digest of the contents of all files.
    pub(super) fn digest(&self) -> Result<[u8; 32], TlsError> {
        let mut digest = Sha256::new();
        for path in [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()] {
            let Some(path) = path else { continue };
            let content = read(path)?;
            digest.update((content.len() as u64).to_be_bytes());
            digest.update(&content[..]);
        }
        Ok(digest.finalize().into())
    }

    pub(super) fn load(&self) -> Result<LoadedTls, TlsError> {
        // First, so that the next check notices a file that changes meanwhile.
        let digest = self.digest()?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions: &[&SupportedProtocolVersion] = match self.min_version {
            TlsVersion::Tls13 => &[&TLS13],
            TlsVersion::Tls12 => &[&TLS13, &TLS12],
        };
        let chain = certificates(&self.certificate)?;
        let wrong = |path: &Path, why: &dyn std::fmt::Display| TlsError::Content {
            path: path.to_owned(),
            why: why.to_string(),
        };
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|error| wrong(&self.key, &error))?;
        let leaf = chain.first().map(ClientCertificate::new);
        let leaf = leaf.ok_or_else(|| wrong(&self.certificate, &"no certificate in it"))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| wrong(&self.certificate, &error))?;
        let builder = match self.verifier(provider)? {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong(&self.certificate, &format!("with its key: {error}")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        tracing::info!(certificate = %leaf, until = leaf.until(), "TLS certificate loaded");
        Ok(LoadedTls { config: Arc::new(config), digest, not_after: leaf.not_after() })
    }

    /// The verifier of client certificates; `None` if they are not requested.
    pub(super) fn verifier(
        &self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn rustls::server::danger::ClientCertVerifier>>, TlsError> {
        let path = match (&self.client_ca, self.client_auth) {
            (_, ClientAuth::Off) => return Ok(None),
            (None, _) => return Err(TlsError::NoClientCa),
            (Some(path), _) => path,
        };
        let wrong = |why: &dyn std::fmt::Display| TlsError::Content {
            path: path.clone(),
            why: why.to_string(),
        };
        let mut roots = RootCertStore::empty();
        for authority in certificates(path)? {
            roots.add(authority).map_err(|error| wrong(&error))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let builder = match self.client_auth {
            ClientAuth::Required => builder,
            _ => builder.allow_unauthenticated(),
        };
        builder.build().map(Some).map_err(|error| wrong(&error))
    }
}

/// All certificates in a file; at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::Content { path: path.to_owned(), why };
    let content = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&content).collect();
    let chain = chain.map_err(|error| wrong(error.to_string()))?;
    if chain.is_empty() { Err(wrong("no certificate in it".into())) } else { Ok(chain) }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    use io::Read as _;
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut content = Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    let read = file.take(FILE_MAX_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if read as u64 > FILE_MAX_BYTES {
        return Err(failed(io::Error::other("it is too large for a PEM file")));
    }
    Ok(content)
}
