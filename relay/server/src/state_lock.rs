//! The lock of the state directory: of several relays on it, one holds the lock.
//!
//! During a restart the old relay and the new one have the state open together.
//! A connection that is open in the history may then be open at the other relay,
//! which will record its end. So only the relay that holds the lock records the
//! end of connections that an earlier one left open. The operating system releases
//! the lock when the process ends, for whatever reason.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::sys::owner_only;

/// Name of the file in the state directory. It is empty, and is not removed.
const LOCK_FILE: &str = "relay.lock";
/// How often a relay without the lock tries again. A third relay that starts in
/// between may get the lock first.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The lock, held or not. A drop releases it.
#[derive(Debug)]
pub(crate) struct StateLock {
    file: File,
    held: bool,
}

impl StateLock {
    /// Opens the lock file and takes the lock if it is free. The directory must
    /// exist.
    ///
    /// # Errors
    /// The file cannot be created or locked.
    pub(crate) fn open(state: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // Nothing is written, but a file is only created with `write`.
        options.read(true).write(true).create(true).truncate(false);
        let file = owner_only(&mut options).open(state.join(LOCK_FILE))?;
        let mut lock = Self { file, held: false };
        lock.try_again()?;
        Ok(lock)
    }

    /// Whether this relay holds the lock.
    pub(crate) fn is_held(&self) -> bool {
        self.held
    }

    /// Waits until this relay holds the lock.
    pub(crate) async fn acquire(&mut self) {
        while !self.held {
            sleep(RETRY_INTERVAL).await;
            if let Err(error) = self.try_again() {
                tracing::warn!(%error, "cannot lock the state directory");
                return;
            }
        }
    }

    fn try_again(&mut self) -> io::Result<()> {
        match self.file.try_lock() {
            Ok(()) => self.held = true,
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lock_passes_to_the_next_relay() {
        let state = tempfile::tempdir().unwrap();
        let open = || StateLock::open(state.path()).unwrap();
        let first = open();
        let mut second = open();
        assert!(first.is_held() && !second.is_held());
        drop(first);
        second.acquire().await;
        assert!(second.is_held() && !open().is_held());
        drop(second);
        // A program that another test starts inherits our files until it executes.
        let mut third = open();
        third.acquire().await;
        assert!(third.is_held());
    }
}
