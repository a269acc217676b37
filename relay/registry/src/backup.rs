//! Backups of the database, also while relays use it.
//!
//! A relay also needs its signing key, a file that never changes and that permits
//! its holder to sign tickets. The backup does not contain it, so that a backup
//! alone admits no one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::registry::{DATABASE_FILE, is_file};
use crate::store::StoreError;
use crate::store::sqlite::{SqliteOpenError, SqliteStore};

/// Why a backup failed. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The state directory has no database.
    #[error("{}: the database is missing", .0.display())]
    NoDatabase(PathBuf),
    /// The database cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// The file of the database.
        path: PathBuf,
        /// The reason.
        source: SqliteOpenError,
    },
    /// The backup file cannot be written, for example because it exists; or the
    /// database file cannot be accessed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// SQLite cannot copy the database.
    #[error("copying the database failed: {0}")]
    Copy(#[from] StoreError),
}

/// Copies the database in `state_dir` to `file`, which must not exist, as it is at
/// one moment. The copy has the schema of the relay that uses the database. Only
/// the owner can read the copy, and it is durable, with its name, when this
/// returns.
///
/// # Errors
/// See [`BackupError`].
pub async fn backup(state_dir: &Path, file: &Path) -> Result<(), BackupError> {
    let database = state_dir.join(DATABASE_FILE);
    match is_file(&database) {
        Ok(true) => {}
        Ok(false) => return Err(BackupError::NoDatabase(database)),
        Err(source) => return Err(BackupError::File { path: database, source }),
    }
    let failed = |source| BackupError::File { path: file.to_owned(), source };
    let store = SqliteStore::open_any(&database).await;
    let store = store.map_err(|source| BackupError::Open { path: database, source })?;
    // SQLite fills an empty file; this one has the right mode from the start
    let copy =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
    let copied = store.copy_into(file).await;
    store.close().await;
    if let Err(error) = copied {
        // remove the incomplete backup
        let _ = std::fs::remove_file(file);
        return Err(error.into());
    }
    copy.sync_all().and_then(|()| sync_name(file)).map_err(failed)
}

/// Syncs the directory: the name of a file is durable only with its directory.
fn sync_name(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::*;
    use crate::model::Role;
    use crate::signer::SIGNING_KEY_FILE;
    use crate::store_retry::StoreRetry;
    use crate::testing::{FixedClock, Fixture, START, ticket};
    use crate::{Options, Registry};

    #[tokio::test]
    async fn backup_restores_tokens_and_registrations() {
        let fixture = Fixture::new().await;
        let token = fixture.token(Role::Executor, "*").await;
        let executor =
            fixture.registry.tokens().authenticate(&token, None, StoreRetry::NEVER).await.unwrap();
        let registered = fixture.register(&executor, "dev").await;
        let backups = tempfile::tempdir().unwrap();
        let file = backups.path().join("backup.sqlite");
        // the registry has the database open meanwhile
        backup(fixture.dir.path(), &file).await.unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        // later changes are not in the backup
        let later = fixture.token(Role::Admin, "*").await;
        let again = backup(fixture.dir.path(), &file).await;
        assert!(matches!(again, Err(BackupError::File { .. })), "a backup is not overwritten");

        let restored = tempfile::tempdir().unwrap();
        std::fs::copy(&file, restored.path().join(DATABASE_FILE)).unwrap();
        let key = |dir: &Path| dir.join(SIGNING_KEY_FILE);
        std::fs::copy(key(fixture.dir.path()), key(restored.path())).unwrap();
        let clock = Arc::new(FixedClock(START.into()));
        let options = Options { clock, ..Options::default() };
        let registry = Registry::open(restored.path(), options).await.unwrap();
        registry.tokens().authenticate(&token, None, StoreRetry::NEVER).await.unwrap();
        assert!(registry.tokens().authenticate(&later, None, StoreRetry::NEVER).await.is_err());
        registry.tickets().check_executor(&ticket(&registered.url), None).await.unwrap();
    }

    #[tokio::test]
    async fn damaged_database_is_reported_with_remedy() {
        let state = Fixture::new().await;
        let whole = state.dir.path().join(SIGNING_KEY_FILE);
        let dir = tempfile::tempdir().unwrap();
        std::fs::copy(whole, dir.path().join(SIGNING_KEY_FILE)).unwrap();
        let database = dir.path().join(DATABASE_FILE);
        std::fs::write(&database, [b'x'; 8192]).unwrap();
        let copied = backup(dir.path(), &dir.path().join("copy")).await.unwrap_err();
        let attached = Registry::attach(dir.path(), Options::default()).await.unwrap_err();
        let opened = Registry::open(dir.path(), Options::default()).await.unwrap_err();
        let expected = format!(
            "{}: file is not a database; the file may be damaged: restore a backup",
            database.display()
        );
        for message in [copied.to_string(), attached.to_string(), opened.to_string()] {
            assert_eq!(message, expected);
        }
    }

    #[tokio::test]
    async fn backup_without_database_creates_nothing() {
        let empty = tempfile::tempdir().unwrap();
        let file = empty.path().join("backup");
        let result = backup(empty.path(), &file).await;
        assert!(matches!(result, Err(BackupError::NoDatabase(_))));
        assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
        // an access error is not reported as a missing database
        let database = empty.path().join(DATABASE_FILE);
        std::os::unix::fs::symlink(&database, &database).unwrap();
        let error = backup(empty.path(), &file).await.unwrap_err();
        assert!(matches!(&error, BackupError::File { path, .. } if *path == database), "{error}");
    }
}
