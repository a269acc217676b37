//! Databases as older versions left them come up to date with all their rows.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;

use super::*;
use crate::service::DATABASE_FILE;
use crate::store::Store as _;
use crate::store::records::Records as _;
use crate::store::sqlite::{SqliteOpenError, SqliteStore};
use crate::testing::env;

/// Rows that version 1 could write, with its own columns.
const ROWS_OF_1: &str = "\
    INSERT INTO tokens VALUES \
        ('0000000000000001', 'executor', 'dev-*', 'one', zeroblob(32), 10, NULL, NULL), \
        ('0000000000000002', 'admin', '*', 'two', zeroblob(32), 11, 99, 12); \
    INSERT INTO environments VALUES ('dev-1', 7, 20); \
    INSERT INTO registrations VALUES \
        ('dev-1', 'reg_a', 7, zeroblob(32), NULL, 'rendez_ik_v1', '0000000000000001', 30); \
    INSERT INTO redeemed_tickets VALUES (zeroblob(16), 40);";

/// What version 10 added.
const ROWS_OF_10: &str = "\
    INSERT INTO connections (id, environment, registration, generation, connected_at, ended_at, \
        ended_because, received_bytes, sent_bytes) VALUES \
        ('0000000000000001-1', 'dev-1', 'reg_a', 7, 50, 60, 'ping_timeout', 1, 2);";

/// Rows that a version added, and that every later one must keep.
fn rows_of(version: i64) -> Option<&'static str> {
    match version {
        1 => Some(ROWS_OF_1),
        10 => Some(ROWS_OF_10),
        _ => None,
    }
}

async fn pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePool::connect_with(options).await.unwrap()
}

/// A database as the program of this version left it: migrated up to it step
/// by step, with rows in it.
async fn database_of(version: i64) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let pool = pool(&path).await;
    let steps: Vec<Version> = ALL.iter().copied().filter(|step| step.0 <= version).collect();
    for (index, step) in steps.iter().enumerate() {
        of(&steps[..=index]).run(&pool).await.unwrap();
        if let Some(rows) = rows_of(step.0) {
            sqlx::raw_sql(rows).execute(&pool).await.unwrap();
        }
    }
    pool.close().await;
    (dir, path)
}

#[tokio::test]
async fn every_older_database_comes_up_to_date_with_all_its_rows() {
    for (version, ..) in ALL {
        let (_dir, path) = database_of(*version).await;
        let store = SqliteStore::open(&path).await.unwrap();
        let tokens = store.tokens(None, 10).await.unwrap();
        let labels: Vec<_> = tokens.iter().map(|token| token.label.as_str()).collect();
        assert_eq!(labels, ["one", "two"], "from version {version}");
        assert_eq!((tokens[1].expires_at, tokens[1].revoked_at), (Some(99), Some(12)));
        let registration = store.registration(&env("dev-1")).await.unwrap().unwrap();
        assert_eq!((registration.id.as_str(), registration.generation.0), ("reg_a", 7));
        assert_eq!(registration.subject, tokens[0].id.clone().into());
        let used: i64 = sqlx::query_scalar("SELECT count(*) FROM redeemed_tickets")
            .fetch_one(store.pool())
            .await
            .unwrap();
        assert_eq!(used, 1, "a used ticket stays used");
        let connections = store.connections(&env("dev-1"), 10).await.unwrap();
        assert_eq!(connections.len(), usize::from(*version >= 10));
        // and goes on from there
        store.close().await;
        SqliteStore::open(&path).await.unwrap();
    }
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let (_dir, path) = database_of(newest()).await;
    let pool = pool(&path).await;
    sqlx::raw_sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9000, 'later', TRUE, x'00', 0)",
    )
    .execute(&pool)
    .await
    .unwrap();
    pool.close().await;
    let error = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(error, SqliteOpenError::Newer { found: 9000, .. }));
    let again = SqliteStore::open_current(&path).await.unwrap_err();
    assert!(matches!(again, SqliteOpenError::Newer { found: 9000, .. }));
    let said = error.to_string();
    assert!(said.contains("version 9000") && said.contains("start the newer Rendez"), "{said}");
}

#[tokio::test]
async fn an_older_database_is_copied_as_it_is_and_not_opened_behind_its_relays_back() {
    let versions = async |path: &Path| {
        let pool = pool(path).await;
        let versions = applied(&pool).await.unwrap();
        pool.close().await;
        versions
    };
    for older in [1, 10] {
        let (dir, path) = database_of(older).await;
        let before = versions(&path).await;
        let error = SqliteStore::open_current(&path).await.unwrap_err();
        assert!(matches!(error, SqliteOpenError::Older { found, .. } if found == older));
        assert!(error.to_string().contains("start the relay"), "{error}");
        std::fs::rename(&path, dir.path().join(DATABASE_FILE)).unwrap();
        let copy = dir.path().join("copy");
        crate::backup::backup(dir.path(), &copy).await.unwrap();
        assert_eq!(versions(&dir.path().join(DATABASE_FILE)).await, before);
        assert_eq!(versions(&copy).await, before);
        // and the copy can be restored
        let store = SqliteStore::open(&copy).await.unwrap();
        assert_eq!(store.tokens(None, 10).await.unwrap().len(), 2);
        store.close().await;
        SqliteStore::open_current(&copy).await.unwrap();
    }
}

#[tokio::test]
async fn a_changed_step_is_noticed_without_changing_anything() {
    let (_dir, path) = database_of(newest()).await;
    let pool = pool(&path).await;
    let change = "UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 2";
    sqlx::raw_sql(change).execute(&pool).await.unwrap();
    pool.close().await;
    let error = SqliteStore::open_current(&path).await.unwrap_err();
    let mismatch = MigrateError::VersionMismatch(2);
    assert!(
        matches!(&error, SqliteOpenError::Schema(why) if why.to_string() == mismatch.to_string())
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let text = "this is not a database, whatever its name says\n".repeat(100);
    std::fs::write(&path, &text).unwrap();
    assert!(SqliteStore::open(&path).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn versions_only_grow() {
    assert!(ALL.windows(2).all(|pair| pair[0].0 < pair[1].0));
}

/// Released versions are frozen: a database that has them would be refused.
#[test]
fn released_versions_are_not_edited() {
    use sha2::{Digest as _, Sha256};
    let sum = |sql: &str| {
        let digest = Sha256::digest(sql.as_bytes());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let sums: Vec<_> = ALL.iter().map(|(version, _, sql)| (*version, sum(sql))).collect();
    let frozen = [
        (1, "ec0adb55494c443c"),
        (2, "b183d957ed2cd8a0"),
        (10, "647a1bbc217573ef"),
        (11, "974d90858b701fed"),
    ];
    assert_eq!(sums, frozen.map(|(version, sum)| (version, sum.to_owned())), "all there are");
}
