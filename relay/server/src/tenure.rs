//! Which relay the state directory belongs to: of several that run on it, one.
//!
//! While one relay leaves and the next has started, both have the state open.
//! What is open in the history may then be open at the other one, which ends it
//! itself, so only who is alone takes it over. The sign is a lock on a file
//! that the system lets go of when its process is gone, however it went.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

/// Name of the file in the state directory. It is empty, and stays.
const LOCK_FILE: &str = "relay.lock";
/// How often a relay beside another looks whether that one is gone. A third
/// one that starts before it has noticed takes it for dead.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Tenure {
    file: File,
    ours: bool,
}

impl Tenure {
    /// Takes over if nobody is there. The directory must exist.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub(crate) fn begin(state: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        // nothing is written; without `write` it would not be made
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut tenure = Self { file: options.open(state.join(LOCK_FILE))?, ours: false };
        tenure.try_again()?;
        Ok(tenure)
    }

    /// Whether no other relay runs on this state.
    pub(crate) fn is_ours(&self) -> bool {
        self.ours
    }

    /// Waits until it is.
    pub(crate) async fn succeed(&mut self) {
        while !self.ours {
            sleep(LOOK_INTERVAL).await;
            if let Err(error) = self.try_again() {
                tracing::warn!(%error, "the lock of the state directory cannot be had");
                return;
            }
        }
    }

    fn try_again(&mut self) -> io::Result<()> {
        match self.file.try_lock() {
            Ok(()) => self.ours = true,
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
    async fn of_several_relays_one_has_it_and_the_next_succeeds() {
        let state = tempfile::tempdir().unwrap();
        let begin = || Tenure::begin(state.path()).unwrap();
        let first = begin();
        let mut second = begin();
        assert!(first.is_ours() && !second.is_ours());
        drop(first);
        second.succeed().await;
        assert!(second.is_ours() && !begin().is_ours());
        drop(second);
        // a program that another test starts has our files until it runs
        let mut third = begin();
        third.succeed().await;
        assert!(third.is_ours());
    }
}
