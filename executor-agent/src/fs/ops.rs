//! File operations; all of them block.
//!
//! Only regular files are read and written: opening a fifo or a device can block
//! or have side effects. The file type is checked before the file is opened
//! without blocking, and again on the open handle.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rendez_proto::limits;
use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::fs::{
    CreateDirectory, DirectoryEntry, GetMetadata, Metadata, ReadDirectory, ReadDirectoryReply,
    ReadFile, ReadFileReply, Remove, WriteFile,
};
use rendez_proto::rpc::process::Empty;

use crate::sys::files::open_nonblocking;

/// Reads a whole file of at most [`READ_FILE_MAX_BYTES`](limits::READ_FILE_MAX_BYTES).
pub(super) fn read_file(call: &ReadFile) -> Result<ReadFileReply, RpcError> {
    let path = Path::new(call.path.path());
    if call.follow_symlinks {
        must_be_file(path, &fs::metadata(path).map_err(failed)?)?;
    } else {
        let found = fs::symlink_metadata(path).map_err(failed)?;
        // opening a link fails below with the error of the operating system
        if !found.is_symlink() {
            must_be_file(path, &found)?;
        }
    }
    let file = open(OpenOptions::new().read(true), path, call.follow_symlinks)?;
    let len = file.metadata().map_err(failed)?.len();
    // files in /proc report 0 bytes and have more
    let mut data = Vec::with_capacity(usize::try_from(len).unwrap_or(0).min(too_large_at()));
    let most = too_large_at() as u64;
    file.take(most).read_to_end(&mut data).map_err(failed)?;
    if data.len() >= too_large_at() {
        return Err(RpcError::invalid_request(format!(
            "the file has {} bytes, more than the {} that fs/readFile can return; read it in \
             parts with a command such as dd or tail -c",
            len.max(data.len() as u64),
            limits::READ_FILE_MAX_BYTES
        )));
    }
    Ok(ReadFileReply { data })
}

fn too_large_at() -> usize {
    limits::READ_FILE_MAX_BYTES + 1
}

/// Overwrites a file in place, as stock executors do: links, owner, mode and other
/// names of the file stay. A failure during the write, such as a full disk, leaves
/// a truncated file; the error mentions it.
pub(super) fn write_file(call: &WriteFile) -> Result<Empty, RpcError> {
    let path = Path::new(call.path.path());
    match fs::metadata(path) {
        Ok(found) => must_be_file(path, &found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let mut file = open(OpenOptions::new().write(true).create(true).truncate(true), path, true)?;
    file.write_all(&call.data).map_err(|error| {
        RpcError::internal(format!("{error}; the file may hold only the first part of the data"))
    })?;
    Ok(Empty {})
}

pub(super) fn get_metadata(call: &GetMetadata) -> Result<Metadata, RpcError> {
    let path = Path::new(call.path.path());
    let is_symlink = fs::symlink_metadata(path).map_err(failed)?.is_symlink();
    let found = fs::metadata(path).map_err(failed)?;
    Ok(Metadata {
        is_directory: found.is_dir(),
        is_file: found.is_file(),
        is_symlink,
        size: found.len(),
        created_at_ms: found.created().map_or(0, milliseconds),
        modified_at_ms: found.modified().map_or(0, milliseconds),
    })
}

pub(super) fn read_directory(call: &ReadDirectory) -> Result<ReadDirectoryReply, RpcError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(call.path.path()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // follows links; omits dangling links and files that were removed meanwhile
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        entries.push(DirectoryEntry {
            file_name: entry.file_name().to_string_lossy().into_owned(),
            is_directory: found.is_dir(),
            is_file: found.is_file(),
        });
    }
    Ok(ReadDirectoryReply { entries })
}

pub(super) fn create_directory(call: &CreateDirectory) -> Result<Empty, RpcError> {
    let path = call.path.path();
    if call.recursive { fs::create_dir_all(path) } else { fs::create_dir(path) }.map_err(failed)?;
    Ok(Empty {})
}

pub(super) fn remove(call: &Remove) -> Result<Empty, RpcError> {
    let path = Path::new(call.path.path());
    if path == Path::new("/") {
        return Err(RpcError::invalid_request("the root directory cannot be removed"));
    }
    let removed =
        fs::symlink_metadata(path).and_then(|found| match (found.is_dir(), call.recursive) {
            (false, _) => fs::remove_file(path),
            (true, true) => fs::remove_dir_all(path),
            (true, false) => fs::remove_dir(path),
        });
    match removed {
        Err(error) if call.force && error.kind() == io::ErrorKind::NotFound => Ok(Empty {}),
        other => other.map(|()| Empty {}).map_err(failed),
    }
}

/// Opens a regular file without blocking.
fn open(options: &mut OpenOptions, path: &Path, follow_symlinks: bool) -> Result<File, RpcError> {
    let file = open_nonblocking(options, path, follow_symlinks).map_err(failed)?;
    must_be_file(path, &file.metadata().map_err(failed)?)?;
    Ok(file)
}

fn must_be_file(path: &Path, found: &fs::Metadata) -> Result<(), RpcError> {
    if found.is_file() {
        return Ok(());
    }
    Err(RpcError::invalid_request(format!("path `{}` is not a file", path.display())))
}

fn failed(error: io::Error) -> RpcError {
    match error.kind() {
        io::ErrorKind::NotFound => RpcError::not_found(error.to_string()),
        _ => RpcError::internal(error.to_string()),
    }
}

/// Milliseconds since 1970; negative before.
fn milliseconds(time: SystemTime) -> i64 {
    let clamp = |millis: u128| i64::try_from(millis).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => clamp(after.as_millis()),
        Err(before) => -clamp(before.duration().as_millis()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rendez_proto::rpc::code;
    use rendez_proto::rpc::path::PathUri;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }
        fn uri(&self, name: &str) -> PathUri {
            PathUri::from_path(self.path(name).to_str().unwrap()).unwrap()
        }
        fn read(&self, name: &str, follow_symlinks: bool) -> Result<Vec<u8>, RpcError> {
            let call = ReadFile { path: self.uri(name), follow_symlinks, sandbox: None };
            read_file(&call).map(|reply| reply.data)
        }
        fn write(&self, name: &str, data: &[u8]) -> Result<Empty, RpcError> {
            write_file(&WriteFile { path: self.uri(name), data: data.to_vec(), sandbox: None })
        }
        fn metadata(&self, name: &str) -> Result<Metadata, RpcError> {
            get_metadata(&GetMetadata { path: self.uri(name), sandbox: None })
        }
        fn remove(&self, name: &str, recursive: bool, force: bool) -> Result<Empty, RpcError> {
            remove(&Remove { path: self.uri(name), recursive, force, sandbox: None })
        }
        fn fifo(&self, name: &str) {
            let status = std::process::Command::new("mkfifo").arg(self.path(name)).status();
            assert!(status.unwrap().success());
        }
    }

    fn code_of<T: std::fmt::Debug>(outcome: Result<T, RpcError>) -> i64 {
        outcome.unwrap_err().code
    }

    #[test]
    fn file_is_written_read_and_overwritten() {
        let folder = Folder::new();
        folder.write("x", b"hello, world").unwrap();
        assert_eq!(folder.read("x", true).unwrap(), b"hello, world");
        folder.write("x", b"bye").unwrap();
        assert_eq!(folder.read("x", false).unwrap(), b"bye");
        assert_eq!(code_of(folder.write("no/x", b"")), code::NOT_FOUND);
        assert_eq!(code_of(folder.read("no", true)), code::NOT_FOUND);
    }

    #[test]
    fn overwriting_follows_links_in_place() {
        let folder = Folder::new();
        folder.write("x", b"1").unwrap();
        fs::set_permissions(folder.path("x"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink(folder.path("x"), folder.path("link")).unwrap();
        folder.write("link", b"2").unwrap();
        assert!(fs::symlink_metadata(folder.path("link")).unwrap().is_symlink());
        assert_eq!(folder.read("x", true).unwrap(), b"2");
        assert_eq!(fs::metadata(folder.path("x")).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn symlink_is_followed_only_if_allowed() {
        let folder = Folder::new();
        folder.write("x", b"1").unwrap();
        symlink("x", folder.path("link")).unwrap();
        assert_eq!(folder.read("link", true).unwrap(), b"1");
        assert_eq!(code_of(folder.read("link", false)), code::INTERNAL);
    }

    #[test]
    fn directories_and_fifos_are_not_files() {
        let folder = Folder::new();
        folder.fifo("fifo");
        fs::create_dir(folder.path("dir")).unwrap();
        symlink("fifo", folder.path("link")).unwrap();
        for name in ["fifo", "dir", "link"] {
            let error = folder.read(name, true).unwrap_err();
            assert_eq!(error.code, code::INVALID_REQUEST);
            assert!(error.message.ends_with("is not a file"), "{error}");
            assert_eq!(code_of(folder.write(name, b"x")), code::INVALID_REQUEST);
        }
        assert_eq!(code_of(folder.read("fifo", false)), code::INVALID_REQUEST);
    }

    #[test]
    fn too_large_file_is_refused_with_advice() {
        let folder = Folder::new();
        let file = File::create(folder.path("big")).unwrap();
        file.set_len(limits::READ_FILE_MAX_BYTES as u64).unwrap();
        assert_eq!(folder.read("big", true).unwrap().len(), limits::READ_FILE_MAX_BYTES);
        file.set_len(limits::READ_FILE_MAX_BYTES as u64 + 1).unwrap();
        let error = folder.read("big", true).unwrap_err();
        assert_eq!(error.code, code::INVALID_REQUEST);
        assert!(error.message.contains("in parts"), "{error}");
    }

    #[test]
    fn metadata_covers_links_and_targets() {
        let folder = Folder::new();
        folder.write("x", b"12345").unwrap();
        symlink("x", folder.path("link")).unwrap();
        symlink("nowhere", folder.path("dangling")).unwrap();
        let file = folder.metadata("x").unwrap();
        assert!(file.is_file && !file.is_directory && !file.is_symlink);
        assert_eq!(file.size, 5);
        assert!(file.modified_at_ms > 1_600_000_000_000);
        let link = folder.metadata("link").unwrap();
        assert!(link.is_file && link.is_symlink);
        assert!(folder.metadata("").unwrap().is_directory);
        assert_eq!(code_of(folder.metadata("dangling")), code::NOT_FOUND);
    }

    #[test]
    fn directory_listing_follows_links() {
        let folder = Folder::new();
        folder.write("file", b"").unwrap();
        fs::create_dir(folder.path("dir")).unwrap();
        symlink("dir", folder.path("link")).unwrap();
        symlink("nowhere", folder.path("dangling")).unwrap();
        folder.fifo("fifo");
        let call = ReadDirectory { path: folder.uri(""), sandbox: None };
        let mut entries: Vec<_> = read_directory(&call)
            .unwrap()
            .entries
            .into_iter()
            .map(|entry| (entry.file_name, entry.is_directory, entry.is_file))
            .collect();
        entries.sort();
        assert_eq!(
            entries,
            [
                ("dir".into(), true, false),
                ("fifo".into(), false, false),
                ("file".into(), false, true),
                ("link".into(), true, false)
            ]
        );
        let call = ReadDirectory { path: folder.uri("none"), sandbox: None };
        assert_eq!(code_of(read_directory(&call)), code::NOT_FOUND);
    }

    #[test]
    fn parents_are_created_only_if_recursive() {
        let folder = Folder::new();
        let create = |name: &str, recursive| {
            create_directory(&CreateDirectory { path: folder.uri(name), recursive, sandbox: None })
        };
        assert_eq!(code_of(create("a/b", false)), code::NOT_FOUND);
        create("a/b", true).unwrap();
        create("a/b", true).unwrap();
        create("a/c", false).unwrap();
        assert_eq!(code_of(create("a/c", false)), code::INTERNAL);
        folder.write("file", b"").unwrap();
        assert_eq!(code_of(create("file", true)), code::INTERNAL);
    }

    #[test]
    fn removing_a_link_keeps_its_target() {
        let folder = Folder::new();
        fs::create_dir_all(folder.path("dir/sub")).unwrap();
        folder.write("dir/file", b"").unwrap();
        symlink("dir", folder.path("link")).unwrap();
        folder.remove("link", true, true).unwrap();
        assert!(folder.path("dir/file").exists() && !folder.path("link").exists());
        assert_eq!(code_of(folder.remove("dir", false, true)), code::INTERNAL);
        folder.remove("dir", true, false).unwrap();
        assert!(!folder.path("dir").exists());
        folder.remove("dir", true, true).unwrap();
        assert_eq!(code_of(folder.remove("dir", true, false)), code::NOT_FOUND);
    }

    #[test]
    fn root_directory_cannot_be_removed() {
        let call = Remove {
            path: PathUri::from_path("/").unwrap(),
            recursive: false,
            force: false,
            sandbox: None,
        };
        assert_eq!(code_of(remove(&call)), code::INVALID_REQUEST);
    }

    #[test]
    fn times_before_1970_are_negative() {
        assert_eq!(milliseconds(UNIX_EPOCH - std::time::Duration::from_millis(5)), -5);
    }
}
