//! Files on an executor, shaped like `tokio::fs`. Paths are absolute.

use rendez_proto::limits;
use rendez_proto::rpc::Method;
use rendez_proto::rpc::fs::{
    CreateDirectory, DirectoryEntry, GetMetadata, Metadata, ReadDirectory, ReadFile, Remove,
    WriteFile,
};
use rendez_proto::rpc::path::PathUri;

use crate::error::FileError;
use crate::session::Session;

/// File operations on an executor.
pub struct Files<'a> {
    session: &'a Session,
}

impl<'a> Files<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session }
    }

    /// Reads a whole file of at most [`limits::READ_FILE_MAX_BYTES`].
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, FileError> {
        let read = ReadFile { path: uri(path)?, follow_symlinks: true, sandbox: None };
        Ok(self.call::<ReadFile>(&read).await?.data)
    }

    /// Replaces the content of a file in place, or creates the file.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn write(&self, path: &str, data: &[u8]) -> Result<(), FileError> {
        if data.len() > limits::READ_FILE_MAX_BYTES {
            return Err(FileError::TooLarge { bytes: data.len() });
        }
        let write = WriteFile { path: uri(path)?, data: data.to_vec(), sandbox: None };
        self.call::<WriteFile>(&write).await.map(drop)
    }

    /// Returns kind, size and times.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn metadata(&self, path: &str) -> Result<Metadata, FileError> {
        self.call::<GetMetadata>(&GetMetadata { path: uri(path)?, sandbox: None }).await
    }

    /// Lists the entries of a directory, unsorted.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn read_dir(&self, path: &str) -> Result<Vec<DirectoryEntry>, FileError> {
        let read = ReadDirectory { path: uri(path)?, sandbox: None };
        Ok(self.call::<ReadDirectory>(&read).await?.entries)
    }

    /// Creates a directory and its parents. An existing directory is not an error.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn create_dir_all(&self, path: &str) -> Result<(), FileError> {
        let create = CreateDirectory { path: uri(path)?, recursive: true, sandbox: None };
        self.call::<CreateDirectory>(&create).await.map(drop)
    }

    /// Removes a file or an empty directory.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn remove(&self, path: &str) -> Result<(), FileError> {
        self.remove_with(path, false).await
    }

    /// Removes a directory with all its content.
    ///
    /// # Errors
    /// See [`FileError`].
    pub async fn remove_all(&self, path: &str) -> Result<(), FileError> {
        self.remove_with(path, true).await
    }

    async fn remove_with(&self, path: &str, recursive: bool) -> Result<(), FileError> {
        let remove = Remove { path: uri(path)?, recursive, force: false, sandbox: None };
        self.call::<Remove>(&remove).await.map(drop)
    }

    async fn call<M: Method>(&self, params: &M::Params) -> Result<M::Reply, FileError> {
        Ok(self.session.call::<M>(params).await?)
    }
}

fn uri(path: &str) -> Result<PathUri, FileError> {
    PathUri::from_path(path).map_err(|error| FileError::InvalidPath(error.to_string()))
}
