//! The agent's static key on disk.
//!
//! One file, `identity`, with [`IdentitySeed::BYTES`] random bytes that only its
//! owner can read. It is created once and never changed: orchestrators that resume
//! a session expect the same key (docs/codex-wire.md#rendezvous-websocket).

use std::path::{Path, PathBuf};

use rendez_endpoint::IdentitySeed;
use zeroize::Zeroizing;

use crate::secret_file::{SecretFile, SecretFileError};

const FILE: SecretFile =
    SecretFile { name: "identity", remedy: "remove the file to get a new key" };

/// Why the identity cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or created.
    #[error(transparent)]
    File(#[from] SecretFileError),
    /// The file has a wrong length.
    #[error("{} is not a valid identity file: it has {len} bytes instead of {expected}", path.display(), expected = IdentitySeed::BYTES)]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The number of bytes that were read.
        len: usize,
    },
}

/// Reads the identity in `state`, or creates it. Concurrent processes get the same
/// one.
///
/// # Errors
/// [`IdentityError`]. An existing file is never overwritten.
pub(crate) fn load_or_create(state: &Path) -> Result<IdentitySeed, IdentityError> {
    let bytes = FILE.read_or_create(state, || {
        let mut seed = Zeroizing::new(vec![0; IdentitySeed::BYTES]);
        getrandom::fill(&mut seed)?;
        Ok(seed)
    })?;
    let seed: &[u8; IdentitySeed::BYTES] = bytes
        .as_slice()
        .try_into()
        .map_err(|_| IdentityError::Malformed { path: FILE.path(state), len: bytes.len() })?;
    Ok(IdentitySeed::from_bytes(*seed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn identity_is_created_once() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_create(&folder.path().join("a")).unwrap();
        let again = load_or_create(&folder.path().join("a")).unwrap();
        assert_eq!(first.expose(), again.expose());
        assert_ne!(first.expose(), &[0; IdentitySeed::BYTES]);
        let other = load_or_create(&folder.path().join("other")).unwrap();
        assert_ne!(first.expose(), other.expose());
    }

    #[test]
    fn malformed_identity_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = FILE.path(folder.path());
        for bad in [9, IdentitySeed::BYTES - 1, IdentitySeed::BYTES + 1] {
            fs::write(&path, vec![7; bad]).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let error = load_or_create(folder.path()).unwrap_err();
            let IdentityError::Malformed { len, .. } = error else { panic!("{error}") };
            assert_eq!(len, bad);
            assert_eq!(fs::read(&path).unwrap(), vec![7; bad]);
        }
    }
}
