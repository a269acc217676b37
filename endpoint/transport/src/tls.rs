//! One TLS client configuration for websockets and HTTP.

use std::sync::{Arc, OnceLock};

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use rustls_platform_verifier::BuilderVerifierExt as _;

/// The configuration for a URL: [`client_config`] for `https://` and `wss://`.
/// For other schemes one that trusts nobody, because reading the system's
/// trust store takes longer than everything else about a loopback connection.
///
/// # Errors
/// The system's trust store cannot be read.
pub fn for_url(url: &str) -> Result<Arc<ClientConfig>, rustls::Error> {
    static TRUSTING: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if !(url.starts_with("https:") || url.starts_with("wss:")) {
        let nobody = RootCertStore::empty();
        return Ok(Arc::new(builder()?.with_root_certificates(nobody).with_no_client_auth()));
    }
    if let Some(config) = TRUSTING.get() {
        return Ok(config.clone());
    }
    let config = client_config()?;
    Ok(TRUSTING.get_or_init(|| config).clone())
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
