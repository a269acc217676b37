//! Files on the executor (docs/codex-wire.md#files).
//!
//! Every call carries an optional `sandbox` with the stock rules; an executor
//! that cannot enforce them must refuse.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::path::PathUri;
use super::process::Empty;
use super::{Method, message_bytes};

fn yes() -> bool {
    true
}

/// `fs/readFile`: a whole regular file, of at most
/// [`crate::limits::READ_FILE_MAX_BYTES`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadFile {
    /// The file.
    pub path: PathUri,
    /// Read the target of a link; otherwise a link is refused. True if absent.
    #[serde(default = "yes")]
    pub follow_symlinks: bool,
    /// Stock sandbox rules.
    #[serde(default)]
    pub sandbox: Option<Value>,
}

impl Method for ReadFile {
    const NAME: &'static str = "fs/readFile";
    type Params = Self;
    type Reply = ReadFileReply;
}

/// The answer to [`ReadFile`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFileReply {
    /// The file's bytes.
    #[serde(rename = "dataBase64", with = "message_bytes")]
    pub data: Vec<u8>,
}

/// `fs/writeFile`: makes a file or overwrites one in place; follows links. The
/// parent must exist.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WriteFile {
    /// The file.
    pub path: PathUri,
    /// Its new bytes, all of them.
    #[serde(rename = "dataBase64", with = "message_bytes")]
    pub data: Vec<u8>,
    /// Stock sandbox rules.
    #[serde(default)]
    pub sandbox: Option<Value>,
}

impl Method for WriteFile {
    const NAME: &'static str = "fs/writeFile";
    type Params = Self;
    type Reply = Empty;
}

/// `fs/getMetadata`: the kind, size and times of a path; follows links.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GetMetadata {
    /// The path.
    pub path: PathUri,
    /// Stock sandbox rules.
    #[serde(default)]
    pub sandbox: Option<Value>,
}

impl Method for GetMetadata {
    const NAME: &'static str = "fs/getMetadata";
    type Params = Self;
    type Reply = Metadata;
}

/// The answer to [`GetMetadata`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// A directory, or a link to one.
    pub is_directory: bool,
    /// A regular file, or a link to one.
    pub is_file: bool,
    /// The path itself is a link; the rest describes its target.
    pub is_symlink: bool,
    /// In bytes.
    pub size: u64,
    /// Milliseconds since 1970; 0 if the file system has none.
    pub created_at_ms: i64,
    /// Milliseconds since 1970.
    pub modified_at_ms: i64,
}

/// `fs/readDirectory`: the entries of a directory, in no order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadDirectory {
    /// The directory.
    pub path: PathUri,
    /// Stock sandbox rules.
    #[serde(default)]
    pub sandbox: Option<Value>,
}

impl Method for ReadDirectory {
    const NAME: &'static str = "fs/readDirectory";
    type Params = Self;
    type Reply = ReadDirectoryReply;
}

/// The answer to [`ReadDirectory`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadDirectoryReply {
    /// Without `.` and `..`, and without dangling links.
    pub entries: Vec<DirectoryEntry>,
}

/// One name in a directory; for a link, with the kind of its target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryEntry {
    /// One segment of a path.
    pub file_name: String,
    /// A directory.
    pub is_directory: bool,
    /// A regular file.
    pub is_file: bool,
}

/// `fs/createDirectory`: with its parents and content if it exists, unless not
/// `recursive`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateDirectory {
    /// The directory.
    pub path: PathUri,
    /// Make missing parents, too, and accept one that exists. True if absent.
    #[serde(default = "yes")]
    pub recursive: bool,
    /// Stock sandbox rules.
    #[serde(default)]
    pub sandbox: Option<Value>,
}

impl Method for CreateDirectory {
    const NAME: &'static str = "fs/createDirectory";
    type Params = Self;
    type Reply = Empty;
}

/// `fs/remove`: a file, a link (not its target), or a directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remove {
    /// The path.
    pub path: PathUri,
    /// Remove the content of a directory, too. True if absent.
    #[serde(default = "yes")]
    pub recursive: bool,
    /// Accept a path that does not exist. True if absent.
    #[serde(default = "yes")]
    pub force: bool,
    /// Stock sandbox rules.
    #[serde(default)]
    pub sandbox: Option<Value>,
}

impl Method for Remove {
    const NAME: &'static str = "fs/remove";
    type Params = Self;
    type Reply = Empty;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Json;
    use serde_json::{from_value, json};

    fn to_value<T: Serialize>(value: T) -> serde_json::Result<Value> {
        Json::of(&value).parse()
    }

    #[test]
    fn reading_has_the_stock_shape() {
        let read: ReadFile =
            from_value(json!({"path": "file:///tmp/x.txt", "sandbox": null})).unwrap();
        assert_eq!(read.path.path(), "/tmp/x.txt");
        assert!(read.follow_symlinks && read.sandbox.is_none());
        let reply: ReadFileReply = from_value(json!({"dataBase64": "aGVsbG8="})).unwrap();
        assert_eq!(reply.data, b"hello");
        assert_eq!(to_value(reply).unwrap(), json!({"dataBase64": "aGVsbG8="}));
    }

    #[test]
    fn writing_has_the_stock_shape() {
        let value = json!({"path": "file:///x", "dataBase64": "aGk=", "sandbox": null});
        let write: WriteFile = from_value(value.clone()).unwrap();
        assert_eq!(write.data, b"hi");
        assert_eq!(to_value(write).unwrap(), value);
        assert!(from_value::<WriteFile>(json!({"path": "file:///x"})).is_err());
    }

    #[test]
    fn absent_flags_are_true() {
        let path = json!({"path": "file:///x"});
        assert!(from_value::<CreateDirectory>(path.clone()).unwrap().recursive);
        let remove: Remove = from_value(path).unwrap();
        assert!(remove.recursive && remove.force);
        let remove: Remove =
            from_value(json!({"path": "file:///x", "recursive": false, "force": false})).unwrap();
        assert!(!remove.recursive && !remove.force);
    }

    #[test]
    fn answers_have_the_stock_shape() {
        let metadata = json!({"isDirectory": false, "isFile": true, "isSymlink": false,
            "size": 5, "createdAtMs": 0, "modifiedAtMs": 1700000000000_i64});
        assert_eq!(to_value(from_value::<Metadata>(metadata.clone()).unwrap()).unwrap(), metadata);
        let entries = json!({"entries": [{"fileName": "a", "isDirectory": true, "isFile": false}]});
        let reply: ReadDirectoryReply = from_value(entries.clone()).unwrap();
        assert_eq!(to_value(reply).unwrap(), entries);
    }
}
