//! One stream: the order of its calls, and who answers them.
//!
//! ```text
//!             initialize              initialized
//!   Fresh ───────────────► Initializing ─────────► Ready ──(stream over)──► detached
//!     ▲ │ failed                │                    │
//!     └─┘                       └─ other calls: -32600
//! ```
//!
//! * Requests run at once, [`limits::REQUESTS_IN_FLIGHT`] of them; while that
//!   many run, no more messages are taken, and the peer is slowed down.
//! * Notifications go out from one task, one whole message at a time, while
//!   the stream has room: a slow peer slows its processes down, not the agent.
//! * What is not a message ends the stream; unknown notifications and answers
//!   to questions that nobody asked are ignored.

use std::sync::Arc;

use bytes::Bytes;
use rendez_proto::limits;
use rendez_proto::rpc::session::{
    EXTENSIONS_VERSION, Extensions, Initialize, InitializeReply, Initialized,
};
use rendez_proto::rpc::{
    Json, Message, Method as _, Notification as _, RequestId, RpcError, refusal,
};
use rendez_rpc::{Messages, StreamClosed};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::executor::{Attached, Executor};
use super::methods;
use super::table::ConnectionId;
use crate::process::supervisor::Supervisor;

/// Serves one stream until it is over, or until the executor is shut down. The
/// session, if one was opened, is detached then.
pub async fn serve<M: Messages>(executor: Arc<Executor>, messages: Arc<M>) {
    let id = executor.new_connection();
    let mut connection = Connection {
        executor: executor.clone(),
        id,
        messages,
        slots: Arc::new(Semaphore::new(limits::REQUESTS_IN_FLIGHT)),
        tasks: JoinSet::new(),
        phase: Phase::Fresh,
    };
    let served = async {
        while let Some(message) = connection.messages.recv().await {
            if connection.handle(&message).await.is_err() {
                break;
            }
        }
    };
    // shut down or not: the stream is over
    let _ = executor.until_shutdown(served).await;
    // they hold the stream, too
    connection.tasks.shutdown().await;
    tracing::debug!(connection = id.0, "stream over");
}

struct Connection<M> {
    executor: Arc<Executor>,
    id: ConnectionId,
    messages: Arc<M>,
    slots: Arc<Semaphore>,
    /// Running requests and the pusher; they end with the connection. Declared
    /// before `phase`, so that nothing is pushed after the detach.
    tasks: JoinSet<()>,
    phase: Phase,
}

enum Phase {
    Fresh,
    Initializing(Attached),
    Ready(Attached),
}

impl<M: Messages> Connection<M> {
    /// An error ends the connection.
    async fn handle(&mut self, message: &Bytes) -> Result<(), StreamClosed> {
        // finished tasks
        while self.tasks.try_join_next().is_some() {}
        match Message::parse(message) {
            Ok(Message::Request { id, method, params }) => self.request(id, &method, params).await,
            Ok(Message::Notification { method, .. }) => {
                if method == Initialized::NAME {
                    self.initialized();
                } else {
                    tracing::debug!(connection = self.id.0, "unknown notification ignored");
                }
                Ok(())
            }
            Ok(Message::Response { .. }) => {
                tracing::debug!(connection = self.id.0, "unasked answer ignored");
                Ok(())
            }
            Err(_) => {
                tracing::debug!(connection = self.id.0, bytes = message.len(), "not a message");
                Err(StreamClosed)
            }
        }
    }

    async fn request(
        &mut self,
        id: RequestId,
        method: &str,
        params: Json,
    ) -> Result<(), StreamClosed> {
        let missing = match &self.phase {
            Phase::Ready(session) => {
                let supervisor = session.supervisor().clone();
                return self.run(id, &supervisor, method, params).await;
            }
            Phase::Fresh if method == Initialize::NAME => {
                let answer = methods::answer(&id, self.initialize(&params));
                return self.messages.send(answer).await;
            }
            Phase::Fresh => "call initialize",
            Phase::Initializing(_) => "send initialized",
        };
        let error = match methods::family(method) {
            _ if method == Initialize::NAME => {
                RpcError::invalid_request("initialize may only be sent once per connection")
            }
            Some(family) => RpcError::invalid_request(format!(
                "client must {missing} before using {family} methods"
            )),
            None => RpcError::unknown_method(&methods::shorten(method)),
        };
        self.messages.send(refusal(&id, &error).into()).await
    }

    fn initialize(&mut self, params: &Json) -> Result<InitializeReply, RpcError> {
        let call = methods::decode::<Initialize>(params)?;
        let resumed = call.resume_session_id.is_some();
        let takes = call.rendez.unwrap_or_default().max_chunk;
        let session = self.executor.attach(self.id, call.resume_session_id, chunk_bytes(takes))?;
        tracing::debug!(connection = self.id.0, resumed, "session attached");
        let answer = InitializeReply {
            session_id: session.id().clone(),
            environment_info: Some(self.executor.environment().clone()),
            rendez: Some(Extensions {
                version: EXTENSIONS_VERSION,
                close_stdin: true,
                signals: true,
                stdin_window: true,
            }),
        };
        self.phase = Phase::Initializing(session);
        Ok(answer)
    }

    fn initialized(&mut self) {
        match std::mem::replace(&mut self.phase, Phase::Fresh) {
            Phase::Initializing(session) => {
                self.tasks.spawn(push(self.messages.clone(), session.supervisor().clone()));
                self.phase = Phase::Ready(session);
            }
            // too early or again: nothing to do
            other => self.phase = other,
        }
    }

    async fn run(
        &mut self,
        id: RequestId,
        supervisor: &Arc<Supervisor>,
        method: &str,
        params: Json,
    ) -> Result<(), StreamClosed> {
        // the semaphore is never closed
        let slot = self.slots.clone().acquire_owned().await.map_err(|_| StreamClosed)?;
        let answer = methods::call(&self.executor, supervisor, id, method, &params);
        let messages = self.messages.clone();
        self.tasks.spawn(async move {
            // a stream that is over ends the connection by itself
            let _ = messages.send(answer.await).await;
            drop(slot);
        });
        Ok(())
    }
}

/// Notifications of the session's processes, until the stream is over.
async fn push<M: Messages>(messages: Arc<M>, supervisor: Arc<Supervisor>) {
    loop {
        let message = supervisor.next_notification().await;
        if messages.send(Bytes::from(message)).await.is_err() {
            return;
        }
    }
}

/// How large chunks of output are for a client that takes `takes` bytes, or
/// does not say: stock clients expect no more than theirs.
fn chunk_bytes(takes: u64) -> usize {
    usize::try_from(takes)
        .unwrap_or(usize::MAX)
        .clamp(limits::PROCESS_CHUNK_MAX_BYTES, limits::PROCESS_CHUNK_LARGE_MAX_BYTES)
}
