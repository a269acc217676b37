//! Errors of opening a database file.

use std::error::Error;
use std::fmt;
use std::io;

use sqlx::migrate::MigrateError;

use super::migrations;

/// SQLite's codes of a file that is damaged, or not a database.
const DAMAGED: [u32; 2] = [11, 26];
/// SQLite's codes of a file that another connection locks.
const BUSY: [u32; 2] = [5, 6];

/// The database file cannot be used. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum SqliteOpenError {
    /// The file cannot be created or accessed.
    #[error("{0}")]
    File(#[from] io::Error),
    /// SQLite refuses the file.
    #[error("{}", DatabaseError(.0))]
    Database(#[from] sqlx::Error),
    /// A newer Rendez created or migrated it.
    #[error(
        "the database has schema version {found}, which this Rendez does not know (it knows \
         versions up to {newest}); start the newer Rendez that created it, or restore a backup \
         from before the upgrade"
    )]
    Newer {
        /// An unknown version that it has.
        found: i64,
        /// The newest known version.
        newest: i64,
    },
    /// An older Rendez created it, and may be using it.
    #[error(
        "the database has schema version {found}, and this Rendez works with version {newest}; \
         start the relay of this version first, which brings it up to date, or use the `rendez` \
         of the relay that runs"
    )]
    Older {
        /// Its newest version; 0 if it has none.
        found: i64,
        /// The newest known version.
        newest: i64,
    },
    /// Its schema is not one of Rendez.
    #[error("database schema: {0}")]
    Schema(#[source] MigrateError),
}

impl From<MigrateError> for SqliteOpenError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::VersionMissing(found) => {
                Self::Newer { found, newest: migrations::newest() }
            }
            other => Self::Schema(other),
        }
    }
}

impl SqliteOpenError {
    /// Whether another connection locked the database: a retry may succeed.
    pub fn is_busy(&self) -> bool {
        let mut next: Option<&(dyn Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(sqlx::Error::Database(error)) = error.downcast_ref() {
                return primary_code(&**error).is_some_and(|code| BUSY.contains(&code));
            }
            next = error.source();
        }
        false
    }
}

/// SQLite's own message, and the remedy for a damaged file.
struct DatabaseError<'a>(&'a sqlx::Error);

impl fmt::Display for DatabaseError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sqlx::Error::Database(error) = self.0 else {
            return write!(f, "database: {}", self.0);
        };
        f.write_str(error.message())?;
        if primary_code(&**error).is_some_and(|code| DAMAGED.contains(&code)) {
            f.write_str("; the file may be damaged: restore a backup")?;
        }
        Ok(())
    }
}

/// Returns the low byte of SQLite's code, which is the error without details.
fn primary_code(error: &dyn sqlx::error::DatabaseError) -> Option<u32> {
    let code: u32 = error.code()?.parse().ok()?;
    Some(code & 0xff)
}
