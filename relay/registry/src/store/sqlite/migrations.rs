//! The schema's versions, in the order in which they are applied. What was
//! released is never edited: sqlx refuses a database whose applied migrations
//! differ from these.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::SqlitePool;

/// Version, name and SQL.
type Version = (i64, &'static str, &'static str);

const ALL: &[Version] = &[
    (1, "init", include_str!("../../../migrations/sqlite/0001_init.sql")),
    (2, "credentials", include_str!("../../../migrations/sqlite/0002_credentials.sql")),
    (10, "connections", include_str!("../../../migrations/sqlite/0010_connections.sql")),
    (11, "audit", include_str!("../../../migrations/sqlite/0011_audit.sql")),
];

/// Brings a database from any of these versions to the newest.
///
/// Other processes may do the same at once, and SQLite has no lock that would
/// span all steps. So a step may fail because another process was faster; each
/// such failure leaves one step less.
pub(super) async fn run(pool: &SqlitePool) -> Result<(), MigrateError> {
    let migrator = of(ALL);
    for _ in ALL {
        match migrator.run(pool).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)) => {}
            result => return result,
        }
    }
    migrator.run(pool).await
}

fn of(versions: &[Version]) -> Migrator {
    let migration = |(version, name, sql): &Version| {
        let sql = (*sql).into_sql_str();
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(versions.iter().map(migration).collect())
}

/// The newest version that this program knows.
pub(super) fn newest() -> i64 {
    ALL.iter().map(|(version, _, _)| *version).max().unwrap_or_default()
}

#[cfg(test)]
mod tests;
