//! Databases of older versions are migrated with all their rows.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::path::Path;

use rendez_proto::audit::{AuditEvent, AuditKind, Head, Verifier};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};
use tempfile::TempDir;

use rendez_proto::ids::EnvironmentId;
use rendez_registry::DATABASE_FILE;
use rendez_registry::model::{Credential, Revocation};
use rendez_registry::store::sqlite::migrations::{ALL, Version, applied, migrator, newest};
use rendez_registry::store::sqlite::{SqliteOpenError, SqliteStore};
use rendez_registry::store::{
    AuditStore as _, ConnectionStore as _, RegistrationStore as _, RevocationStore as _,
    TokenStore as _,
};
use sqlx::migrate::MigrateError;

fn env(text: &str) -> EnvironmentId {
    text.parse().unwrap()
}

/// Rows that version 1 could write, with its own columns.
const ROWS_OF_1: &str = "\
    INSERT INTO tokens VALUES \
        ('0000000000000001', 'executor', 'dev-*', 'one', zeroblob(32), 10, NULL, NULL), \
        ('0000000000000002', 'admin', '*', 'two', zeroblob(32), 11, 99, 12); \
    INSERT INTO environments VALUES ('dev-1', 7, 20); \
    INSERT INTO registrations VALUES \
        ('dev-1', 'reg_a', 7, zeroblob(32), NULL, 'rendez_ik_v1', '0000000000000001', 30); \
    INSERT INTO redeemed_tickets VALUES (zeroblob(16), 40);";

/// Rows that version 2 added; the key is that of RFC 8032's first test.
const ROWS_OF_2: &str = "\
    INSERT INTO tokens (id, role, environments, label, ed25519, enrolled_by, source_cidrs, \
        max_uses, uses, made_seq, created_at) VALUES \
        ('0000000000000003', 'executor', 'dev-1', 'three', \
         x'd75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a', \
         '0000000000000001', '10.0.0.0/8', 9, 4, 1, 13); \
    INSERT INTO withdrawals (at, kind, what) VALUES (14, 'environment', 'dev-1'); \
    INSERT INTO blocked_subjects VALUES ('jwt_03dba21c_d7BQaXTTBnDeFVeJi2qskQ', 15); \
    UPDATE environments SET revoked_seq = 1 WHERE id = 'dev-1';";

/// Rows that version 10 added.
const ROWS_OF_10: &str = "\
    INSERT INTO connections (id, environment, registration, generation, connected_at, ended_at, \
        ended_because, received_bytes, sent_bytes) VALUES \
        ('0000000000000001-1', 'dev-1', 'reg_a', 7, 50, 60, 'ping_timeout', 1, 2);";

/// The rows that a version added and that every later one must keep.
fn rows_of(version: i64) -> Option<&'static str> {
    match version {
        1 => Some(ROWS_OF_1),
        2 => Some(ROWS_OF_2),
        10 => Some(ROWS_OF_10),
        _ => None,
    }
}

async fn pool(path: &Path) -> SqlitePool {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    SqlitePool::connect_with(options).await.unwrap()
}

/// Rows that version 11 added: two chained rows of the audit log.
async fn audit_of_11(pool: &SqlitePool) {
    let mut head = Head::EMPTY;
    for at in [70, 71] {
        let row = AuditEvent::new(AuditKind::Admin, at).chain(head);
        sqlx::query("INSERT INTO audit (seq, at, kind, previous, hash) VALUES (?, ?, ?, ?, ?)")
            .bind(i64::try_from(row.seq).unwrap())
            .bind(i64::try_from(at).unwrap())
            .bind(AuditKind::Admin.as_str())
            .bind(row.previous.0.as_slice())
            .bind(row.hash.0.as_slice())
            .execute(pool)
            .await
            .unwrap();
        head = (&row).into();
    }
}

/// Checks that a store has [`ROWS_OF_2`].
async fn has_rows_of_2(store: &SqliteStore) {
    let tokens = store.tokens(None, 10).await.unwrap();
    let Credential::Key { public, .. } = &tokens[2].credential else { panic!("{tokens:?}") };
    assert_eq!(store.token_by_key(public).await.unwrap().as_ref(), Some(&tokens[2]));
    assert_eq!(tokens[2].sources.texts(), ["10.0.0.0/8"]);
    assert_eq!((tokens[2].max_uses, tokens[2].uses), (Some(9), 4));
    let blocked = "jwt_03dba21c_d7BQaXTTBnDeFVeJi2qskQ".parse().unwrap();
    assert!(store.is_blocked(&blocked).await.unwrap());
    let page = store.revocations(0, 10).await.unwrap();
    assert_eq!(page.revocations, [(1, Revocation::Environment(env("dev-1")))]);
}

/// A database as the program of this version left it: migrated step by step, with
/// rows in it.
async fn database_of(version: i64) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let pool = pool(&path).await;
    let steps: Vec<Version> = ALL.iter().copied().filter(|step| step.0 <= version).collect();
    for (index, step) in steps.iter().enumerate() {
        migrator(&steps[..=index]).run(&pool).await.unwrap();
        if let Some(rows) = rows_of(step.0) {
            sqlx::raw_sql(rows).execute(&pool).await.unwrap();
        }
        if step.0 == 11 {
            audit_of_11(&pool).await;
        }
    }
    pool.close().await;
    (dir, path)
}

#[tokio::test]
async fn older_databases_migrate_with_all_rows() {
    for (version, ..) in ALL {
        let (_dir, path) = database_of(*version).await;
        let store = SqliteStore::open(&path).await.unwrap();
        let tokens = store.tokens(None, 10).await.unwrap();
        let labels: Vec<_> = tokens.iter().map(|token| token.label.as_str()).collect();
        let all = ["one", "two", "three"];
        let there = if *version >= 2 { 3 } else { 2 };
        assert_eq!(labels, all[..there], "from version {version}");
        if *version >= 2 {
            has_rows_of_2(&store).await;
        }
        assert_eq!((tokens[1].expires_at, tokens[1].revoked_at), (Some(99), Some(12)));
        let registration = store.registration(&env("dev-1")).await.unwrap().unwrap();
        assert_eq!((registration.id.as_str(), registration.generation.0), ("reg_a", 7));
        assert_eq!(registration.subject, tokens[0].id.clone().into());
        let used: i64 = sqlx::query_scalar("SELECT count(*) FROM redeemed_tickets")
            .fetch_one(&pool(&path).await)
            .await
            .unwrap();
        assert_eq!(used, 1, "a used ticket stays used");
        let connections = store.connections(&env("dev-1"), 10).await.unwrap();
        assert_eq!(connections.len(), usize::from(*version >= 10));
        let rows = store.audit_rows(0, 10).await.unwrap();
        assert_eq!(rows.len(), if *version >= 11 { 2 } else { 0 });
        let mut verifier = Verifier::default();
        rows.iter().try_for_each(|row| verifier.check(row)).unwrap();
        verifier.finish().unwrap();
        // the migrated database can be opened again
        store.close().await;
        SqliteStore::open(&path).await.unwrap();
    }
}

#[tokio::test]
async fn newer_database_is_refused_and_unchanged() {
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
    let message = error.to_string();
    assert!(
        message.contains("version 9000") && message.contains("start the newer Rendez"),
        "{message}"
    );
}

#[tokio::test]
async fn older_database_is_copied_but_not_opened() {
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
        rendez_registry::backup::backup(dir.path(), &copy).await.unwrap();
        assert_eq!(versions(&dir.path().join(DATABASE_FILE)).await, before);
        assert_eq!(versions(&copy).await, before);
        // the copy can be restored
        let store = SqliteStore::open(&copy).await.unwrap();
        let tokens = if older >= 2 { 3 } else { 2 };
        assert_eq!(store.tokens(None, 10).await.unwrap().len(), tokens);
        store.close().await;
        SqliteStore::open_current(&copy).await.unwrap();
    }
}

#[tokio::test]
async fn changed_migration_is_refused() {
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
async fn other_file_is_refused_and_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let text = "this is not a database, despite its name\n".repeat(100);
    std::fs::write(&path, &text).unwrap();
    assert!(SqliteStore::open(&path).await.is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn migration_versions_increase() {
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
        (12, "1e3af2603ccbd82c"),
        (13, "3c8e5aafed77d860"),
    ];
    assert_eq!(sums, frozen.map(|(version, sum)| (version, sum.to_owned())), "all there are");
}
