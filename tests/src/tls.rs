//! A private certificate authority, and TLS connections that trust it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::rendez::TIMEOUT;

/// A private authority, with a directory for its certificate `ca.pem` and for
/// the files that belong to it.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    /// Makes a new authority.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("ca.pem"), issuer.pem())?;
        Ok(Self { issuer, directory })
    }

    /// The directory of its files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its certificate and the key that signs.
    pub fn issuer(&self) -> &CertifiedIssuer<'static, KeyPair> {
        &self.issuer
    }

    /// Writes `NAME.pem` and `NAME.key`: a certificate for 127.0.0.1 with this
    /// common name.
    pub fn issue(&self, name: &str, common_name: &str) -> Result<()> {
        self.issue_for(name, common_name, vec!["127.0.0.1".to_owned()])
    }

    /// The same for other addresses.
    pub fn issue_for(&self, name: &str, common_name: &str, addresses: Vec<String>) -> Result<()> {
        let mut params = CertificateParams::new(addresses)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.path(&format!("{name}.pem")), certificate.pem())?;
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem())?;
        Ok(())
    }

    /// A client that trusts this authority and no other. It presents the
    /// certificate `identity`, if there is one.
    pub fn client_config(&self, identity: Option<&str>) -> Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem"))?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let Some(name) = identity else { return Ok(builder.with_no_client_auth()) };
        let (chain, key) = self.pair(name)?;
        Ok(builder.with_client_auth_cert(chain, key)?)
    }

    /// A server with the certificate `name`.
    pub fn server_config(&self, name: &str) -> Result<ServerConfig> {
        let (chain, key) = self.pair(name)?;
        Ok(ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?)
    }

    fn pair(&self, name: &str) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = vec![CertificateDer::from_pem_file(self.path(&format!("{name}.pem")))?];
        Ok((chain, PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key")))?))
    }
}

/// Opens a TLS connection to a server that must be `name`.
pub async fn connect(
    config: impl Into<Arc<ClientConfig>>,
    address: SocketAddr,
    name: ServerName<'static>,
) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(address).await?;
    Ok(timeout(TIMEOUT, TlsConnector::from(config.into()).connect(name, tcp)).await??)
}

/// Requests `/livez` on an open connection and returns the response.
pub async fn livez(stream: &mut TlsStream<TcpStream>) -> Result<String> {
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: relay\r\n\r\n").await?;
    let mut response = Vec::new();
    let whole = async {
        while !response.ends_with(b"ok\n") {
            ensure!(stream.read_buf(&mut response).await? > 0, "closed after {response:?}");
        }
        Ok(())
    };
    timeout(TIMEOUT, whole).await??;
    Ok(String::from_utf8(response)?)
}
