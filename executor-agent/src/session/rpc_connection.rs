//! One stream: the order of its calls, and who answers them.
//!
//! ```text
//!             initialize              initialized
//!   Fresh ───────────────► Initializing ─────────► Ready ──(stream over)──► detached
//!     ▲ │ failed                │                    │
//!     └─┘                       └─ other calls: -32600
//! ```
//!
//! * Requests run at once, [`REQUESTS_IN_FLIGHT`] of them; while that
//!   many run, no more messages are taken, and the peer is slowed down.
//! * What waits for a process is not among them, and has bounds of its own: a
//!   child that does not read, or says nothing, keeps out no other call.
//! * The end of the stream is noticed even while nothing is taken. Calls to
//!   processes that arrived before it still take effect, though nobody waits for
//!   their answers.
//! * Notifications go out from one task, one whole message at a time, while
//!   the stream has room: a slow peer slows its processes down, not the agent.
//! * What is not a message ends the stream by a reset; unknown notifications and answers
//!   to questions that nobody asked are ignored.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{Either, select};
use rendez_proto::limits;
use rendez_proto::rpc::session::{
    EXTENSIONS_VERSION, Extensions, Initialize, InitializeReply, Initialized,
};
use rendez_proto::rpc::{
    Json, Message, Method as _, Notification as _, RequestId, RpcError, process, refusal,
};
use rendez_rpc::{MessageStream, StreamClosed};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::manager::{AttachedSession, SessionManager};
use super::methods;
use super::table::ConnectionId;
use crate::fs::StreamFileReads;
use crate::process::supervisor::Supervisor;
use crate::process::table::PROCESSES_PER_SESSION;

/// Requests of one stream that run at once, but for those that wait for a
/// process: [`WRITES_UNANSWERED_PER_STREAM`] and [`READS_WAITING_PER_STREAM`].
/// While so many run, the stream is not read.
const REQUESTS_IN_FLIGHT: usize = 64;
/// Writes to processes that wait without counting in [`REQUESTS_IN_FLIGHT`]: as
/// many as all processes of a session may have, so that processes that do not
/// read never keep out the call that ends them. Each costs a task of about 1 KiB;
/// the stdin budget bounds its bytes.
const WRITES_UNANSWERED_PER_STREAM: usize =
    limits::WRITES_UNANSWERED_PER_PROCESS * PROCESSES_PER_SESSION;
/// Calls of `process/read` that wait for news of a process without counting in
/// [`REQUESTS_IN_FLIGHT`]: one for each process. Further ones are answered at
/// once, as if there was no time to wait.
pub(super) const READS_WAITING_PER_STREAM: usize = PROCESSES_PER_SESSION;

/// Why a stream is served no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// It is over, or the executor is shut down.
    Closed,
    /// The peer sent what is no message: it should be told by a reset.
    InvalidMessage,
}

impl From<StreamClosed> for StreamEnd {
    fn from(StreamClosed: StreamClosed) -> Self {
        Self::Closed
    }
}

/// Serves one stream until it is over, or until the executor is shut down. The
/// session, if one was opened, is detached then.
pub async fn serve<M: MessageStream>(executor: Arc<SessionManager>, messages: Arc<M>) -> StreamEnd {
    let mut connection = RpcConnection::new(executor.clone(), messages);
    let id = connection.id;
    let served = async {
        while let Some(message) = connection.messages.recv().await {
            if let Err(why) = connection.handle(&message).await {
                return why;
            }
        }
        StreamEnd::Closed
    };
    let why = executor.until_shutdown(served).await.unwrap_or(StreamEnd::Closed);
    // they hold the stream, too
    connection.tasks.shutdown().await;
    tracing::debug!(connection = id.0, "stream over");
    why
}

struct RpcConnection<M> {
    executor: Arc<SessionManager>,
    id: ConnectionId,
    messages: Arc<M>,
    request_permits: Arc<Semaphore>,
    /// For what waits for a process to read.
    write_permits: Arc<Semaphore>,
    /// For what waits for a process to say something.
    read_permits: Arc<Semaphore>,
    /// Its whole files in memory.
    file_reads: StreamFileReads,
    /// Running requests and the pusher; they end with the connection. Declared
    /// before `phase`, so that nothing is pushed after the detach.
    tasks: JoinSet<()>,
    phase: SessionPhase,
}

enum SessionPhase {
    Uninitialized,
    Initializing(AttachedSession),
    Ready(AttachedSession),
}

impl<M: MessageStream> RpcConnection<M> {
    fn new(executor: Arc<SessionManager>, messages: Arc<M>) -> Self {
        let semaphore = |most| Arc::new(Semaphore::new(most));
        Self {
            id: executor.next_connection_id(),
            executor,
            messages,
            request_permits: semaphore(REQUESTS_IN_FLIGHT),
            write_permits: semaphore(WRITES_UNANSWERED_PER_STREAM),
            read_permits: semaphore(READS_WAITING_PER_STREAM),
            file_reads: StreamFileReads::default(),
            tasks: JoinSet::new(),
            phase: SessionPhase::Uninitialized,
        }
    }

    /// An error ends the connection.
    async fn handle(&mut self, message: &Bytes) -> Result<(), StreamEnd> {
        // finished tasks
        while self.tasks.try_join_next().is_some() {}
        match Message::parse(message) {
            Ok(Message::Request { id, method, params }) => {
                Ok(self.request(id, &method, params).await?)
            }
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
                Err(StreamEnd::InvalidMessage)
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
            SessionPhase::Ready(session) => {
                let supervisor = session.supervisor().clone();
                return self.dispatch(id, &supervisor, method, params).await;
            }
            SessionPhase::Uninitialized if method == Initialize::NAME => {
                let answer = methods::answer(&id, self.initialize(&params));
                return self.messages.send(answer).await;
            }
            SessionPhase::Uninitialized => "call initialize",
            SessionPhase::Initializing(_) => "send initialized",
        };
        let error = match methods::method_family(method) {
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
        self.phase = SessionPhase::Initializing(session);
        Ok(answer)
    }

    fn initialized(&mut self) {
        match std::mem::replace(&mut self.phase, SessionPhase::Uninitialized) {
            SessionPhase::Initializing(session) => {
                self.tasks
                    .spawn(push_notifications(self.messages.clone(), session.supervisor().clone()));
                self.phase = SessionPhase::Ready(session);
            }
            // too early or again: nothing to do
            other => self.phase = other,
        }
    }

    async fn dispatch(
        &mut self,
        id: RequestId,
        supervisor: &Arc<Supervisor>,
        method: &str,
        params: Json,
    ) -> Result<(), StreamClosed> {
        let permit = match method {
            process::Write::NAME | process::CloseStdin::NAME => {
                self.write_permits.clone().try_acquire_owned().ok()
            }
            process::Read::NAME if self.spawn_waiting_read(&id, supervisor, &params) => {
                return Ok(());
            }
            _ => None,
        };
        let permit = match permit {
            Some(permit) => permit,
            None => self.request_permit().await?,
        };
        let answer =
            methods::dispatch(&self.executor, &self.file_reads, supervisor, id, method, &params);
        let messages = self.messages.clone();
        self.tasks.spawn(async move {
            let reply = answer.await;
            // a stream that is over ends the connection by itself
            let _ = messages.send(reply.message).await;
            drop((reply.permit, permit));
        });
        Ok(())
    }

    /// Lets a read wait for news, if it is one that waits and there is a permit
    /// for it. What it then reads may be large: for that it needs a request_permit.
    fn spawn_waiting_read(
        &mut self,
        id: &RequestId,
        supervisor: &Arc<Supervisor>,
        params: &Json,
    ) -> bool {
        let Ok(read) = methods::decode::<process::Read>(params) else { return false };
        let Some(news) = supervisor.wait_for_event(&read) else { return false };
        let Ok(permit) = self.read_permits.clone().try_acquire_owned() else { return false };
        let (request_permits, messages) = (self.request_permits.clone(), self.messages.clone());
        let (id, supervisor) = (id.clone(), supervisor.clone());
        self.tasks.spawn(async move {
            news.await;
            // the semaphore is never closed
            let request_permit = request_permits.acquire_owned().await;
            let answer = methods::answer(&id, supervisor.read(&read));
            let _ = messages.send(answer).await;
            drop((request_permit, permit));
        });
        true
    }

    /// A request_permit, once one is free. When the stream is over nobody waits for what
    /// runs: it is dropped, to make room for what arrived before the end.
    async fn request_permit(&mut self) -> Result<OwnedSemaphorePermit, StreamClosed> {
        loop {
            let permit = pin!(self.request_permits.clone().acquire_owned());
            let closed = pin!(self.messages.ended());
            match select(permit, closed).await {
                // the semaphore is never closed
                Either::Left((permit, _)) => return permit.map_err(|_| StreamClosed),
                Either::Right(_) => {}
            }
            self.tasks.shutdown().await;
        }
    }
}

/// Notifications of the session's processes, until the stream is over.
async fn push_notifications<M: MessageStream>(messages: Arc<M>, supervisor: Arc<Supervisor>) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{executor, process_id};
    use futures_util::poll;
    use rendez_proto::rpc::{notification, path::PathUri, request};
    use rendez_rpc::duplex::duplex;
    use std::future::pending;

    /// A disk that hangs, and then the client dies.
    #[tokio::test]
    async fn calls_before_the_end_take_effect() {
        let (client, ours) = duplex(64);
        let mut connection = RpcConnection::new(executor(), Arc::new(ours));
        let sleeper = process::Start::new(
            process_id("p"),
            ["/bin/sleep", "1000"].map(str::to_owned).to_vec(),
            PathUri::from_path("/").unwrap(),
        );
        for message in [
            request::<Initialize>(&RequestId::Number(1), &Initialize::default()),
            notification(&Initialized {}),
            request::<process::Start>(&RequestId::Number(2), &sleeper),
        ] {
            connection.handle(&message.into()).await.unwrap();
        }
        while connection.request_permits.available_permits() < REQUESTS_IN_FLIGHT {
            tokio::task::yield_now().await;
        }
        let SessionPhase::Ready(session) = &connection.phase else { panic!("no session") };
        let supervisor = session.supervisor().clone();
        for _ in 0..REQUESTS_IN_FLIGHT {
            let slot = connection.request_permits.clone().acquire_owned().await.unwrap();
            connection.tasks.spawn(async move {
                pending::<()>().await;
                drop(slot);
            });
        }
        let terminate = process::Terminate { process_id: process_id("p") };
        let message = request::<process::Terminate>(&RequestId::Number(3), &terminate).into();
        {
            let mut handled = pin!(connection.handle(&message));
            assert!(poll!(&mut handled).is_pending(), "it has a slot");
            drop(client);
            handled.await.unwrap();
        }
        let read = process::Read {
            process_id: process_id("p"),
            after_seq: None,
            max_bytes: None,
            wait_ms: Some(60_000),
        };
        supervisor.wait_for_event(&read).unwrap().await;
        assert_eq!(supervisor.read(&read).unwrap().exit_code, Some(137));
    }
}
