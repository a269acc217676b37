//! The agent's static key on disk.
//!
//! One file, `identity`, of [`IdentitySeed::BYTES`] random bytes that only its
//! owner can read. It is made once and never changed: orchestrators that
//! recover a session expect the same key (WIRE.md, section 2).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rendez_endpoint::IdentitySeed;
use zeroize::Zeroizing;

/// The file's name in the state directory.
const FILE: &str = "identity";

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Others than the owner can read the file.
    #[error(
        "{} can be read by others (mode {mode:o}), so its key may be known to them; remove the \
         file to get a new key, or, if you are sure that nobody read it, run chmod 600 on it",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file is not an identity.
    #[error("{} is not an identity: it has {len} bytes, not {expected}", path.display(), expected = IdentitySeed::BYTES)]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// The operating system refused.
    #[error("cannot use {}: {why}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        why: io::Error,
    },
    /// The operating system has no random numbers.
    #[error("no random numbers for a new identity: {0}")]
    Random(getrandom::Error),
}

/// Reads the identity in `state`, or makes one. Several processes may do so at
/// once: all get the same one.
///
/// # Errors
/// [`IdentityError`]; an existing file is never overwritten.
pub fn load_or_create(state: &Path) -> Result<IdentitySeed, IdentityError> {
    let path = state.join(FILE);
    match load(&path) {
        Err(IdentityError::Io { why, .. }) if why.kind() == io::ErrorKind::NotFound => {
            create(state, &path)?;
            load(&path)
        }
        other => other,
    }
}

fn load(path: &Path) -> Result<IdentitySeed, IdentityError> {
    let failed = |why| IdentityError::Io { path: path.to_owned(), why };
    let mut file = File::open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    if found.len() != IdentitySeed::BYTES as u64 {
        return Err(IdentityError::Malformed { path: path.to_owned(), len: found.len() });
    }
    let mut seed = Zeroizing::new([0; IdentitySeed::BYTES]);
    file.read_exact(seed.as_mut()).map_err(failed)?;
    Ok(IdentitySeed::from_bytes(*seed))
}

/// Writes a new seed beside `path` and gives it the name in one step, so that
/// nobody ever sees a part of it, and the first one wins.
fn create(state: &Path, path: &Path) -> Result<(), IdentityError> {
    let failed = |path: &Path, why| IdentityError::Io { path: path.to_owned(), why };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state)
        .map_err(|why| failed(state, why))?;
    let mut seed = Zeroizing::new([0; IdentitySeed::BYTES]);
    getrandom::fill(seed.as_mut()).map_err(IdentityError::Random)?;
    let draft = state.join(format!("{FILE}.{}", std::process::id()));
    let written = write_new(&draft, seed.as_ref()).and_then(|()| fs::hard_link(&draft, path));
    // a draft that was never made need not be removed
    let _ = fs::remove_file(&draft);
    match written {
        Err(why) if why.kind() == io::ErrorKind::AlreadyExists && path.exists() => Ok(()),
        other => other.map_err(|why| failed(path, why)),
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // left behind by a process of the same id that died in the middle
    let _ = fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn it_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let first = load_or_create(&state).unwrap();
        let again = load_or_create(&state).unwrap();
        assert_eq!(first.expose(), again.expose());
        assert_ne!(first.expose(), &[0; IdentitySeed::BYTES]);
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!((mode(&state.join(FILE)), mode(&state)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "no draft is left");
        let other = load_or_create(&folder.path().join("other")).unwrap();
        assert_ne!(first.expose(), other.expose());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        load_or_create(folder.path()).unwrap();
        for mode in [0o640, 0o604, 0o620] {
            set_mode(&folder.path().join(FILE), mode);
            let error = load_or_create(folder.path()).unwrap_err();
            assert!(error.to_string().contains(&format!("{mode:o}")), "{error}");
        }
        set_mode(&folder.path().join(FILE), 0o600);
        load_or_create(folder.path()).unwrap();
    }

    #[test]
    fn a_file_that_is_not_an_identity_is_kept_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, "something").unwrap();
        set_mode(&path, 0o600);
        let error = load_or_create(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Malformed { len: 9, .. }));
        assert_eq!(fs::read(&path).unwrap(), b"something");
    }

    #[test]
    fn who_comes_first_wins() {
        let folder = tempfile::tempdir().unwrap();
        let seeds: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> =
                (0..2).map(|_| scope.spawn(|| load_or_create(folder.path()))).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        // both share a process id here, so one may find its draft gone
        let good: Vec<_> = seeds.iter().flatten().map(IdentitySeed::expose).collect();
        assert!(!good.is_empty() && good.iter().all(|seed| *seed == good[0]));
        let path = folder.path().join(FILE);
        create(folder.path(), &path).unwrap();
        assert_eq!(load(&path).unwrap().expose(), good[0], "an existing one stays");
    }
}
