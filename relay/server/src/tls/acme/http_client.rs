//! The relay's HTTP client, for the ACME library.
//!
//! It follows no redirects and bounds replies. An error without a problem document
//! (RFC 7807), such as a proxy's page, is reported by its HTTP status.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use rendez_transport::tls;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

use crate::tls::error::TlsError;
use crate::tls::files;

/// Largest reply of an ACME server in bytes: a chain of certificates has under
/// 16 KiB.
const REPLY_MAX_BYTES: usize = 256 * 1024;
/// How long an ACME server may take for one reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);

/// The content type of errors (RFC 8555, section 6.7).
const PROBLEM: &str = "application/problem+json";

/// HTTPS to an ACME server.
#[derive(Clone)]
pub(super) struct AcmeHttpClient {
    client: reqwest::Client,
    /// `Retry-After` of the last refusal.
    retry_after: Arc<Mutex<Option<Duration>>>,
}

impl AcmeHttpClient {
    /// A client that trusts the authorities in `root`, or those of the system.
    ///
    /// # Errors
    /// [`TlsError`]: the file is unusable, or TLS cannot be set up.
    pub(super) fn new(root: Option<&Path>) -> Result<Self, TlsError> {
        let failed = |why: String| TlsError::Setup { what: "HTTPS to acme.directory", why };
        let config = match root {
            None => {
                let config = tls::client_config().map_err(|error| failed(error.to_string()))?;
                ClientConfig::clone(&config)
            }
            Some(path) => trusting(path)?,
        };
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REPLY_TIMEOUT)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, retry_after: Arc::default() })
    }

    /// Takes the `Retry-After` of the last refusal.
    pub(super) fn take_retry_after(&self) -> Option<Duration> {
        self.retry_after.lock().take()
    }

    async fn send(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let (head, body) = request.into_parts();
        let outgoing = self.client.request(head.method.clone(), head.uri.to_string());
        let mut outgoing = outgoing.headers(head.headers);
        if head.method == Method::POST {
            outgoing = outgoing.body(reqwest::Body::wrap(body));
        }
        let mut reply = outgoing.send().await.map_err(other)?;
        let (mut parts, ()) = Response::new(()).into_parts();
        (parts.status, parts.headers) = (reply.status(), reply.headers().clone());
        let mut body = BytesMut::new();
        while let Some(chunk) = reply.chunk().await.map_err(other)? {
            body.extend_from_slice(&chunk);
            if body.len() > REPLY_MAX_BYTES {
                let max = REPLY_MAX_BYTES;
                return Err(Error::Other(format!("a reply has over {max} bytes").into()));
            }
        }
        if parts.status.is_client_error() || parts.status.is_server_error() {
            *self.retry_after.lock() = retry_after(&parts.headers);
            if !is_problem(&parts.headers) {
                let path = head.uri.path();
                return Err(Error::Other(format!("HTTP {} for {path}", parts.status).into()));
            }
        }
        Ok(BytesResponse { parts, body: Box::new(body.freeze()) })
    }
}

impl HttpClient for AcmeHttpClient {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().send(request))
    }
}

fn trusting(path: &Path) -> Result<ClientConfig, TlsError> {
    let wrong =
        |error: rustls::Error| TlsError::Content { path: path.to_owned(), why: error.to_string() };
    let mut roots = RootCertStore::empty();
    for authority in files::certificates(path)? {
        roots.add(authority).map_err(wrong)?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// With the causes of the error: reqwest's own text is only the URL.
fn other(error: reqwest::Error) -> Error {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Error::Other(text.into())
}

fn is_problem(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with(PROBLEM))
}

/// `Retry-After` in seconds, as ACME servers write it; a date is ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_parsed_in_seconds() {
        let parse = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(parse(" 120 "), Some(Duration::from_secs(120)));
        for text in ["", "-1", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn error_names_the_unusable_root_file() {
        for path in ["/no/such/root.pem", "/dev/null"] {
            let error = AcmeHttpClient::new(Some(Path::new(path))).err().unwrap().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
