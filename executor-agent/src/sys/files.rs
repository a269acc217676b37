//! Open flags and modes of files.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a file without waiting, for example for the other end of a fifo.
///
/// # Errors
/// Those of the operating system. Without `follow_symlinks` also for a symbolic
/// link.
pub(crate) fn open_nonblocking(
    options: &mut OpenOptions,
    path: &Path,
    follow_symlinks: bool,
) -> io::Result<File> {
    let link = if follow_symlinks { OFlags::empty() } else { OFlags::NOFOLLOW };
    // the flags are small positive numbers
    let flags = (OFlags::NONBLOCK | link).bits().cast_signed();
    options.custom_flags(flags).open(path)
}

/// Whether `path` is a regular file that can be executed.
pub(crate) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// The error of the operating system for a missing file.
pub(crate) fn not_found() -> io::Error {
    rustix::io::Errno::NOENT.into()
}

/// The permission bits of a file.
pub(crate) fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o777
}

/// Creates a directory with its parents; only the owner can use new ones.
///
/// # Errors
/// Those of the operating system.
pub(crate) fn create_private_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Creates a file that only the owner can use.
///
/// # Errors
/// Those of the operating system; also if the file exists.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
