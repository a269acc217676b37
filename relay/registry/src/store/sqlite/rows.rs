//! Conversion between rows and values.

use rendez_proto::registry::admin::Role;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use crate::store::StoreError;

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => {
                StoreError::Corrupt("value")
            }
            error => StoreError::Unavailable(Box::new(error)),
        }
    }
}

pub(super) fn role(row: &SqliteRow) -> Result<Role, StoreError> {
    let name: &str = row.try_get("role")?;
    let known = Role::ALL.into_iter().find(|role| role.as_str() == name);
    known.ok_or(StoreError::Corrupt("role"))
}

/// Converts to SQLite's signed integers. Times beyond their range mean "never".
pub(super) fn seconds(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// Encodes a list as one argument, for `json_each`.
pub(super) fn texts<'a>(list: impl Iterator<Item = &'a str>) -> String {
    list.map(serde_json::Value::from).collect::<serde_json::Value>().to_string()
}

pub(super) fn number(row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    u64::try_from(row.try_get::<i64, _>(column)?).map_err(|_| StoreError::Corrupt(column))
}

pub(super) fn optional_number(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<u64>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?
        .map(|value| u64::try_from(value).map_err(|_| StoreError::Corrupt(column)))
        .transpose()
}

pub(super) fn text<T: std::str::FromStr>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<T, StoreError> {
    row.try_get::<&str, _>(column)?.parse().map_err(|_| StoreError::Corrupt(column))
}

pub(super) fn optional_bytes<const N: usize>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<[u8; N]>, StoreError> {
    row.try_get::<Option<&[u8]>, _>(column)?
        .map(|bytes| bytes.try_into().map_err(|_| StoreError::Corrupt(column)))
        .transpose()
}

pub(super) fn bytes<const N: usize>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<[u8; N], StoreError> {
    row.try_get::<&[u8], _>(column)?.try_into().map_err(|_| StoreError::Corrupt(column))
}
