//! Other issuers of tokens: their file, and their keys over HTTPS.

use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use rendez_proto::limits;
use rendez_registry::jwt::config::{IssuerConfig, KeySource};
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

impl IssuersError {
    /// What stands in this file cannot be.
    pub(crate) fn new(path: &Path, why: impl Display) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
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
    let text = std::fs::read_to_string(path).map_err(|error| IssuersError::new(path, error))?;
    let file: Issuers = toml::from_str(&text).map_err(|error| IssuersError::new(path, error))?;
    Ok(file.issuer)
}

/// Warns of files of keys that cannot be read. They may come later: they are
/// read when a token is to be judged.
pub(crate) fn warn_of_keys(issuers: &[IssuerConfig]) {
    for (issuer, path, error) in unreadable(issuers) {
        let file = path.display();
        tracing::warn!(
            issuer, %file, %error,
            "this issuer's keys cannot be read; until they can, its tokens are refused"
        );
    }
}

fn unreadable(issuers: &[IssuerConfig]) -> Vec<(&str, &Path, std::io::Error)> {
    let mut complaints = Vec::new();
    for IssuerConfig { issuer, keys, .. } in issuers {
        let KeySource::File(path) = keys else { continue };
        // a byte: that it opens says little of a directory
        if let Err(error) = File::open(path).and_then(|mut file| file.read(&mut [0])) {
            complaints.push((issuer.as_str(), path.as_path(), error));
        }
    }
    complaints
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
    fn keys_that_cannot_be_read_are_complained_of() {
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
        let complaints = unreadable(&issuers);
        let of: Vec<_> = complaints.iter().map(|(issuer, path, _)| (*issuer, *path)).collect();
        assert_eq!(of, [("b", missing.as_path()), ("c", directory.path())]);

        // a role that a rule cannot have is not offered
        std::fs::write(&file, issuer("a", &good).replace("executor", "join")).unwrap();
        let said = read(Some(&file)).unwrap_err().to_string();
        let roles = "unknown variant `join`, expected one of `executor`, `orchestrator`, `admin`";
        assert!(said.contains(roles) && said.contains("issuers.toml"), "{said}");
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
