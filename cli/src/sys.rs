//! Code that only Unix has: files and directories of one user, and pipes.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The directory for files that live as long as the user's session.
pub(crate) fn runtime_directory() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) => Path::new(&runtime).join("rendez"),
        None => std::env::temp_dir().join(format!("rendez-{}", uid())),
    }
}

/// Makes a directory that only this user can use, unless it exists.
///
/// # Errors
/// The directory cannot be made, or others can use it.
pub(crate) fn make_private_directory(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ if !is_private_directory(path) => {
            let message = format!("{} is not private: other users can use it", path.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
        }
        _ => Ok(()),
    }
}

/// Whether this is a directory of this user that others cannot use.
pub(crate) fn is_private_directory(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.is_dir() && meta.uid() == uid() && meta.mode() & 0o077 == 0)
}

/// Creates or empties a file that only this user can read.
///
/// # Errors
/// The operating system's.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Asks that standard input holds this many bytes. If it is not a pipe, or the
/// system refuses, reads are smaller.
pub(crate) fn enlarge_stdin_pipe(bytes: usize) {
    let _ = rustix::pipe::fcntl_setpipe_size(io::stdin(), bytes);
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}
