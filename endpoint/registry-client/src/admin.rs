//! The calls of operators.

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

/// Pages of a listing that are read; more than any real listing has.
const PAGES_MAX: usize = 10_000;

/// The registry, as an operator calls it.
pub struct AdminClient(TokenClient);

impl AdminClient {
    /// A client for the relay at `base`, such as `https://relay.example.com`.
    ///
    /// # Errors
    /// [`RegistryError::Url`], [`RegistryError::InvalidToken`],
    /// [`RegistryError::TrustStore`] or [`RegistryError::Local`].
    pub fn new(base: &str, token: SecretString) -> Result<Self, RegistryError> {
        TokenClient::new(base, token).map(Self)
    }

    /// Whether the token crosses a network in clear: to a relay on another
    /// machine, without TLS.
    pub fn is_exposed(&self) -> bool {
        self.0.is_exposed()
    }

    /// The environments that the token may see, ordered by id.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn environments(&self) -> Result<Vec<EnvironmentEntry>, RegistryError> {
        let split = |page: EnvironmentList| (page.environments, page.next);
        self.all_pages("/v1/environments?", split).await
    }

    /// All about one environment. With `probe`, its executor is pinged first,
    /// which takes a few seconds if it does not answer.
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

    /// Revokes an environment: its websockets close, and only credentials that
    /// are made later can register in it.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn revoke_environment(&self, id: &EnvironmentId) -> Result<(), RegistryError> {
        self.0.delete(&format!("/v1/environments/{id}")).await
    }

    /// Ends an environment's registration; its executor may register anew.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn end_registration(&self, id: &EnvironmentId) -> Result<(), RegistryError> {
        self.0.delete(&format!("/v1/environments/{id}/registration")).await
    }

    /// The relay as a whole.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn status(&self) -> Result<RelayStatus, RegistryError> {
        self.0.get("/v1/status").await
    }

    /// The websockets that are open, of one environment or of all.
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

    /// A page of the audit log, after row number `after`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn audit(&self, after: u64) -> Result<AuditPage, RegistryError> {
        self.0.get(&format!("/v1/audit?after={after}")).await
    }

    /// All tokens, without their secrets.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, RegistryError> {
        self.all_pages("/v1/tokens?", |page: TokenList| (page.tokens, page.next)).await
    }

    /// Creates a token; its text is shown this once.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn create_token(&self, request: &CreateToken) -> Result<TokenCreated, RegistryError> {
        self.0.post("/v1/tokens", request).await
    }

    /// Gives a token a new secret, whose text is shown this once.
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

    /// The entries of all pages of a listing. `path` ends where `after` can be
    /// appended as a query parameter.
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
