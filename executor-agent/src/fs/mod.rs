//! The files of the executor (docs/codex-wire.md#files, docs/codex-wire.md#paths).
//!
//! Every operation runs on a blocking thread with the rights of the agent's user.
//! Errors: -32004 for a missing file, -32600 for a request that does not fit the
//! file, -32603 with the text of the operating system for all others.

mod ops;

use std::future::Future;
use std::sync::Arc;

use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::fs::{
    CreateDirectory, GetMetadata, Metadata, ReadDirectory, ReadDirectoryReply, ReadFile,
    ReadFileReply, Remove, WriteFile,
};
use rendez_proto::rpc::process::Empty;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sandbox;

/// Files that `fs/readFile` holds in memory concurrently, over all streams: from
/// before the read until the stream has accepted the reply. Each costs at most
/// [`READ_FILE_MAX_BYTES`](rendez_proto::limits::READ_FILE_MAX_BYTES) and, during
/// its encoding, four thirds of that. A stream then holds one message of any kind.
/// A read that hangs releases its permit when its stream closes, so a broken disk
/// does not take the permits for good.
pub(crate) const FILE_READS_AT_ONCE: usize = 8;
/// Such files of one stream, so that only many slow readers can delay others. While
/// a stream sends one file, it may hold the next.
const FILE_READS_PER_STREAM: usize = 1;

const _: () = assert!(FILE_READS_PER_STREAM < FILE_READS_AT_ONCE);

/// The file service of one executor.
pub(crate) struct FileService {
    /// For files in memory.
    read_permits: Arc<Semaphore>,
}

/// Bounds the files that one stream holds in memory.
pub(crate) struct StreamFileReads(Arc<Semaphore>);

/// The right to hold a file in memory. Drop it once the reply is handed to the
/// stream.
pub(crate) struct FileReadPermit {
    _executor: OwnedSemaphorePermit,
    _stream: OwnedSemaphorePermit,
}

impl Default for FileService {
    fn default() -> Self {
        Self { read_permits: Arc::new(Semaphore::new(FILE_READS_AT_ONCE)) }
    }
}

impl Default for StreamFileReads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(FILE_READS_PER_STREAM)))
    }
}

impl FileService {
    /// The number of files in memory.
    #[cfg(test)]
    pub(crate) fn in_memory(&self) -> usize {
        FILE_READS_AT_ONCE - self.read_permits.available_permits()
    }

    /// `fs/readFile`, with the permit for the file that it returns.
    pub(crate) fn read_file(
        &self,
        reads: &StreamFileReads,
        call: ReadFile,
    ) -> impl Future<Output = Result<(ReadFileReply, FileReadPermit), RpcError>> + Send + use<>
    {
        let (of_executor, of_stream) = (self.read_permits.clone(), reads.0.clone());
        async move {
            // the semaphores are never closed
            let closed = |_| RpcError::internal("cannot read files: the service is closed");
            // in this order, so that a stream waits for shared permits only once
            let of_stream = of_stream.acquire_owned().await.map_err(closed)?;
            let of_executor = of_executor.acquire_owned().await.map_err(closed)?;
            let permit = FileReadPermit { _executor: of_executor, _stream: of_stream };
            let rules = call.sandbox.clone();
            let reply = blocking(rules, move || ops::read_file(&call)).await?;
            Ok((reply, permit))
        }
    }

    /// `fs/writeFile`
    pub(crate) fn write_file(
        &self,
        call: WriteFile,
    ) -> impl Future<Output = Result<Empty, RpcError>> + Send + use<> {
        blocking(call.sandbox.clone(), move || ops::write_file(&call))
    }

    /// `fs/getMetadata`
    pub(crate) fn get_metadata(
        &self,
        call: GetMetadata,
    ) -> impl Future<Output = Result<Metadata, RpcError>> + Send + use<> {
        blocking(call.sandbox.clone(), move || ops::get_metadata(&call))
    }

    /// `fs/readDirectory`
    pub(crate) fn read_directory(
        &self,
        call: ReadDirectory,
    ) -> impl Future<Output = Result<ReadDirectoryReply, RpcError>> + Send + use<> {
        blocking(call.sandbox.clone(), move || ops::read_directory(&call))
    }

    /// `fs/createDirectory`
    pub(crate) fn create_directory(
        &self,
        call: CreateDirectory,
    ) -> impl Future<Output = Result<Empty, RpcError>> + Send + use<> {
        blocking(call.sandbox.clone(), move || ops::create_directory(&call))
    }

    /// `fs/remove`
    pub(crate) fn remove(
        &self,
        call: Remove,
    ) -> impl Future<Output = Result<Empty, RpcError>> + Send + use<> {
        blocking(call.sandbox.clone(), move || ops::remove(&call))
    }
}

async fn blocking<T: Send + 'static>(
    rules: Option<Value>,
    work: impl FnOnce() -> Result<T, RpcError> + Send + 'static,
) -> Result<T, RpcError> {
    sandbox::check_files(rules.as_ref())?;
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RpcError::internal(error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::poll;
    use rendez_proto::rpc::path::PathUri;
    use std::pin::pin;

    #[tokio::test]
    async fn read_permit_is_held_until_dropped() {
        let files = FileService::default();
        let call = |path| ReadFile {
            path: PathUri::from_path(path).unwrap(),
            follow_symlinks: true,
            sandbox: None,
        };
        let read = |reads: &StreamFileReads| files.read_file(reads, call("/proc/self/stat"));
        let streams: Vec<_> = (0..FILE_READS_AT_ONCE).map(|_| StreamFileReads::default()).collect();
        let mut held = Vec::new();
        for stream in &streams {
            assert!(files.read_file(stream, call("/no/such")).await.is_err());
            held.push(read(stream).await.unwrap());
        }
        let mut same = pin!(read(&streams[0]));
        let late = StreamFileReads::default();
        let mut other = pin!(read(&late));
        assert!(poll!(&mut same).is_pending() && poll!(&mut other).is_pending());
        assert_eq!(files.read_permits.available_permits(), 0);
        drop(held.pop());
        let (_reply, permit) = other.await.unwrap();
        // its stream permit is free, now it waits for a shared one
        drop(held.swap_remove(0));
        let second = same.await.unwrap();
        drop((permit, second, held));
        assert_eq!(files.read_permits.available_permits(), FILE_READS_AT_ONCE);
    }
}
