//! The registry's signing key: a file in the state directory, mode 0600, created
//! on first start. It is never in the database.
//!
//! The file is one line, `ed25519 <seed as base64>`. Losing it invalidates all
//! tickets; executors then register again by themselves.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{SigningKey, VerifyingKey};
use rendez_proto::ticket::{Claims, SubjectTooLong, Ticket, TicketText};
use zeroize::Zeroizing;

use crate::traits::{NoRandomness, Random};

/// The name of the key's file in the state directory.
pub const SIGNING_KEY_FILE: &str = "signing.key";

const ALGORITHM: &str = "ed25519";

/// Signs tickets.
#[derive(Clone)]
pub struct Signer(SigningKey);

/// The signing key cannot be used. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The file cannot be read or created.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file is missing.
    #[error(
        "{}: the signing key is missing; restore it, or start the relay, which creates a new one",
        .0.display()
    )]
    Missing(PathBuf),
    /// Other users can read the file.
    #[error("{}: other users can read the signing key (mode {mode:o}); run chmod 600 on it, or remove it to have a new one created", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file has other content.
    #[error("{}: not a signing key; remove it to have a new one created", path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
    /// No key can be generated.
    #[error(transparent)]
    Random(#[from] NoRandomness),
}

impl Signer {
    /// Creates a signer from this seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads the key in `state_dir`, which must exist, or creates one there. If
    /// several processes start at once, one creates it and all use it.
    ///
    /// # Errors
    /// See [`SignerError`].
    pub fn open(state_dir: &Path, random: &dyn Random) -> Result<Self, SignerError> {
        let path = state_dir.join(SIGNING_KEY_FILE);
        match read(&path) {
            Err(SignerError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                create(state_dir, &path, random)?;
                read(&path)
            }
            result => result,
        }
    }

    /// Reads the key in `state_dir`, where it must exist.
    ///
    /// # Errors
    /// See [`SignerError`].
    pub fn open_existing(state_dir: &Path) -> Result<Self, SignerError> {
        match read(&state_dir.join(SIGNING_KEY_FILE)) {
            Err(SignerError::Io { path, source }) if source.kind() == io::ErrorKind::NotFound => {
                Err(SignerError::Missing(path))
            }
            result => result,
        }
    }

    /// Returns the key that verifies the tickets.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.0.verifying_key()
    }

    /// Signs a ticket.
    pub(crate) fn issue(&self, claims: &Claims) -> Result<TicketText, SubjectTooLong> {
        Ticket::issue(claims, &self.0)
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(redacted)")
    }
}

fn read(path: &Path) -> Result<Signer, SignerError> {
    let io = |source| SignerError::Io { path: path.to_owned(), source };
    let content = || SignerError::Content { path: path.to_owned() };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SignerError::Mode { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.take(256).read_to_string(&mut text).map_err(io)?;
    let (algorithm, seed) = text.trim_end().split_once(' ').ok_or_else(content)?;
    let seed = Zeroizing::new(STANDARD.decode(seed).map_err(|_| content())?);
    let seed: &[u8; 32] = seed.as_slice().try_into().map_err(|_| content())?;
    if algorithm == ALGORITHM { Ok(Signer::from_seed(seed)) } else { Err(content()) }
}

/// Writes a new key to a temporary file and links it into place, so that a key is
/// never read incomplete or replaced.
fn create(state_dir: &Path, path: &Path, random: &dyn Random) -> Result<(), SignerError> {
    let mut seed = Zeroizing::new([0; 32]);
    random.fill(seed.as_mut())?;
    let text = Zeroizing::new(format!("{ALGORITHM} {}\n", STANDARD.encode(seed.as_ref())));

    let draft = state_dir.join(format!("{SIGNING_KEY_FILE}.{}", std::process::id()));
    let io = |source| SignerError::Io { path: draft.clone(), source };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)?;
    let linked = match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    };
    fs::remove_file(&draft).map_err(io)?;
    linked
        .and_then(|()| File::open(state_dir)?.sync_all())
        .map_err(|source| SignerError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::traits::SystemRandom;

    fn open(dir: &Path) -> Result<Signer, SignerError> {
        Signer::open(dir, &SystemRandom)
    }

    #[test]
    fn signing_key_is_created_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let second = open(dir.path()).unwrap();
        assert_eq!(first.verifying_key(), second.verifying_key());
        let mode = fs::metadata(dir.path().join(SIGNING_KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the draft is gone");

        let other = tempfile::tempdir().unwrap();
        assert_ne!(open(other.path()).unwrap().verifying_key(), first.verifying_key());
    }

    /// If two processes find no key, the second must not replace it.
    #[test]
    fn signing_key_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let key = open(dir.path()).unwrap().verifying_key();
        create(dir.path(), &dir.path().join(SIGNING_KEY_FILE), &SystemRandom).unwrap();
        assert_eq!(open(dir.path()).unwrap().verifying_key(), key);
    }

    #[test]
    fn readable_signing_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let path = dir.path().join(SIGNING_KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, SignerError::Mode { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn invalid_signing_key_is_refused_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).unwrap();
        let path = dir.path().join(SIGNING_KEY_FILE);
        for content in ["", "ed25519", "ed25519 planted", "ed25519 AAAA", "rsa planted"] {
            fs::write(&path, content).unwrap();
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(error, SignerError::Content { .. }), "{content:?}: {error}");
            assert!(!error.to_string().contains("planted"));
        }
    }
}
