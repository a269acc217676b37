//! What is said of a database that cannot be opened: SQLite's own words, and
//! what to do about a file that is not whole.

use std::fmt;

use crate::store::sqlite::SqliteOpenError;

/// SQLite's codes for a file that is damaged, or none of its own.
const DAMAGED: [u32; 2] = [11, 26];
/// The byte of a code that is the error; the rest says more about it.
const ERROR: u32 = 0xff;

/// Says it.
pub(crate) struct Said<'a>(pub(crate) &'a SqliteOpenError);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SqliteOpenError::Database(sqlx::Error::Database(error)) = self.0 else {
            return self.0.fmt(f);
        };
        f.write_str(error.message())?;
        let code = error.code().and_then(|code| code.parse::<u32>().ok());
        if code.is_some_and(|code| DAMAGED.contains(&(code & ERROR))) {
            f.write_str(": it is damaged, or something else; restore a backup of it")?;
        }
        Ok(())
    }
}
