//! The HTTP client of all roles. It bounds the time of a request and the size of
//! a response.

use std::sync::Arc;
use std::time::Duration;

use rendez_transport::cause;
use reqwest::{Method, RequestBuilder, Response};
use rustls::ClientConfig;
use serde::de::DeserializeOwned;
use url::Url;

use crate::error::RegistryError;

/// The time limit for name lookup, TCP and TLS within a request: enough for long
/// round trips and one lost packet.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A registry's HTTP server.
pub(crate) struct HttpClient {
    client: reqwest::Client,
    base: Url,
    body_max_bytes: usize,
}

impl HttpClient {
    /// Creates a client that limits requests to `timeout` and response bodies to
    /// `body_max_bytes`.
    pub(crate) fn new(
        base: Url,
        tls: &Arc<ClientConfig>,
        timeout: Duration,
        body_max_bytes: usize,
    ) -> Result<Self, RegistryError> {
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(tls))
            .timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .build()
            .map_err(|error| RegistryError::Local(error.to_string()))?;
        Ok(Self { client, base, body_max_bytes })
    }

    pub(crate) fn base(&self) -> &Url {
        &self.base
    }

    /// Starts a request for `path` below the base URL. `path` begins with a slash.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        self.client.request(method, url)
    }

    /// Sends a request and waits for the head of its response.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, RegistryError> {
        request.send().await.map_err(|error| self.unreachable(&error))
    }

    /// Reads the body of a response up to the limit.
    pub(crate) async fn read(&self, mut response: Response) -> Result<Vec<u8>, RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > self.body_max_bytes {
                return Err(RegistryError::Malformed("the body is too long".into()));
            }
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> RegistryError {
        let port = self.base.port_or_known_default().unwrap_or_default();
        let at = format!("{}:{port}", self.base.host_str().unwrap_or_default());
        let why = match error.is_timeout() {
            true => "timed out".to_owned(),
            false => explain(cause::describe(error)),
        };
        RegistryError::Unreachable { at, why }
    }
}

/// Parses the body of a successful response.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(body).map_err(|error| RegistryError::Malformed(error.to_string()))
}

/// Explains the TLS error that a server without TLS causes; its own text is
/// obscure.
fn explain(why: String) -> String {
    match why.contains("InvalidContentType") {
        true => format!("the server does not speak TLS; perhaps http:// is meant ({why})"),
        false => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_transport::tls;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const BODY_MAX_BYTES: usize = 64 * 1024;

    fn client(url: &str) -> HttpClient {
        let tls = tls::client_config().unwrap();
        let timeout = Duration::from_secs(60);
        HttpClient::new(url.parse().unwrap(), &tls, timeout, BODY_MAX_BYTES).unwrap()
    }

    async fn get(client: &HttpClient) -> Result<Vec<u8>, RegistryError> {
        let response = client.send(client.request(Method::GET, "/v1/status")).await?;
        client.read(response).await
    }

    #[test]
    fn base_url_may_have_a_path() {
        for (base, url) in
            [("http://h:1", "http://h:1/cloud/x"), ("http://h:1/a/b/", "http://h:1/a/b/cloud/x")]
        {
            let request = client(base).request(Method::GET, "/cloud/x").build().unwrap();
            assert_eq!(request.url().as_str(), url);
        }
    }

    #[tokio::test]
    async fn plain_http_relay_is_named_in_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let serve = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut hello = Vec::new();
            assert_ne!(tcp.read_buf(&mut hello).await.unwrap(), 0);
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            // Returns when the client has closed its end.
            let _ = tcp.read_to_end(&mut hello).await;
        });
        let client = client(&url);
        let error = get(&client).await.unwrap_err().to_string();
        assert!(error.contains("perhaps http:// is meant"), "{error}");
        drop(client);
        serve.await.unwrap();
    }

    /// Gets a response whose body has this many bytes.
    async fn get_body_of(bytes: usize) -> Result<Vec<u8>, RegistryError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(tcp.read_buf(&mut request).await.unwrap(), 0, "half a request");
            }
            tcp.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.unwrap();
            // The client stops reading a body that is too long.
            let _ = tcp.write_all(&vec![b' '; bytes]).await;
        });
        let answer = get(&client(&url)).await;
        serve.await.unwrap();
        answer
    }

    #[tokio::test]
    async fn response_body_is_bounded() {
        assert_eq!(get_body_of(BODY_MAX_BYTES).await.unwrap().len(), BODY_MAX_BYTES);
        let long = get_body_of(BODY_MAX_BYTES + 1).await;
        assert_eq!(long, Err(RegistryError::Malformed("the body is too long".into())));
    }
}
