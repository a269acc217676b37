//! Flags and variables for TLS to a relay.

use std::path::PathBuf;

use rendez_transport::tls::{self, TlsFiles, TlsSetupError};

/// TLS options for connections to a relay.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TlsArgs {
    /// File with certificate authorities in PEM, trusted instead of the system's
    #[arg(long = "ca", env = "RENDEZ_CA", value_name = "FILE")]
    pub authorities: Option<PathBuf>,

    /// Client certificate in PEM, for a relay that requests one
    #[arg(long, env = "RENDEZ_CLIENT_CERT", value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,

    /// Private key of the client certificate, in PEM
    #[arg(long, env = "RENDEZ_CLIENT_KEY", value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
}

impl TlsArgs {
    /// Sets up TLS for this process, before its first connection.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn configure(&self) -> Result<(), TlsSetupError> {
        let identity = self.client_cert.clone().zip(self.client_key.clone());
        tls::configure(&TlsFiles { authorities: self.authorities.clone(), identity })
    }
}
