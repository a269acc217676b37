//! Files and directories that only their owner can read.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;

/// Creates a missing file for its owner alone.
pub(crate) fn owner_only(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

/// Creates missing directories for their owner alone.
#[cfg(feature = "acme")]
pub(crate) fn create_owner_only_dir(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
