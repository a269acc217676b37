//! Other issuers of tokens: their file, and their keys over HTTPS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rendez_proto::limits;
use rendez_registry::jwt::config::IssuerConfig;
use rendez_registry::seam::FetchKeys;
use rendez_transport::tls;
use rustls::ClientConfig;
use serde::Deserialize;

/// The file of issuers cannot be used. The operator is at fault.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct IssuersError {
    path: PathBuf,
    why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuers {
    issuer: Vec<IssuerConfig>,
}

/// The issuers in this file of TOML; none without a file.
///
/// # Errors
/// See [`IssuersError`].
pub(crate) fn read(path: Option<&Path>) -> Result<Vec<IssuerConfig>, IssuersError> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let failed = |why: String| IssuersError { path: path.to_owned(), why };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let file: Issuers = toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
    Ok(file.issuer)
}

/// Asks over HTTPS, trusting whom the operating system trusts. Redirects are
/// not followed: the keys come from where the operator said.
pub(crate) struct OverHttps(reqwest::Client);

impl OverHttps {
    /// A client that is made once.
    ///
    /// # Errors
    /// TLS cannot be set up on this machine.
    pub(crate) fn new() -> Result<Arc<Self>, String> {
        let config = tls::client_config().map_err(|error| error.to_string())?;
        reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(&config))
            .https_only(true)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(limits::JWKS_FETCH_TIMEOUT)
            .build()
            .map(|client| Arc::new(Self(client)))
            .map_err(|error| error.to_string())
    }
}

#[async_trait]
impl FetchKeys for OverHttps {
    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        let said = |error: reqwest::Error| error.to_string();
        let mut answer = self.0.get(url).send().await.map_err(said)?;
        if !answer.status().is_success() {
            return Err(format!("HTTP {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(said)? {
            body.extend_from_slice(&chunk);
            if body.len() > limits::JWKS_MAX_BYTES {
                return Err(format!("over {} bytes", limits::JWKS_MAX_BYTES));
            }
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What docs/operating.md shows is what is read.
    #[test]
    fn the_documented_examples_are_read() {
        let manual = include_str!("../../../docs/operating.md");
        let examples: String = manual
            .split("```toml\n")
            .skip(1)
            .filter_map(|rest| rest.split("```").next())
            .filter(|example| example.contains("[[issuer]]"))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), examples).unwrap();
        let issuers = read(Some(file.path())).unwrap();
        let names: Vec<_> = issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
        assert!(names.contains(&"https://token.actions.githubusercontent.com"), "{names:?}");
        assert!(names.len() >= 3, "{names:?}");
    }

    #[test]
    fn no_file_means_none_and_a_wrong_one_is_an_error() {
        assert!(read(None).unwrap().is_empty());
        assert!(read(Some(Path::new("/no/such/file"))).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[[issuer]]\nissuer = 'a'\nsecret = 1").unwrap();
        assert!(read(Some(file.path())).is_err());
    }
}
