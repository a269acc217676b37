//! Calls with a bearer token, as orchestrators and operators make them.

use std::sync::Once;
use std::time::Duration;

use rendez_proto::limits;
use rendez_transport::tls;
use reqwest::Method;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::error::RegistryError;
use crate::http::{HttpClient, parse};

/// The time limit of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The size limit of a response body: a full page of the longest entries. Those
/// are tokens with many networks, of less than 4 KiB each.
const RESPONSE_MAX_BYTES: usize = limits::LIST_PAGE_MAX as usize * 4096;

const _: () = assert!(limits::REGISTRY_BODY_MAX_BYTES < RESPONSE_MAX_BYTES);

/// A registry and the token for it.
pub(crate) struct TokenClient {
    http: HttpClient,
    token: SecretString,
}

impl TokenClient {
    /// # Errors
    /// [`RegistryError::Url`], [`RegistryError::InvalidToken`],
    /// [`RegistryError::TrustStore`] or [`RegistryError::Local`].
    pub(crate) fn new(base: &str, token: SecretString) -> Result<Self, RegistryError> {
        let url = |why: &dyn std::fmt::Display| RegistryError::Url(why.to_string());
        let base = Url::parse(base).map_err(|error| url(&error))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(url(&"it must start with http:// or https:// and name a host"));
        }
        let text = token.expose_secret();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RegistryError::InvalidToken);
        }
        let tls = tls::for_url(base.as_str())
            .map_err(|error| RegistryError::TrustStore(error.to_string()))?;
        let http = HttpClient::new(base, &tls, REQUEST_TIMEOUT, RESPONSE_MAX_BYTES)?;
        let client = Self { http, token };
        if client.sends_cleartext() {
            let host = client.http.base().host_str().unwrap_or_default();
            static ONCE: Once = Once::new();
            ONCE.call_once(|| {
                tracing::warn!(host, "the token is sent to the relay over plain HTTP")
            });
        }
        Ok(client)
    }

    /// Whether the token crosses a network unencrypted: the relay is on another
    /// machine and its URL is `http://`.
    pub(crate) fn sends_cleartext(&self) -> bool {
        tls::sends_cleartext(self.http.base())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, RegistryError> {
        parse(&self.send(Method::GET, path, None::<&()>).await?)
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, RegistryError> {
        parse(&self.send(Method::POST, path, Some(body)).await?)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), RegistryError> {
        self.send(Method::DELETE, path, None::<&()>).await.map(drop)
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut request = self.http.request(method, path).bearer_auth(self.token.expose_secret());
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.http.send(request).await?;
        let status = response.status();
        let body = self.http.read(response).await?;
        match status.is_success() {
            true => Ok(body),
            false => Err(RegistryError::from_response(status, &body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_http_urls_with_host_are_accepted() {
        for bad in ["relay", "ws://relay", "http://"] {
            let made = TokenClient::new(bad, "t".to_owned().into());
            assert!(matches!(made, Err(RegistryError::Url(_))), "{bad} was accepted");
        }
    }

    #[test]
    fn invalid_token_is_refused_but_not_shown() {
        for bad in ["", "rdz_o_a\nb", "two words", "rdz_o_\u{e9}"] {
            let made = TokenClient::new("http://relay", bad.to_owned().into());
            let error = made.err().expect("it was accepted");
            assert!(matches!(error, RegistryError::InvalidToken));
            assert!(!error.to_string().contains("rdz_o"), "{error}");
        }
    }
}
