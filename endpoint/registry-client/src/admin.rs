//! The registry's calls for operators.

use std::fmt::Display;

use rendez_proto::audit::AuditPage;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::registry::admin::{
    CreateToken, EnvironmentEntry, EnvironmentList, RotateToken, TokenCreated, TokenEntry,
    TokenList,
};
use rendez_proto::registry::environments::EnvironmentDetail;
use rendez_proto::registry::status::{ConnectionEntry, ConnectionList, RelayStatus};
use secrecy::SecretString;
use serde::de::DeserializeOwned;

use crate::error::RegistryError;
use crate::token::TokenClient;

/// The number of pages after which reading a listing stops: more than any real
/// listing has.
const PAGES_MAX: usize = 10_000;

/// An operator's client of the registry.
pub struct AdminClient(TokenClient);

impl AdminClient {
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

    /// Lists the environments that the token covers, ordered by id.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn environments(&self) -> Result<Vec<EnvironmentEntry>, RegistryError> {
        let split = |page: EnvironmentList| (page.environments, page.next);
        self.all_pages("/v1/environments?", split).await
    }

    /// Returns the details of one environment. With `probe`, the relay first pings
    /// the executor, which takes a few seconds if it does not respond.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn environment(
        &self,
        id: &EnvironmentId,
        probe: bool,
    ) -> Result<EnvironmentDetail, RegistryError> {
        self.0.get(&format!("/v1/environments/{id}?probe={probe}")).await
    }

    /// Revokes an environment: the relay closes its websockets, and only
    /// credentials created afterwards can register in it.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn revoke_environment(&self, id: &EnvironmentId) -> Result<(), RegistryError> {
        self.0.delete(&format!("/v1/environments/{id}")).await
    }

    /// Ends the registration of an environment. Its executor may register again.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn end_registration(&self, id: &EnvironmentId) -> Result<(), RegistryError> {
        self.0.delete(&format!("/v1/environments/{id}/registration")).await
    }

    /// Returns the status of the relay.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn status(&self) -> Result<RelayStatus, RegistryError> {
        self.0.get("/v1/status").await
    }

    /// Lists the open websockets, of one environment or of all.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn connections(
        &self,
        environment: Option<&EnvironmentId>,
    ) -> Result<Vec<ConnectionEntry>, RegistryError> {
        let only = environment.map_or_else(String::new, |id| format!("environment={id}&"));
        let split = |page: ConnectionList| (page.connections, page.next);
        self.all_pages(&format!("/v1/connections?{only}"), split).await
    }

    /// Returns the page of the audit log that follows row number `after`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn audit(&self, after: u64) -> Result<AuditPage, RegistryError> {
        self.0.get(&format!("/v1/audit?after={after}")).await
    }

    /// Lists all tokens, without their secrets.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, RegistryError> {
        self.all_pages("/v1/tokens?", |page: TokenList| (page.tokens, page.next)).await
    }

    /// Creates a token. Only this reply contains its text.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn create_token(&self, request: &CreateToken) -> Result<TokenCreated, RegistryError> {
        self.0.post("/v1/tokens", request).await
    }

    /// Gives a token a new secret. Only this reply contains the new text.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn rotate_token(
        &self,
        id: &str,
        request: &RotateToken,
    ) -> Result<TokenCreated, RegistryError> {
        self.0.post(&format!("/v1/tokens/{id}/rotate"), request).await
    }

    /// Revokes a token by its id.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn revoke_token(&self, id: &str) -> Result<(), RegistryError> {
        self.0.delete(&format!("/v1/tokens/{id}")).await
    }

    /// Reads all pages of a listing. `path` ends so that `after` can be appended
    /// as a query parameter.
    async fn all_pages<P: DeserializeOwned, T, N: Display>(
        &self,
        path: &str,
        split: impl Fn(P) -> (Vec<T>, Option<N>),
    ) -> Result<Vec<T>, RegistryError> {
        let mut all = Vec::new();
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let (entries, next) = split(self.0.get(&format!("{path}{after}")).await?);
            all.extend(entries);
            match next {
                Some(next) => after = format!("after={next}"),
                None => break,
            }
        }
        Ok(all)
    }
}
