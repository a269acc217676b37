//! Issuers of JWTs: their file, and their keys over HTTPS.

use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rendez_proto::limits;
use rendez_registry::jwt::config::{IssuerConfig, KeySource};
use rendez_registry::traits::FetchKeys;
use rendez_transport::tls;
use rustls::ClientConfig;
use serde::Deserialize;

/// The file of issuers is invalid; the operator has to correct it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct IssuersError {
    path: PathBuf,
    why: String,
}

impl IssuersError {
    /// An error in this file.
    pub(crate) fn new(path: &Path, why: impl Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuers {
    issuer: Vec<IssuerConfig>,
}

/// Reads the issuers from a TOML file; returns none without a file.
///
/// # Errors
/// See [`IssuersError`].
pub(crate) fn read(path: Option<&Path>) -> Result<Vec<IssuerConfig>, IssuersError> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(path).map_err(|error| IssuersError::new(path, error))?;
    let file: Issuers = toml::from_str(&text).map_err(|error| IssuersError::new(path, error))?;
    Ok(file.issuer)
}

/// Warns about unreadable key files. They may be created later: they are read when a
/// token is checked.
pub(crate) fn warn_about_unreadable_keys(issuers: &[IssuerConfig]) {
    for (issuer, path, error) in unreadable(issuers) {
        let file = path.display();
        tracing::warn!(
            issuer, %file, %error,
            "cannot read the keys of this issuer: its tokens are refused until the file is readable"
        );
    }
}

fn unreadable(issuers: &[IssuerConfig]) -> Vec<(&str, &Path, std::io::Error)> {
    let mut failures = Vec::new();
    for IssuerConfig { issuer, keys, .. } in issuers {
        let KeySource::File(path) = keys else { continue };
        // One byte is read, because a directory can be opened as well.
        if let Err(error) = File::open(path).and_then(|mut file| file.read(&mut [0])) {
            failures.push((issuer.as_str(), path.as_path(), error));
        }
    }
    failures
}

/// Fetches keys over HTTPS with the trust store of the operating system. It follows
/// no redirects: the keys come from the configured URL only.
pub(crate) struct HttpsKeyFetcher(reqwest::Client);

impl HttpsKeyFetcher {
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
impl FetchKeys for HttpsKeyFetcher {
    async fn fetch(&self, url: &str) -> Result<Vec<u8>, String> {
        let failed = |error: reqwest::Error| error.to_string();
        let mut reply = self.0.get(url).send().await.map_err(failed)?;
        if !reply.status().is_success() {
            return Err(format!("HTTP {}", reply.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await.map_err(failed)? {
            body.extend_from_slice(&chunk);
            if body.len() > limits::JWKS_MAX_BYTES {
                return Err(format!("the reply has over {} bytes", limits::JWKS_MAX_BYTES));
            }
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples in docs/operating.md are valid.
    #[test]
    fn documented_examples_are_valid() {
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
    fn unreadable_key_files_are_reported() {
        let directory = tempfile::tempdir().unwrap();
        let good = directory.path().join("keys.json");
        std::fs::write(&good, "{}").unwrap();
        let issuer = |name: &str, keys: &Path| {
            format!(
                "[[issuer]]\nissuer = '{name}'\naudience = 'a'\nkeys = {{ file = {keys:?} }}\n\
                 [[issuer.rules]]\nclaims = {{ sub = 'a' }}\nrole = 'executor'\n\
                 environments = 'a'\n"
            )
        };
        let missing = directory.path().join("missing");
        let texts =
            [issuer("a", &good), issuer("b", &missing), issuer("c", directory.path())].concat();
        let file = directory.path().join("issuers.toml");
        std::fs::write(&file, texts).unwrap();
        let issuers = read(Some(&file)).unwrap();
        let failures = unreadable(&issuers);
        let of: Vec<_> = failures.iter().map(|(issuer, path, _)| (*issuer, *path)).collect();
        assert_eq!(of, [("b", missing.as_path()), ("c", directory.path())]);

        // The error does not list a role that a rule cannot have.
        std::fs::write(&file, issuer("a", &good).replace("executor", "join")).unwrap();
        let error = read(Some(&file)).unwrap_err().to_string();
        let roles = "unknown variant `join`, expected one of `executor`, `orchestrator`, `admin`";
        assert!(error.contains(roles) && error.contains("issuers.toml"), "{error}");
    }

    #[test]
    fn missing_setting_is_empty_and_invalid_file_fails() {
        assert!(read(None).unwrap().is_empty());
        assert!(read(Some(Path::new("/no/such/file"))).is_err());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[[issuer]]\nissuer = 'a'\nsecret = 1").unwrap();
        assert!(read(Some(file.path())).is_err());
    }
}
