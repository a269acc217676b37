//! Files of the executor (WIRE.md, sections 6.3 and 6.4).
//!
//! Every operation runs on a blocking thread, with the rights of the agent's
//! user. Errors: -32004 if something is not there, -32600 for a request that
//! makes no sense for what is there, -32603 with the operating system's text
//! for the rest.

mod ops;

use std::future::Future;
use std::sync::Arc;

use rendez_proto::limits;
use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::fs::{
    CreateDirectory, GetMetadata, Metadata, ReadDirectory, ReadDirectoryReply, ReadFile,
    ReadFileReply, Remove, WriteFile,
};
use rendez_proto::rpc::process::Empty;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::sandbox;

/// The file service of one executor.
pub(crate) struct Files {
    /// Whole files in memory at once.
    reads: Arc<Semaphore>,
}

impl Default for Files {
    fn default() -> Self {
        Self { reads: Arc::new(Semaphore::new(limits::FILE_READS_AT_ONCE)) }
    }
}

impl Files {
    /// `fs/readFile`
    pub(crate) fn read_file(
        &self,
        call: ReadFile,
    ) -> impl Future<Output = Result<ReadFileReply, RpcError>> + Send + use<> {
        let reads = self.reads.clone();
        async move {
            // the semaphore is never closed
            let turn = reads.acquire_owned().await;
            let outcome = blocking(call.sandbox.clone(), move || ops::read_file(&call)).await;
            drop(turn);
            outcome
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
    sandbox::check(rules.as_ref())?;
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RpcError::internal(error.to_string())))
}
