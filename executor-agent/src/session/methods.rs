//! From a method's name to the service that answers it.
//!
//! [`call`] decodes the parameters and calls the service at once, so that calls
//! take effect in the order of their requests; what takes time is left to the
//! returned future.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use rendez_proto::rpc::session::{
    EnvironmentInfo, EnvironmentStatus, EnvironmentStatusReply, Initialize,
};
use rendez_proto::rpc::{Method, RpcError, fs, process};
use serde_json::Value;

use super::executor::Executor;
use crate::process::supervisor::Supervisor;

/// An answer that may take time.
pub(super) type Answer = Pin<Box<dyn Future<Output = Result<Value, RpcError>> + Send>>;

/// Whether there is such a method, and what the stock executor calls its kind
/// when it asks for `initialize` first.
pub(super) fn family(method: &str) -> Option<&'static str> {
    const PROCESS: [&str; 6] = [
        process::Start::NAME,
        process::Write::NAME,
        process::CloseStdin::NAME,
        process::Signal::NAME,
        process::Terminate::NAME,
        process::Read::NAME,
    ];
    const FILES: [&str; 6] = [
        fs::ReadFile::NAME,
        fs::WriteFile::NAME,
        fs::GetMetadata::NAME,
        fs::ReadDirectory::NAME,
        fs::CreateDirectory::NAME,
        fs::Remove::NAME,
    ];
    match method {
        EnvironmentInfo::NAME => Some("environment info"),
        EnvironmentStatus::NAME => Some("environment status"),
        _ if PROCESS.contains(&method) => Some("exec"),
        _ if FILES.contains(&method) => Some("filesystem"),
        _ => None,
    }
}

/// Calls `method` in a session that is ready.
pub(super) fn call(
    executor: &Executor,
    supervisor: &Arc<Supervisor>,
    method: &str,
    params: Value,
) -> Answer {
    let files = executor.files();
    match method {
        Initialize::NAME => {
            let again =
                RpcError::invalid_request("initialize may only be sent once per connection");
            Box::pin(ready(Err(again)))
        }
        EnvironmentInfo::NAME => {
            typed::<EnvironmentInfo, _>(params, |_| ready(Ok(executor.environment().clone())))
        }
        EnvironmentStatus::NAME => typed::<EnvironmentStatus, _>(params, |_| {
            ready(Ok(EnvironmentStatusReply { status: EnvironmentStatusReply::READY.to_owned() }))
        }),
        process::Start::NAME => typed::<process::Start, _>(params, |call| supervisor.start(call)),
        process::Write::NAME => typed::<process::Write, _>(params, |call| supervisor.write(call)),
        process::CloseStdin::NAME => {
            typed::<process::CloseStdin, _>(params, |call| supervisor.close_stdin(&call))
        }
        process::Signal::NAME => {
            typed::<process::Signal, _>(params, |call| ready(Ok(supervisor.signal(&call))))
        }
        process::Terminate::NAME => {
            typed::<process::Terminate, _>(params, |call| ready(Ok(supervisor.terminate(&call))))
        }
        process::Read::NAME => typed::<process::Read, _>(params, |call| supervisor.read(call)),
        fs::ReadFile::NAME => typed::<fs::ReadFile, _>(params, |call| files.read_file(call)),
        fs::WriteFile::NAME => typed::<fs::WriteFile, _>(params, |call| files.write_file(call)),
        fs::GetMetadata::NAME => {
            typed::<fs::GetMetadata, _>(params, |call| files.get_metadata(call))
        }
        fs::ReadDirectory::NAME => {
            typed::<fs::ReadDirectory, _>(params, |call| files.read_directory(call))
        }
        fs::CreateDirectory::NAME => {
            typed::<fs::CreateDirectory, _>(params, |call| files.create_directory(call))
        }
        fs::Remove::NAME => typed::<fs::Remove, _>(params, |call| files.remove(call)),
        unknown => Box::pin(ready(Err(RpcError::unknown_method(&shorten(unknown))))),
    }
}

/// Parameters of `M`; absent ones are empty ones.
pub(super) fn decode<M: Method>(params: Value) -> Result<M::Params, RpcError> {
    let params = if params.is_null() { Value::Object(serde_json::Map::new()) } else { params };
    serde_json::from_value(params).map_err(|error| RpcError::invalid_params(error.to_string()))
}

/// The JSON of a reply.
pub(super) fn encode<T: serde::Serialize>(reply: &T) -> Result<Value, RpcError> {
    serde_json::to_value(reply).map_err(|error| RpcError::internal(error.to_string()))
}

/// A name of the peer's, for an error message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

fn typed<M: Method, F>(params: Value, serve: impl FnOnce(M::Params) -> F) -> Answer
where
    F: Future<Output = Result<M::Reply, RpcError>> + Send + 'static,
{
    match decode::<M>(params) {
        Err(error) => Box::pin(ready(Err(error))),
        Ok(params) => {
            let reply = serve(params);
            Box::pin(async move { encode(&reply.await?) })
        }
    }
}
