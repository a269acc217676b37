//! The HTTP client that the relay has already, for the ACME library.
//!
//! Redirects are not followed and answers are bounded. An error that is no
//! problem document (RFC 7807) is told by its status: that a proxy's page is no
//! JSON says nothing to anybody.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::header::{CONTENT_TYPE, RETRY_AFTER};
use ::http::{HeaderMap, Method, Request, Response};
use bytes::{Bytes, BytesMut};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rendez_transport::tls;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

use crate::tls::error::TlsError;
use crate::tls::files;

/// Largest answer of an ACME server in bytes: a chain of certificates has under
/// 16 KiB.
const ANSWER_MAX_BYTES: usize = 256 * 1024;
/// How long an ACME server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What errors are told in (RFC 8555, section 6.7).
const PROBLEM: &str = "application/problem+json";

/// Asks an ACME server over HTTPS.
#[derive(Clone)]
pub(super) struct Http {
    client: reqwest::Client,
    /// `Retry-After` of the last refusal.
    told: Arc<Mutex<Option<Duration>>>,
}

impl Http {
    /// Trusts the authorities in `root`, or whom the system trusts.
    ///
    /// # Errors
    /// The file cannot be used, or TLS cannot be set up on this machine.
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
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { client, told: Arc::default() })
    }

    /// How long the server last asked to be left alone for, once.
    pub(super) fn told(&self) -> Option<Duration> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn ask(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let (head, body) = request.into_parts();
        let asked = self.client.request(head.method.clone(), head.uri.to_string());
        let mut asked = asked.headers(head.headers);
        if head.method == Method::POST {
            asked = asked.body(reqwest::Body::wrap(body));
        }
        let mut answer = asked.send().await.map_err(other)?;
        let (mut parts, ()) = Response::new(()).into_parts();
        (parts.status, parts.headers) = (answer.status(), answer.headers().clone());
        let mut body = BytesMut::new();
        while let Some(chunk) = answer.chunk().await.map_err(other)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_MAX_BYTES {
                let most = ANSWER_MAX_BYTES;
                return Err(Error::Other(format!("an answer has over {most} bytes").into()));
            }
        }
        if parts.status.is_client_error() || parts.status.is_server_error() {
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = retry_after(&parts.headers);
            if !is_problem(&parts.headers) {
                let path = head.uri.path();
                return Err(Error::Other(format!("HTTP {} for {path}", parts.status).into()));
            }
        }
        Ok(BytesResponse { parts, body: Box::new(body.freeze()) })
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().ask(request))
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

/// With what it comes from: reqwest's own words are the URL only.
fn other(error: reqwest::Error) -> Error {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    Error::Other(words.into())
}

fn is_problem(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with(PROBLEM))
}

/// In seconds, as ACME servers write it; a date is left to our own pauses.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_wish_is_read_in_seconds() {
        let wish = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(wish(" 120 "), Some(Duration::from_secs(120)));
        for text in ["", "-1", "soon", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(wish(text), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn an_authority_that_is_none_is_named() {
        for path in ["/no/such/root.pem", "/dev/null"] {
            let error = Http::new(Some(Path::new(path))).err().unwrap().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
