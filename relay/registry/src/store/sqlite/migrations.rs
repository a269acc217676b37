//! The migrations of the schema, in order. A released migration is never edited:
//! sqlx refuses a database whose applied migrations differ from these.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::SqlitePool;

use super::SqliteOpenError;

/// Version, name and SQL.
pub type Version = (i64, &'static str, &'static str);

/// All known versions.
pub const ALL: &[Version] = &[
    (1, "init", include_str!("../../../migrations/sqlite/0001_init.sql")),
    (2, "credentials", include_str!("../../../migrations/sqlite/0002_credentials.sql")),
    (10, "connections", include_str!("../../../migrations/sqlite/0010_connections.sql")),
    (11, "audit", include_str!("../../../migrations/sqlite/0011_audit.sql")),
    (12, "audit acts", include_str!("../../../migrations/sqlite/0012_audit_acts.sql")),
    (13, "forgotten", include_str!("../../../migrations/sqlite/0013_forgotten.sql")),
];

/// Migrates a database from any of these versions to the newest.
///
/// Other processes may migrate at the same time, and SQLite has no lock that spans
/// all steps. A step may fail because another process was faster; each such
/// failure leaves one step less.
pub(super) async fn run(pool: &SqlitePool) -> Result<(), MigrateError> {
    let migrator = migrator(ALL);
    for _ in ALL {
        match migrator.run(pool).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)) => {}
            result => return result,
        }
    }
    migrator.run(pool).await
}

/// Refuses a database that does not have exactly these versions. Changes nothing.
pub(super) async fn check(pool: &SqlitePool) -> Result<(), SqliteOpenError> {
    let found = applied(pool).await?;
    for (version, checksum) in &found {
        let known = migrator(ALL).iter().find(|known| known.version == *version).cloned();
        let known = known.ok_or(MigrateError::VersionMissing(*version))?;
        if known.checksum.as_ref() != checksum.as_slice() {
            return Err(MigrateError::VersionMismatch(*version).into());
        }
    }
    if found.len() < ALL.len() {
        let found = found.last().map_or(0, |(version, _)| *version);
        return Err(SqliteOpenError::Older { found, newest: newest() });
    }
    Ok(())
}

/// Returns the versions of a database, in order, with the hashes of their SQL;
/// none if it has no such table.
///
/// # Errors
/// The database cannot be read.
pub async fn applied(pool: &SqlitePool) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
    let table = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = '_sqlx_migrations')";
    if !sqlx::query_scalar::<_, bool>(table).fetch_one(pool).await? {
        return Ok(Vec::new());
    }
    let rows = "SELECT version, checksum FROM _sqlx_migrations WHERE success ORDER BY version";
    sqlx::query_as(rows).fetch_all(pool).await
}

/// Creates a migrator for these versions.
pub fn migrator(versions: &[Version]) -> Migrator {
    let migration = |(version, name, sql): &Version| {
        let sql = (*sql).into_sql_str();
        Migration::new(*version, (*name).into(), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(versions.iter().map(migration).collect())
}

/// Returns the newest known version.
pub fn newest() -> i64 {
    ALL.iter().map(|(version, _, _)| *version).max().unwrap_or_default()
}
