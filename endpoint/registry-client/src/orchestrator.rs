//! The registry's call for orchestrators.

use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::{ConnectReply, ConnectRequest};
use secrecy::SecretString;

use crate::error::RegistryError;
use crate::token::TokenClient;

/// An orchestrator's client of the registry.
pub struct OrchestratorClient(TokenClient);

impl OrchestratorClient {
    /// Creates a client of the relay at `base`, such as `https://relay.example.com`.
    ///
    /// # Errors
    /// [`RegistryError::Url`], [`RegistryError::InvalidToken`],
    /// [`RegistryError::TrustStore`] or [`RegistryError::Local`].
    pub fn new(base: &str, token: SecretString) -> Result<Self, RegistryError> {
        TokenClient::new(base, token).map(Self)
    }

    /// Whether the token crosses a network unencrypted: the relay is on another
    /// machine and its URL is `http://`.
    pub fn sends_cleartext(&self) -> bool {
        self.0.sends_cleartext()
    }

    /// Requests a ticket for a connection to the executor of `environment`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn connect(
        &self,
        environment: &EnvironmentId,
        request: &ConnectRequest,
    ) -> Result<ConnectReply, RegistryError> {
        self.0.post(&format!("/cloud/environment/{environment}/connect"), request).await
    }
}
