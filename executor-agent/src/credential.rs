//! The agent's own key at a registry that it has joined.
//!
//! One file, `credential`, beside the identity, that only its owner can read:
//!
//! ```text
//! ed25519 <seed as base64>
//! relay <URL>
//! environment <id>
//! ```
//!
//! The agent creates the key before it enrols it, so that it can repeat a join
//! whose answer was lost with the same key. The key is valid for one relay and one
//! environment, because another relay could forward its signatures to the first.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::SigningKey;
use rendez_proto::ids::EnvironmentId;
use rendez_transport::relay_url::RelayUrl;
use zeroize::Zeroizing;

use crate::secret_file::{SecretFile, SecretFileError};

const FILE: SecretFile = SecretFile {
    name: "credential",
    remedy: "revoke this executor, remove the file and join again",
};

/// A key with its relay and environment.
pub(crate) struct Credential {
    key: SigningKey,
    environment: EnvironmentId,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, redacted)", self.environment)
    }
}

/// The error of loading or creating a credential.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The file is not a credential.
    #[error("{} is not a credential; remove it and join again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// It is for another relay or environment.
    #[error(
        "{} is the credential for {found}, not for {wanted}; use another --state, or, if that \
         relay has moved, change the file's line",
        path.display()
    )]
    Other {
        /// The file.
        path: PathBuf,
        /// The environment and relay of the file.
        found: String,
        /// The environment and relay of the settings.
        wanted: String,
    },
}

/// Returns the path of the credential in `state`.
pub(crate) fn path(state: &Path) -> PathBuf {
    FILE.path(state)
}

impl Credential {
    /// Reads the credential in `state`, or creates one. Several processes may do
    /// so at once: all get the same one.
    ///
    /// # Errors
    /// [`CredentialError`]; an existing file is never overwritten.
    pub(crate) fn load_or_create(
        state: &Path,
        relay: &RelayUrl,
        environment: &EnvironmentId,
    ) -> Result<Self, CredentialError> {
        let bytes = FILE.read_or_create(state, || {
            let mut seed = Zeroizing::new([0; 32]);
            getrandom::fill(seed.as_mut())?;
            let seed = Zeroizing::new(STANDARD.encode(seed.as_ref()));
            let seed = seed.as_str();
            let text = format!("ed25519 {seed}\nrelay {relay}\nenvironment {environment}\n");
            Ok(text.into_bytes().into())
        })?;
        parse(&bytes, &path(state), relay, environment)
    }

    /// Returns the key.
    pub(crate) fn into_key(self) -> SigningKey {
        self.key
    }
}

fn parse(
    bytes: &[u8],
    path: &Path,
    relay: &RelayUrl,
    environment: &EnvironmentId,
) -> Result<Credential, CredentialError> {
    let malformed = || CredentialError::Malformed { path: path.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|_| malformed())?;
    let mut lines = text.lines();
    let mut value = |name: &str| {
        let (found, value) = lines.next()?.split_once(' ')?;
        (found == name).then_some(value)
    };
    let seed = value("ed25519").ok_or_else(malformed)?;
    let for_relay = value("relay").ok_or_else(malformed)?;
    let for_environment = value("environment").ok_or_else(malformed)?;
    let same_relay = for_relay.parse::<RelayUrl>().is_ok_and(|url| url == *relay);
    if !same_relay || for_environment != environment.as_str() {
        return Err(CredentialError::Other {
            path: path.to_owned(),
            found: format!("{for_environment} at {for_relay}"),
            wanted: format!("{environment} at {relay}"),
        });
    }
    let seed = Zeroizing::new(STANDARD.decode(seed).map_err(|_| malformed())?);
    let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| malformed())?;
    Ok(Credential { key: SigningKey::from_bytes(seed), environment: environment.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn open(state: &Path, relay: &str, environment: &str) -> Result<Credential, CredentialError> {
        let (relay, environment) = (relay.parse().unwrap(), environment.parse().unwrap());
        Credential::load_or_create(state, &relay, &environment)
    }

    #[test]
    fn key_is_created_once() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let key = |credential: &Credential| credential.key.verifying_key();
        let first = open(&state, "https://r.example", "dev").unwrap();
        let again = open(&state, "https://r.example/", "dev").unwrap();
        assert_eq!(key(&first), key(&again));
        let other = open(folder.path(), "https://r.example", "dev").unwrap();
        assert_ne!(key(&first), key(&other));
        let seed = STANDARD.encode(first.key.to_bytes());
        assert!(fs::read_to_string(path(&state)).unwrap().contains(&seed));
        assert!(!format!("{first:?}").contains(&seed));
    }

    #[test]
    fn credential_is_bound_to_relay_and_environment() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path(), "https://r.example", "dev").unwrap();
        for (relay, environment) in [("https://evil.example", "dev"), ("https://r.example", "prod")]
        {
            let error = open(folder.path(), relay, environment).unwrap_err();
            assert!(matches!(error, CredentialError::Other { .. }), "{error}");
            assert!(error.to_string().contains("dev at https://r.example"), "{error}");
        }
    }

    #[test]
    fn unsafe_or_invalid_file_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let again = || open(folder.path(), "https://r.example", "dev");
        again().unwrap();
        let path = path(folder.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(again().unwrap_err().to_string().contains("revoke this executor"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        for bad in ["", "planted", "ed25519 AAAA", &good.replacen("ed25519 ", "ed25519 A", 1)] {
            fs::write(&path, bad).unwrap();
            let error = again().unwrap_err();
            assert!(matches!(error, CredentialError::Malformed { .. }), "{bad:?}: {error}");
            assert!(!error.to_string().contains("planted"));
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
    }
}
