//! One TLS client configuration for websockets and HTTP.
//!
//! A program may [`configure`] its trusted authorities and its client certificate,
//! once, before its first connection. By default it trusts the operating system's
//! store (`SSL_CERT_FILE` is honoured) and has no client certificate.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt as _;
use url::Url;

/// The configuration for `https://` and `wss://`.
static CLIENT_CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();

/// The files for TLS that differ from the system's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities in PEM that are trusted instead of the system's.
    pub authorities: Option<PathBuf>,
    /// Certificate chain and private key in PEM for client authentication.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// TLS cannot be set up. The user of the program must act.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    /// A file has invalid contents or cannot be read.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: String,
    },
    /// An error of the TLS library.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// A connection was made before, with other settings.
    #[error("TLS was set up before with other files")]
    TooLate,
}

/// Sets up TLS for all further connections of this process. Does nothing without
/// files, and nothing when called again with the same ones.
///
/// # Errors
/// See [`TlsSetupError`].
pub fn configure(files: &TlsFiles) -> Result<(), TlsSetupError> {
    static CONFIGURED: OnceLock<TlsFiles> = OnceLock::new();
    if *files == TlsFiles::default() || CONFIGURED.get() == Some(files) {
        return Ok(());
    }
    let builder = match &files.authorities {
        None => builder()?.with_platform_verifier()?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|error| file(path, &error))?;
            }
            builder()?.with_root_certificates(roots)
        }
    };
    let config = Arc::new(identified(builder, files.identity.as_ref())?);
    CLIENT_CONFIG.set(config).map_err(|_| TlsSetupError::TooLate)?;
    let _ = CONFIGURED.set(files.clone());
    Ok(())
}

fn identified(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: Option<&(PathBuf, PathBuf)>,
) -> Result<ClientConfig, TlsSetupError> {
    let Some((chain, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates(chain)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, &io_error(error)))?;
    Ok(builder.with_client_auth_cert(chain, key)?)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let read = |error| file(path, &io_error(error));
    let all = CertificateDer::pem_file_iter(path).map_err(read)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(read)?;
    if all.is_empty() { Err(file(path, &"no certificate in it")) } else { Ok(all) }
}

fn file(path: &Path, why: &dyn std::fmt::Display) -> TlsSetupError {
    TlsSetupError::File { path: path.to_owned(), why: why.to_string() }
}

/// Returns the operating system's error if there is one.
fn io_error(error: pem::Error) -> io::Error {
    match error {
        pem::Error::Io(error) => error,
        other => io::Error::other(other),
    }
}

/// Whether data for this URL crosses a network unencrypted: no TLS, and another
/// machine.
pub fn sends_cleartext(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host == "localhost"
        || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    matches!(url.scheme(), "http" | "ws") && !loopback
}

/// The configuration for a URL: [`client_config`] for `https://` and `wss://`.
/// For other schemes one that trusts no_roots, because reading the system's
/// trust store takes longer than everything else about a loopback connection.
///
/// # Errors
/// The system's trust store cannot be read.
pub fn for_url(url: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
    if !(url.starts_with("https:") || url.starts_with("wss:")) {
        let no_roots = RootCertStore::empty();
        return Ok(Arc::new(builder()?.with_root_certificates(no_roots).with_no_client_auth()));
    }
    if let Some(config) = CLIENT_CONFIG.get() {
        return Ok(config.clone());
    }
    let config = client_config()?;
    Ok(CLIENT_CONFIG.get_or_init(|| config).clone())
}

/// TLS 1.3 (and 1.2) by aws-lc-rs, X25519MLKEM768 first, trusting what the
/// operating system trusts (`SSL_CERT_FILE` is honoured).
///
/// # Errors
/// The system's trust store cannot be read.
pub fn client_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    Ok(Arc::new(builder()?.with_platform_verifier()?.with_no_client_auth()))
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
}

/// Why the peer's certificate is refused, and what to do.
pub(crate) fn explain_certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate is not issued by an authority that is trusted here; name \
             the authority's certificate with --ca"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the server's certificate has expired; renew it ({why})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the server's certificate is not valid yet; check this machine's clock ({why})")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("the server's certificate is for another name; use a name that it has ({why})")
        }
        // The library of the verifier has the reason, and shows it for developers only.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "the server's certificate is that of a certificate authority (CA:TRUE), which \
             identifies no server; issue another one from it, or make one without that right: \
             `openssl req -x509` with -addext basicConstraints=critical,CA:FALSE"
                .to_owned()
        }
        other => format!("the server's certificate is refused: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unusable_files_are_named() {
        let files = |path: &str| TlsFiles { authorities: Some(path.into()), identity: None };
        for path in ["/no/such/ca.pem", "/dev/null"] {
            let error = configure(&files(path)).unwrap_err().to_string();
            assert!(error.contains(path), "{error}");
        }
    }

    #[test]
    fn remote_plain_http_sends_cleartext() {
        for (url, exposed) in [
            ("http://127.0.0.1:1", false),
            ("http://[::1]:1", false),
            ("http://localhost", false),
            ("https://relay.example", false),
            ("http://relay.example", true),
            ("ws://10.0.0.1", true),
        ] {
            assert_eq!(sends_cleartext(&url.parse().unwrap()), exposed, "{url}");
        }
    }
}
