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

use super::executor::{Attached, Executor};
use super::methods;
use super::table::ConnectionId;
use crate::fs::Reads;
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
pub enum Served {
    /// It is over, or the executor is shut down.
    Over,
    /// The peer sent what is no message: it should be told by a reset.
    Nonsense,
}

impl From<StreamClosed> for Served {
    fn from(StreamClosed: StreamClosed) -> Self {
        Self::Over
    }
}

/// Serves one stream until it is over, or until the executor is shut down. The
/// session, if one was opened, is detached then.
pub async fn serve<M: MessageStream>(executor: Arc<Executor>, messages: Arc<M>) -> Served {
    let mut connection = Connection::new(executor.clone(), messages);
    let id = connection.id;
    let served = async {
        while let Some(message) = connection.messages.recv().await {
            if let Err(why) = connection.handle(&message).await {
                return why;
            }
        }
        Served::Over
    };
    let why = executor.until_shutdown(served).await.unwrap_or(Served::Over);
    // they hold the stream, too
    connection.tasks.shutdown().await;
    tracing::debug!(connection = id.0, "stream over");
    why
}

struct Connection<M> {
    executor: Arc<Executor>,
    id: ConnectionId,
    messages: Arc<M>,
    slots: Arc<Semaphore>,
    /// For what waits for a process to read.
    writes: Arc<Semaphore>,
    /// For what waits for a process to say something.
    reads: Arc<Semaphore>,
    /// Its whole files in memory.
    files: Reads,
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

impl<M: MessageStream> Connection<M> {
    fn new(executor: Arc<Executor>, messages: Arc<M>) -> Self {
        let places = |most| Arc::new(Semaphore::new(most));
        Self {
            id: executor.new_connection(),
            executor,
            messages,
            slots: places(REQUESTS_IN_FLIGHT),
            writes: places(WRITES_UNANSWERED_PER_STREAM),
            reads: places(READS_WAITING_PER_STREAM),
            files: Reads::default(),
            tasks: JoinSet::new(),
            phase: Phase::Fresh,
        }
    }

    /// An error ends the connection.
    async fn handle(&mut self, message: &Bytes) -> Result<(), Served> {
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
                Err(Served::Nonsense)
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
        let place = match method {
            process::Write::NAME | process::CloseStdin::NAME => {
                self.writes.clone().try_acquire_owned().ok()
            }
            process::Read::NAME if self.read_later(&id, supervisor, &params) => return Ok(()),
            _ => None,
        };
        let place = match place {
            Some(place) => place,
            None => self.slot().await?,
        };
        let answer = methods::call(&self.executor, &self.files, supervisor, id, method, &params);
        let messages = self.messages.clone();
        self.tasks.spawn(async move {
            let reply = answer.await;
            // a stream that is over ends the connection by itself
            let _ = messages.send(reply.message).await;
            drop((reply.place, place));
        });
        Ok(())
    }

    /// Lets a read wait for news, if it is one that waits and there is a place
    /// for it. What it then reads may be large: for that it needs a slot.
    fn read_later(&mut self, id: &RequestId, supervisor: &Arc<Supervisor>, params: &Json) -> bool {
        let Ok(read) = methods::decode::<process::Read>(params) else { return false };
        let Some(news) = supervisor.news(&read) else { return false };
        let Ok(place) = self.reads.clone().try_acquire_owned() else { return false };
        let (slots, messages) = (self.slots.clone(), self.messages.clone());
        let (id, supervisor) = (id.clone(), supervisor.clone());
        self.tasks.spawn(async move {
            news.await;
            // the semaphore is never closed
            let slot = slots.acquire_owned().await;
            let answer = methods::answer(&id, supervisor.read(&read));
            let _ = messages.send(answer).await;
            drop((slot, place));
        });
        true
    }

    /// A slot, once one is free. When the stream is over nobody waits for what
    /// runs: it is dropped, to make room for what arrived before the end.
    async fn slot(&mut self) -> Result<OwnedSemaphorePermit, StreamClosed> {
        loop {
            let slot = pin!(self.slots.clone().acquire_owned());
            let over = pin!(self.messages.ended());
            match select(slot, over).await {
                // the semaphore is never closed
                Either::Left((slot, _)) => return slot.map_err(|_| StreamClosed),
                Either::Right(_) => {}
            }
            self.tasks.shutdown().await;
        }
    }
}

/// Notifications of the session's processes, until the stream is over.
async fn push<M: MessageStream>(messages: Arc<M>, supervisor: Arc<Supervisor>) {
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
    async fn behind_calls_that_hang_the_end_is_noticed_and_what_arrived_takes_effect() {
        let (client, ours) = duplex(64);
        let mut connection = Connection::new(executor(), Arc::new(ours));
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
        while connection.slots.available_permits() < REQUESTS_IN_FLIGHT {
            tokio::task::yield_now().await;
        }
        let Phase::Ready(session) = &connection.phase else { panic!("no session") };
        let supervisor = session.supervisor().clone();
        for _ in 0..REQUESTS_IN_FLIGHT {
            let slot = connection.slots.clone().acquire_owned().await.unwrap();
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
        supervisor.news(&read).unwrap().await;
        assert_eq!(supervisor.read(&read).unwrap().exit_code, Some(137));
    }
}
