//! Small secret files that only their owner can read.
//!
//! - A file that others could have read is refused.
//! - The first writer creates the file. It is never overwritten.
//! - Concurrent writers, in one process or in containers that share a volume, use
//!   drafts with different names. The file makes its drafts useless, so every
//!   writer removes all of them.
//! - The file is complete or absent. Once it exists, it survives a power failure:
//!   an enrolment must not outlive its key.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::sys::files;

/// The most bytes that are read; no secret is as long.
pub(crate) const MAX_BYTES: u64 = 4096;

/// Hexadecimal digits that follow the name of the file in the name of a draft.
const DRAFT_DIGITS: usize = 16;

/// Why a secret file cannot be read or created.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// Users other than the owner can read the file.
    #[error(
        "other users can read {} (mode {mode:o}), so they may know its key; {remedy}, or run \
         chmod 600 on it if no other user has read it",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// The next step for the user.
        remedy: &'static str,
    },
    /// The operating system reported an error.
    #[error("cannot read or create {}: {why}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The reason.
        why: io::Error,
    },
    /// The operating system has no random numbers.
    #[error("cannot create a key: no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// A secret file by its name in a directory.
pub(crate) struct SecretFile {
    /// Its name.
    pub(crate) name: &'static str,
    /// The next step if others could read it, as part of a sentence.
    pub(crate) remedy: &'static str,
}

impl SecretFile {
    /// Its path in `directory`.
    pub(crate) fn path(&self, directory: &Path) -> PathBuf {
        directory.join(self.name)
    }

    /// Reads the file in `directory`, or creates it with the bytes that `make`
    /// returns. Concurrent processes get the same file.
    ///
    /// # Errors
    /// [`SecretFileError`]
    pub(crate) fn read_or_create(
        &self,
        directory: &Path,
        make: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, getrandom::Error>,
    ) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
        match self.read(directory) {
            Err(SecretFileError::Io { why, .. }) if why.kind() == io::ErrorKind::NotFound => {
                create_once(directory, self.name, &make()?, sync_directory)?;
                self.read(directory)
            }
            other => other,
        }
    }

    fn read(&self, directory: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
        let path = self.path(directory);
        let failed = |why| SecretFileError::Io { path: path.clone(), why };
        let file = File::open(&path).map_err(failed)?;
        let mode = files::mode(&file.metadata().map_err(failed)?);
        if mode & 0o077 != 0 {
            return Err(SecretFileError::Exposed { path, mode, remedy: self.remedy });
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize));
        file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }
}

/// Writes `bytes` to a draft and links it to the name of the file in one step, so
/// that no reader sees a part of them and the first writer wins. `sync` makes the
/// names in a directory durable.
fn create_once(
    directory: &Path,
    name: &str,
    bytes: &[u8],
    mut sync: impl FnMut(&Path) -> io::Result<()>,
) -> Result<(), SecretFileError> {
    let failed = |path: &Path, why| SecretFileError::Io { path: path.to_owned(), why };
    let new: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
    files::create_private_directory(directory).map_err(|why| failed(directory, why))?;
    let path = directory.join(name);
    let mut random = [0; DRAFT_DIGITS / 2];
    getrandom::fill(&mut random)?;
    let draft = directory.join(format!("{name}.{:0DRAFT_DIGITS$x}", u64::from_be_bytes(random)));
    let written = write_new(&draft, bytes).and_then(|()| fs::hard_link(&draft, &path));
    // the draft may not exist
    let _ = fs::remove_file(&draft);
    match written {
        // another writer was faster, and may have removed our draft
        Err(_) if path.exists() => {}
        other => other.map_err(|why| failed(&path, why))?,
    }
    remove_drafts(directory, name);
    let parents = new.into_iter().filter_map(Path::parent);
    for directory in [directory].into_iter().chain(parents) {
        sync(directory).map_err(|why| failed(directory, why))?;
    }
    Ok(())
}

/// Removes the drafts of writers that crashed. A draft that cannot be removed is
/// as private as the file, and is never read.
fn remove_drafts(directory: &Path, name: &str) {
    let is_draft = |file: &std::ffi::OsStr| {
        let digits = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.'));
        digits.is_some_and(|digits| {
            digits.len() == DRAFT_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if is_draft(&entry.file_name()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = files::create_private_file(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_directory(path: &Path) -> io::Result<()> {
    // the parent of a relative path with one component is empty
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const FILE: SecretFile = SecretFile { name: "secret", remedy: "do something" };

    fn again(directory: &Path, text: &str) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
        FILE.read_or_create(directory, || Ok(text.as_bytes().to_vec().into()))
    }

    #[test]
    fn file_is_created_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        assert_eq!(*again(&state, "first").unwrap(), b"first");
        assert_eq!(*again(&state, "second").unwrap(), b"first");
        create_once(&state, FILE.name, b"third", sync_directory).unwrap();
        assert_eq!(*again(&state, "fourth").unwrap(), b"first", "an existing file is kept");
        let mode = |path: &Path| files::mode(&path.metadata().unwrap());
        assert_eq!((mode(&FILE.path(&state)), mode(&state)), (0o600, 0o700));
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn file_readable_by_others_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        again(folder.path(), "x").unwrap();
        let set = |mode| {
            let permissions = fs::Permissions::from_mode(mode);
            fs::set_permissions(FILE.path(folder.path()), permissions).unwrap();
        };
        for mode in [0o640, 0o604, 0o620] {
            set(mode);
            let error = again(folder.path(), "y").unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:o}")), "{error}");
            assert!(error.contains("do something, or"), "{error}");
        }
        set(0o600);
        assert_eq!(*again(folder.path(), "y").unwrap(), b"x");
    }

    /// As in containers that share a volume, where all have the same process id.
    #[test]
    fn concurrent_creators_get_the_same_file() {
        for _ in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path();
            let made: Vec<_> = std::thread::scope(|scope| {
                let makers = ["one", "two", "three", "four"]
                    .map(|text| scope.spawn(move || again(folder, text)));
                makers.into_iter().map(|maker| maker.join().unwrap().unwrap()).collect()
            });
            assert!(made.iter().all(|text| *text == made[0]), "{made:?}");
            assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "no draft is left");
        }
    }

    #[test]
    fn only_stale_drafts_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let there = |name: &str| folder.path().join(name);
        let drafts = ["secret.0123456789abcdef", "secret.ffffffffffffffff"];
        let others = ["secret.old", "secret.0123456789abcde", "secrets.0123456789abcdef"];
        for name in drafts.iter().chain(&others) {
            fs::write(there(name), "x").unwrap();
        }
        assert_eq!(*again(folder.path(), "new").unwrap(), b"new");
        assert!(drafts.iter().all(|name| !there(name).exists()));
        assert!(others.iter().all(|name| there(name).exists()));
    }

    /// The name of a file is durable once its directory is synced, and the name of a
    /// directory once its parent is.
    #[test]
    fn directories_are_synced_after_linking() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("a/b");
        let mut synced = Vec::new();
        let mut create = || {
            synced.clear();
            let sync = |directory: &Path| {
                assert!(FILE.path(&state).exists(), "too early");
                synced.push(directory.to_owned());
                sync_directory(directory)
            };
            create_once(&state, FILE.name, b"x", sync).unwrap();
            synced.clone()
        };
        assert_eq!(create(), [state.clone(), folder.path().join("a"), folder.path().to_owned()]);
        // the process that created it may not have synced it yet
        assert_eq!(create(), std::slice::from_ref(&state));
        let refuse = |_: &Path| Err(io::ErrorKind::StorageFull.into());
        let refused = create_once(&state, FILE.name, b"x", refuse);
        assert!(matches!(refused, Err(SecretFileError::Io { .. })), "{refused:?}");
        sync_directory(Path::new("")).unwrap();
    }
}
