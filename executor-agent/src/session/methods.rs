//! Maps method names to the services that answer them.
//!
//! [`dispatch`] decodes the parameters and calls the service at once, so that calls
//! take effect in the order of their requests. The returned future does the slow
//! part. The wait of `process/read` comes before ([`Supervisor::wait_for_event`]).

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::limits;
use rendez_proto::rpc::session::{
    EnvironmentInfo, EnvironmentStatus, EnvironmentStatusReply, Initialize,
};
use rendez_proto::rpc::{Json, Method, RequestId, RpcError, fs, process, refusal, response};
use serde::Serialize;

use super::manager::SessionManager;
use crate::fs::{FileReadPermit, StreamFileReads};
use crate::process::supervisor::Supervisor;

/// The reply to a call, in the future.
pub(super) type ReplyFuture = Pin<Box<dyn Future<Output = Reply> + Send>>;

/// The message that answers a call.
pub(super) struct Reply {
    pub(super) message: Bytes,
    /// Held until the message is handed to the stream.
    pub(super) permit: Option<FileReadPermit>,
}

impl From<Bytes> for Reply {
    fn from(message: Bytes) -> Self {
        Self { message, permit: None }
    }
}

/// The name of a group of methods in the errors of the stock executor; `None` for
/// an unknown method.
pub(super) fn method_family(method: &str) -> Option<&'static str> {
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

/// Calls `method` in a session that is ready. `reads` belongs to the stream.
pub(super) fn dispatch(
    sessions: &SessionManager,
    reads: &StreamFileReads,
    supervisor: &Arc<Supervisor>,
    id: RequestId,
    method: &str,
    params: &Json,
) -> ReplyFuture {
    let files = sessions.files();
    match method {
        Initialize::NAME => {
            let again =
                RpcError::invalid_request("initialize may only be sent once per connection");
            refuse(&id, &again)
        }
        EnvironmentInfo::NAME => reply_to::<EnvironmentInfo, _>(id, params, |_| {
            ready(Ok(sessions.environment().clone()))
        }),
        EnvironmentStatus::NAME => reply_to::<EnvironmentStatus, _>(id, params, |_| {
            ready(Ok(EnvironmentStatusReply { status: EnvironmentStatusReply::READY.to_owned() }))
        }),
        process::Start::NAME => {
            reply_to::<process::Start, _>(id, params, |call| supervisor.start(call))
        }
        process::Write::NAME => {
            reply_to::<process::Write, _>(id, params, |call| supervisor.write(call))
        }
        process::CloseStdin::NAME => {
            reply_to::<process::CloseStdin, _>(id, params, |call| supervisor.close_stdin(&call))
        }
        process::Signal::NAME => {
            reply_to::<process::Signal, _>(id, params, |call| ready(Ok(supervisor.signal(&call))))
        }
        process::Terminate::NAME => reply_to::<process::Terminate, _>(id, params, |call| {
            ready(Ok(supervisor.terminate(&call)))
        }),
        process::Read::NAME => {
            reply_to::<process::Read, _>(id, params, |call| ready(supervisor.read(&call)))
        }
        fs::ReadFile::NAME => match decode::<fs::ReadFile>(params) {
            Err(error) => refuse(&id, &error),
            Ok(params) => {
                let read = files.read_file(reads, params);
                Box::pin(async move {
                    let (outcome, permit) = match read.await {
                        Ok((file, permit)) => (Ok(file), Some(permit)),
                        Err(error) => (Err(error), None),
                    };
                    Reply { message: answer(&id, outcome), permit }
                })
            }
        },
        fs::WriteFile::NAME => {
            reply_to::<fs::WriteFile, _>(id, params, |call| files.write_file(call))
        }
        fs::GetMetadata::NAME => {
            reply_to::<fs::GetMetadata, _>(id, params, |call| files.get_metadata(call))
        }
        fs::ReadDirectory::NAME => {
            reply_to::<fs::ReadDirectory, _>(id, params, |call| files.read_directory(call))
        }
        fs::CreateDirectory::NAME => {
            reply_to::<fs::CreateDirectory, _>(id, params, |call| files.create_directory(call))
        }
        fs::Remove::NAME => reply_to::<fs::Remove, _>(id, params, |call| files.remove(call)),
        unknown => refuse(&id, &RpcError::unknown_method(&shorten(unknown))),
    }
}

/// Decodes the parameters of `M`; absent parameters are an empty object.
pub(super) fn decode<M: Method>(params: &Json) -> Result<M::Params, RpcError> {
    let parsed = if params.is_null() { Json::empty().parse() } else { params.parse() };
    parsed.map_err(|error| RpcError::invalid_params(error.to_string()))
}

/// The message that answers the call `id`.
pub(super) fn answer<T: Serialize>(id: &RequestId, outcome: Result<T, RpcError>) -> Bytes {
    let message = response(id, outcome.as_ref());
    // a larger message would reset the stream
    if message.len() > limits::APPLICATION_MESSAGE_MAX_BYTES {
        let error = RpcError::invalid_request(format!(
            "the reply has {} bytes, more than the {} of the largest message; request less",
            message.len(),
            limits::APPLICATION_MESSAGE_MAX_BYTES
        ));
        return refusal(id, &error).into();
    }
    message.into()
}

/// Cuts a name that the peer sent for an error message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

fn refuse(id: &RequestId, error: &RpcError) -> ReplyFuture {
    Box::pin(ready(Bytes::from(refusal(id, error)).into()))
}

fn reply_to<M: Method, F>(
    id: RequestId,
    params: &Json,
    serve: impl FnOnce(M::Params) -> F,
) -> ReplyFuture
where
    F: Future<Output = Result<M::Reply, RpcError>> + Send + 'static,
{
    match decode::<M>(params) {
        Err(error) => refuse(&id, &error),
        Ok(params) => {
            let reply = serve(params);
            Box::pin(async move { answer(&id, reply.await).into() })
        }
    }
}
