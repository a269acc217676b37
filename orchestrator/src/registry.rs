//! The registry's HTTP API, as orchestrators and operators use it.

use std::sync::Once;
use std::time::Duration;

use rendez_proto::audit::AuditPage;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::admin::{
    CreateToken, EnvironmentEntry, EnvironmentList, RotateToken, TokenCreated, TokenEntry,
    TokenList,
};
use rendez_proto::registry::environments::EnvironmentDetail;
use rendez_proto::registry::error::{AbsenceState, ErrorBody, ErrorCode};
use rendez_proto::registry::status::{ConnectionEntry, ConnectionList, RelayStatus};
use rendez_proto::registry::{ConnectReply, ConnectRequest};
use rendez_transport::cause;
use rendez_transport::dial::REGISTRY_CONNECT_TIMEOUT;
use rendez_transport::tls;
use reqwest::{Method, Response, StatusCode};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::error::RegistryError;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// Pages of a listing that are read; more than any real listing has.
const PAGES_MAX: usize = 10_000;

/// A registry and the token that is shown to it.
pub struct RegistryClient {
    http: reqwest::Client,
    base: Url,
    token: SecretString,
}

impl RegistryClient {
    /// A client for the relay at `base`, such as `https://relay.example.com`.
    ///
    /// # Errors
    /// [`RegistryError::Url`], [`RegistryError::NoToken`] or
    /// [`RegistryError::TrustStore`]
    pub fn new(base: &str, token: SecretString) -> Result<Self, RegistryError> {
        let url = |why: &dyn std::fmt::Display| RegistryError::Url(why.to_string());
        let base = Url::parse(base).map_err(|error| url(&error))?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(url(&"it must start with http:// or https:// and name a host"));
        }
        let text = token.expose_secret();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(RegistryError::NoToken);
        }
        let tls = tls::for_url(base.as_str())
            .map_err(|error| RegistryError::TrustStore(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&tls))
            .timeout(REQUEST_TIMEOUT)
            .connect_timeout(REGISTRY_CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .build()
            .map_err(|error| url(&error))?;
        if tls::is_exposed(&base) {
            let host = base.host_str().unwrap_or_default();
            static ONCE: Once = Once::new();
            ONCE.call_once(|| tracing::warn!(host, "the token goes to the relay without TLS"));
        }
        Ok(Self { http, base, token })
    }

    /// Whether tokens cross a network in clear: a relay on another machine,
    /// without TLS.
    pub fn is_exposed(&self) -> bool {
        tls::is_exposed(&self.base)
    }

    /// Asks for a way to the executor of `environment`.
    pub(crate) async fn connect(
        &self,
        environment: &EnvironmentId,
        request: &ConnectRequest,
    ) -> Result<ConnectReply, RegistryError> {
        let path = format!("/cloud/environment/{environment}/connect");
        self.call(Method::POST, &path, Some(request)).await
    }

    /// The environments that the token may see, ordered by id.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn environments(&self) -> Result<Vec<EnvironmentEntry>, RegistryError> {
        let mut all = Vec::new();
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let path = format!("/v1/environments{after}");
            let page: EnvironmentList = self.call(Method::GET, &path, None::<&()>).await?;
            all.extend(page.environments);
            match page.next {
                Some(next) => after = format!("?after={next}"),
                None => break,
            }
        }
        Ok(all)
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
        let path = format!("/v1/environments/{id}?probe={probe}");
        self.call(Method::GET, &path, None::<&()>).await
    }

    /// The relay as a whole.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn status(&self) -> Result<RelayStatus, RegistryError> {
        self.call(Method::GET, "/v1/status", None::<&()>).await
    }

    /// The websockets that are open, of one environment or of all.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn connections(
        &self,
        environment: Option<&EnvironmentId>,
    ) -> Result<Vec<ConnectionEntry>, RegistryError> {
        let mut all = Vec::new();
        let only = environment.map_or_else(String::new, |id| format!("environment={id}&"));
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let path = format!("/v1/connections?{only}{after}");
            let page: ConnectionList = self.call(Method::GET, &path, None::<&()>).await?;
            all.extend(page.connections);
            match page.next {
                Some(next) => after = format!("after={next}"),
                None => break,
            }
        }
        Ok(all)
    }

    /// A page of the audit log, after row number `after`.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn audit(&self, after: u64) -> Result<AuditPage, RegistryError> {
        self.call(Method::GET, &format!("/v1/audit?after={after}"), None::<&()>).await
    }

    /// Creates a token; its text is shown this once.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn create_token(&self, request: &CreateToken) -> Result<TokenCreated, RegistryError> {
        self.call(Method::POST, "/v1/tokens", Some(request)).await
    }

    /// All tokens, without their secrets.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, RegistryError> {
        let mut all = Vec::new();
        let mut after = String::new();
        for _ in 0..PAGES_MAX {
            let path = format!("/v1/tokens{after}");
            let page: TokenList = self.call(Method::GET, &path, None::<&()>).await?;
            all.extend(page.tokens);
            match page.next {
                Some(next) => after = format!("?after={next}"),
                None => break,
            }
        }
        Ok(all)
    }

    /// Revokes a token by its id.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn revoke_token(&self, id: &str) -> Result<(), RegistryError> {
        let path = format!("/v1/tokens/{id}");
        self.send(Method::DELETE, &path, None::<&()>).await.map(drop)
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
        self.call(Method::POST, &format!("/v1/tokens/{id}/rotate"), Some(request)).await
    }

    /// Revokes an environment: its websockets close, and only credentials that
    /// are made later can register in it.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn revoke_environment(&self, id: &EnvironmentId) -> Result<(), RegistryError> {
        let path = format!("/v1/environments/{id}");
        self.send(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    /// Ends an environment's registration; its executor may register anew.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn end_registration(&self, id: &EnvironmentId) -> Result<(), RegistryError> {
        let path = format!("/v1/environments/{id}/registration");
        self.send(Method::DELETE, &path, None::<&()>).await.map(drop)
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, RegistryError> {
        let bytes = self.send(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| RegistryError::Malformed(error.to_string()))
    }

    async fn send<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<Vec<u8>, RegistryError> {
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let mut request = self.http.request(method, url).bearer_auth(self.token.expose_secret());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let body = self.body(answer).await?;
        if status.is_success() { Ok(body) } else { Err(refusal(status, &body)) }
    }

    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > limits::REGISTRY_ANSWER_MAX_BYTES {
                return Err(RegistryError::Malformed("it is too long".into()));
            }
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> RegistryError {
        let port = self.base.port_or_known_default().unwrap_or_default();
        let at = format!("{}:{port}", self.base.host_str().unwrap_or_default());
        let why = match error.is_timeout() {
            true => "no answer in time".to_owned(),
            false => in_words(cause::innermost(error).to_string()),
        };
        RegistryError::Unreachable { at, why }
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> RegistryError {
    let Ok(ErrorBody { error, rendez }) = serde_json::from_slice::<ErrorBody>(body) else {
        let what = format!("HTTP {status} without an error body; is this a Rendez relay?");
        return RegistryError::Malformed(what);
    };
    let message = error.message;
    match error.code {
        ErrorCode::Unauthorized => RegistryError::TokenRefused(message),
        ErrorCode::Forbidden => RegistryError::Forbidden(message),
        ErrorCode::EnvironmentOffline => match rendez.map(|absence| absence.state) {
            Some(AbsenceState::Unknown) => RegistryError::UnknownEnvironment(message),
            _ => RegistryError::Offline(message),
        },
        ErrorCode::InvalidRequest | ErrorCode::BodyTooLarge => RegistryError::Invalid(message),
        ErrorCode::NotFound => RegistryError::NotFound(message),
        ErrorCode::LimitReached => RegistryError::LimitReached(message),
        ErrorCode::RequestTimeout => RegistryError::Unavailable(message),
        _ if status.is_server_error() => RegistryError::Unavailable(message),
        _ => RegistryError::Refused(message),
    }
}

/// Names what is behind the one failure of TLS that says nothing to most people.
fn in_words(why: String) -> String {
    match why.contains("InvalidContentType") {
        true => format!("it does not speak TLS there; perhaps http:// is meant ({why})"),
        false => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn refused(status: u16, body: &str) -> RegistryError {
        refusal(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn refusals_say_who_is_at_fault() {
        let error = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
        assert!(matches!(refused(401, &error("unauthorized")), RegistryError::TokenRefused(_)));
        assert!(matches!(refused(403, &error("forbidden")), RegistryError::Forbidden(_)));
        assert!(matches!(refused(409, &error("environment_offline")), RegistryError::Offline(_)));
        assert!(matches!(refused(503, &error("unavailable")), RegistryError::Unavailable(_)));
        assert!(matches!(refused(408, &error("request_timeout")), RegistryError::Unavailable(_)));
        assert!(matches!(refused(400, &error("invalid_request")), RegistryError::Invalid(_)));
        assert!(matches!(refused(413, &error("body_too_large")), RegistryError::Invalid(_)));
        assert!(matches!(refused(404, &error("not_found")), RegistryError::NotFound(_)));
        assert!(matches!(refused(403, &error("limit_reached")), RegistryError::LimitReached(_)));
        assert!(matches!(refused(405, &error("method_not_allowed")), RegistryError::Refused(_)));
        assert!(matches!(refused(404, "<html>"), RegistryError::Malformed(_)));
        let unknown = r#"{"error":{"code":"environment_offline","message":"m"},
            "rendez":{"state":"unknown"}}"#;
        assert!(matches!(refused(409, unknown), RegistryError::UnknownEnvironment(_)));
    }

    #[test]
    fn only_http_urls_with_a_host_are_taken() {
        for bad in ["relay", "ws://relay", "http://"] {
            let made = RegistryClient::new(bad, "t".to_owned().into());
            assert!(matches!(made, Err(RegistryError::Url(_))), "{bad} was accepted");
        }
    }

    #[test]
    fn what_no_token_can_be_is_named_and_not_shown() {
        for bad in ["", "rdz_o_a\nb", "two words", "rdz_o_\u{e9}"] {
            let made = RegistryClient::new("http://relay", bad.to_owned().into());
            let error = made.err().expect("it was taken");
            assert!(matches!(error, RegistryError::NoToken));
            assert!(!error.to_string().contains("rdz_o"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_relay_without_tls_is_said_to_be_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let serve = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut hello = Vec::new();
            assert_ne!(tcp.read_buf(&mut hello).await.unwrap(), 0);
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            // it closes when the client has
            let _ = tcp.read_to_end(&mut hello).await;
        });
        let client = RegistryClient::new(&url, "t".to_owned().into()).unwrap();
        let error = client.status().await.unwrap_err().to_string();
        assert!(error.contains("perhaps http:// is meant"), "{error}");
        drop(client);
        serve.await.unwrap();
    }

    /// What a registry whose answers have this many bytes is to us.
    async fn asked(bytes: usize) -> Result<RelayStatus, RegistryError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(tcp.read_buf(&mut request).await.unwrap(), 0, "half a request");
            }
            tcp.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.unwrap();
            // it does not take all of what is too long
            let _ = tcp.write_all(&vec![b' '; bytes]).await;
        });
        let client = RegistryClient::new(&url, "t".to_owned().into()).unwrap();
        let answer = client.status().await;
        serve.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn an_answer_is_read_up_to_its_bound() {
        let long = limits::REGISTRY_ANSWER_MAX_BYTES;
        let why = |answer| match answer {
            Err(RegistryError::Malformed(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_ne!(why(asked(long).await), "it is too long");
        assert_eq!(why(asked(long + 1).await), "it is too long");
    }
}
