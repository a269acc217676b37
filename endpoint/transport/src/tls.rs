//! One TLS client configuration for websockets and HTTP.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_platform_verifier::BuilderVerifierExt as _;

/// TLS 1.3 (and 1.2) by aws-lc-rs, X25519MLKEM768 first, trusting what the
/// operating system trusts (`SSL_CERT_FILE` is honoured).
///
/// # Errors
/// The system's trust store cannot be read.
pub fn client_config() -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    Ok(Arc::new(config))
}
