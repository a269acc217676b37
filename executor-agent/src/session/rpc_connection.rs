//! The JSON-RPC connection of one stream: its phases and its calls.
//!
//! ```text
//!              initialize               initialized
//!   Uninitialized ─────────► Initializing ─────────► Ready ──stream closed──► detached
//!       ▲ │ failed                │
//!       └─┘                       └─ other calls: -32600
//! ```
//!
//! * Up to [`REQUESTS_IN_FLIGHT`] requests run concurrently. While that many run, the
//!   connection receives no more messages: backpressure for the peer.
//! * Calls that wait for a process do not count and have bounds of their own, so a
//!   child that does not read or write blocks no other call.
//! * The connection notices the end of the stream also while it receives nothing.
//!   Calls to processes that arrived before the end still take effect; their replies
//!   are dropped.
//! * One task sends the notifications, one message at a time, while the stream has
//!   room. A slow peer slows down its processes, not the agent.
//! * An invalid message resets the stream. Unknown notifications and responses
//!   without a request are ignored.

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

/// Requests of one stream that run concurrently, without those that wait for a
/// process ([`WRITES_UNANSWERED_PER_STREAM`], [`READS_WAITING_PER_STREAM`]). While
/// so many run, the stream is not read.
const REQUESTS_IN_FLIGHT: usize = 64;
/// Waiting writes to processes, which do not count in [`REQUESTS_IN_FLIGHT`]: as
/// many as all processes of a session may have, so that processes that do not read
/// never block the call that ends them. Each costs a task of about 1 KiB; the stdin
/// budget bounds its bytes.
const WRITES_UNANSWERED_PER_STREAM: usize =
    limits::WRITES_UNANSWERED_PER_PROCESS * PROCESSES_PER_SESSION;
/// Calls of `process/read` that wait for an event of a process, which do not count
/// in [`REQUESTS_IN_FLIGHT`]: one per process. Further calls are answered at once,
/// as if they had no wait time.
pub(super) const READS_WAITING_PER_STREAM: usize = PROCESSES_PER_SESSION;

/// How the service of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// The stream closed, or the executor shut down.
    Closed,
    /// The peer sent an invalid message: reset the stream.
    InvalidMessage,
}

impl From<StreamClosed> for StreamEnd {
    fn from(StreamClosed: StreamClosed) -> Self {
        Self::Closed
    }
}

/// Serves one stream until it closes or the executor shuts down, then detaches its
/// session.
pub(crate) async fn serve<M: MessageStream>(
    sessions: Arc<SessionManager>,
    messages: Arc<M>,
) -> StreamEnd {
    let mut connection = RpcConnection::new(sessions.clone(), messages);
    let id = connection.id;
    let served = async {
        while let Some(message) = connection.messages.recv().await {
            if let Err(why) = connection.handle(&message).await {
                return why;
            }
        }
        StreamEnd::Closed
    };
    let why = sessions.until_shutdown(served).await.unwrap_or(StreamEnd::Closed);
    // the tasks hold the stream, too
    connection.tasks.shutdown().await;
    tracing::debug!(connection = id.0, "connection closed");
    why
}

struct RpcConnection<M> {
    sessions: Arc<SessionManager>,
    id: ConnectionId,
    messages: Arc<M>,
    request_permits: Arc<Semaphore>,
    /// For writes, which wait for a process to read.
    write_permits: Arc<Semaphore>,
    /// For reads, which wait for an event of a process.
    read_permits: Arc<Semaphore>,
    /// Bounds the files that this stream holds in memory.
    file_reads: StreamFileReads,
    /// Running requests and the sender of notifications, which end with the
    /// connection. Declared before `phase`: drop order makes the sender end before
    /// the session is detached.
    tasks: JoinSet<()>,
    phase: SessionPhase,
}

enum SessionPhase {
    Uninitialized,
    Initializing(AttachedSession),
    Ready(AttachedSession),
}

impl<M: MessageStream> RpcConnection<M> {
    fn new(sessions: Arc<SessionManager>, messages: Arc<M>) -> Self {
        let semaphore = |most| Arc::new(Semaphore::new(most));
        Self {
            id: sessions.next_connection_id(),
            sessions,
            messages,
            request_permits: semaphore(REQUESTS_IN_FLIGHT),
            write_permits: semaphore(WRITES_UNANSWERED_PER_STREAM),
            read_permits: semaphore(READS_WAITING_PER_STREAM),
            file_reads: StreamFileReads::default(),
            tasks: JoinSet::new(),
            phase: SessionPhase::Uninitialized,
        }
    }

    /// Handles one message.
    ///
    /// # Errors
    /// The connection ends.
    async fn handle(&mut self, message: &Bytes) -> Result<(), StreamEnd> {
        // remove finished tasks
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
                tracing::debug!(connection = self.id.0, "response without a request ignored");
                Ok(())
            }
            Err(_) => {
                tracing::debug!(connection = self.id.0, bytes = message.len(), "invalid message");
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
        let max_chunk = call.rendez.unwrap_or_default().max_chunk;
        let session =
            self.sessions.attach(self.id, call.resume_session_id, chunk_bytes(max_chunk))?;
        tracing::debug!(connection = self.id.0, resumed, "session attached");
        let answer = InitializeReply {
            session_id: session.id().clone(),
            environment_info: Some(self.sessions.environment().clone()),
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
            // sent too early or twice
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
            methods::dispatch(&self.sessions, &self.file_reads, supervisor, id, method, &params);
        let messages = self.messages.clone();
        self.tasks.spawn(async move {
            let reply = answer.await;
            // a closed stream ends the connection elsewhere
            let _ = messages.send(reply.message).await;
            drop((reply.permit, permit));
        });
        Ok(())
    }

    /// Spawns a read that waits for an event. Returns false if the read does not
    /// wait, or if too many reads wait. The reply may be large, so building it takes
    /// a request permit.
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

    /// Waits for a request permit. Once the stream is closed, drops the running
    /// requests, whose replies are lost anyway, in favour of requests that arrived
    /// before the end.
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

/// Sends the notifications of a session's processes until the stream closes.
async fn push_notifications<M: MessageStream>(messages: Arc<M>, supervisor: Arc<Supervisor>) {
    loop {
        let message = supervisor.next_notification().await;
        if messages.send(Bytes::from(message)).await.is_err() {
            return;
        }
    }
}

/// The largest chunk of output for a client that accepts `max_chunk` bytes; 0 for a
/// stock client, which expects the stock size.
fn chunk_bytes(max_chunk: u64) -> usize {
    usize::try_from(max_chunk)
        .unwrap_or(usize::MAX)
        .clamp(limits::PROCESS_CHUNK_MAX_BYTES, limits::PROCESS_CHUNK_LARGE_MAX_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{process_id, session_manager};
    use futures_util::poll;
    use rendez_proto::rpc::{notification, path::PathUri, request};
    use rendez_rpc::duplex::duplex;
    use std::future::pending;

    /// A disk hangs, then the client disconnects.
    #[tokio::test]
    async fn calls_before_the_end_take_effect() {
        let (client, ours) = duplex(64);
        let mut connection = RpcConnection::new(session_manager(), Arc::new(ours));
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
            assert!(poll!(&mut handled).is_pending(), "no request permit is free");
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
