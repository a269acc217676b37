//! The session of a connection. It outlives streams that cannot resume.
//!
//! ```text
//!   Open ──the stream ends──► Resuming ──the next stream resumes the session──► Open
//!                                 └──── a retry cannot succeed, or time is over ──► Closed
//! ```
//!
//! Streams of our own profiles resume below a session
//! ([`reconnect`](crate::reconnect)). A stream of the Codex profile ends with
//! either endpoint's websocket, but the executor keeps the session, its processes
//! and their newest output for a while (docs/codex-wire.md#session and
//! docs/codex-wire.md#processes). So a task resumes the session on a new stream,
//! reads output from the last known position, and sends unacknowledged writes to
//! standard input again under their ids. An executor applies each id once, and
//! the same holds for closing standard input. No other call is repeated: its
//! outcome is unknown.
//!
//! Missed output waits for its reader in one task per process. These tasks
//! outlive streams, so a slow reader does not delay the detection of the next
//! stream's end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::process::{ProcessId, Read};
use rendez_proto::rpc::session::{Environment, EnvironmentInfo, Extensions, SessionId};
use rendez_proto::rpc::{Method, RpcError, code};
use rendez_rpc::{CallError, PendingResponse};
use rendez_transport::backoff::{Backoff, RESUME_CAP};
use tokio::sync::{OnceCell, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use crate::connector::{Connected, Connector, SessionStream};
use crate::error::ConnectError;
use crate::event_dispatcher::EventDispatcher;
use crate::random::jitter;
use crate::reconnect::ConnectionState;

/// How long resuming is retried: an executor keeps a detached session for 80 s
/// (docs/codex-wire.md#processes).
const RESUME_WINDOW: Duration = Duration::from_secs(75);

/// The stream that carries the session.
#[derive(Clone)]
enum StreamState {
    Open(Arc<SessionStream>),
    Resuming,
    Closed,
}

/// A session at an executor, with all that the handles to it share.
pub(crate) struct Session {
    stream_state: watch::Receiver<StreamState>,
    state: watch::Receiver<ConnectionState>,
    resume_task: Option<AbortHandle>,
    pub(crate) events: EventDispatcher,
    /// The protocol extensions that the executor supports.
    pub(crate) extensions: Extensions,
    pub(crate) profile: Profile,
    /// Fetched once, if the reply that opened the session did not contain it.
    environment: OnceCell<Environment>,
}

impl Session {
    /// Takes over a session that was just opened on a stream. Starts a task that
    /// resumes it if its streams cannot resume by themselves.
    pub(crate) fn new(connected: Connected, connector: Connector, events: EventDispatcher) -> Self {
        let Connected { stream, session, profile, executor, timings: _ } = connected;
        let socket_state = stream.socket.state();
        let epoch = stream.epoch;
        let (streams, stream_state) = watch::channel(StreamState::Open(Arc::new(stream)));
        let (state, resume_task) = if profile.is_reliable() {
            (socket_state, None)
        } else {
            let (announce, state) = watch::channel(ConnectionState::Connected);
            let (id, events) = (session.session_id, events.clone());
            let task = ResumeTask { connector, id, executor, events, streams, announce };
            (state, Some(tokio::spawn(task.run(epoch)).abort_handle()))
        };
        Self {
            stream_state,
            state,
            resume_task,
            events,
            extensions: session.rendez.unwrap_or_default(),
            profile,
            environment: OnceCell::new_with(session.environment_info),
        }
    }

    /// Whether the session outlives its streams, so that unacknowledged writes may
    /// be sent again.
    pub(crate) fn is_resumable(&self) -> bool {
        self.resume_task.is_some()
    }

    pub(crate) fn connection_state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Returns the executor's description of its environment.
    ///
    /// # Errors
    /// The call failed.
    pub(crate) async fn environment(&self) -> Result<&Environment, CallError> {
        let ask = || self.call::<EnvironmentInfo>(&EnvironmentInfo {});
        self.environment.get_or_try_init(ask).await
    }

    /// Returns the stream that carries the session, waiting for the next one if
    /// necessary.
    ///
    /// # Errors
    /// [`CallError::NotSent`] if the session is closed.
    pub(crate) async fn stream(&self) -> Result<Arc<SessionStream>, CallError> {
        self.stream_other_than(None).await
    }

    /// Returns the stream that carries the session after this one has ended.
    ///
    /// # Errors
    /// See [`stream`](Self::stream).
    pub(crate) async fn stream_after(
        &self,
        ended: &Arc<SessionStream>,
    ) -> Result<Arc<SessionStream>, CallError> {
        self.stream_other_than(Some(ended.epoch)).await
    }

    async fn stream_other_than(&self, ended: Option<u64>) -> Result<Arc<SessionStream>, CallError> {
        wait_for_stream(&mut self.stream_state.clone(), ended).await.ok_or(CallError::NotSent)
    }

    /// Sends a call. If the stream ends before the call is sent, it is sent on the
    /// next stream.
    ///
    /// # Errors
    /// [`CallError::NotSent`]
    pub(crate) async fn request<T: Method>(
        &self,
        params: &T::Params,
    ) -> Result<(Arc<SessionStream>, PendingResponse<T>), CallError> {
        let mut stream = self.stream().await?;
        loop {
            match stream.caller.request::<T>(params).await {
                Err(CallError::NotSent) if self.is_resumable() => {
                    stream = self.stream_after(&stream).await?;
                }
                Err(error) => return Err(error),
                Ok(answer) => return Ok((stream, answer)),
            }
        }
    }

    /// Calls `T` and waits for its response.
    ///
    /// # Errors
    /// [`CallError`] shows whether the call may have taken effect.
    pub(crate) async fn call<T: Method>(&self, params: &T::Params) -> Result<T::Reply, CallError> {
        let (_live, answer) = self.request::<T>(params).await?;
        answer.wait().await
    }

    /// Stops resuming the session. Returns its current stream, if there is one.
    pub(crate) fn stop_resuming(&self) -> Option<Arc<SessionStream>> {
        // Read this first: aborting the task closes the stream state.
        let stream = match &*self.stream_state.borrow() {
            StreamState::Open(stream) => Some(stream.clone()),
            StreamState::Resuming | StreamState::Closed => None,
        };
        if let Some(task) = &self.resume_task {
            task.abort();
        }
        stream
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_resuming();
    }
}

struct ResumeTask {
    connector: Connector,
    id: SessionId,
    executor: PublicKey,
    events: EventDispatcher,
    streams: watch::Sender<StreamState>,
    announce: watch::Sender<ConnectionState>,
}

impl ResumeTask {
    /// `epoch` is the number of the stream that carries the session.
    async fn run(self, mut epoch: u64) {
        // At most one task per running process.
        let mut catching_up = JoinSet::new();
        loop {
            self.events.stream_ended(epoch).await;
            self.events.mark_behind();
            self.announce.send_replace(ConnectionState::Reconnecting);
            // The socket may still be open: perhaps only the executor has left.
            self.streams.send_replace(StreamState::Resuming);
            let Some(stream) = self.resume(&mut epoch).await else { break };
            self.streams.send_replace(StreamState::Open(Arc::new(stream)));
            self.announce.send_replace(ConnectionState::Connected);
            while catching_up.try_join_next().is_some() {}
            for id in self.events.claim_behind() {
                catching_up.spawn(catch_up(self.streams.subscribe(), self.events.clone(), id));
            }
        }
        // They may hold events, and end when those are delivered.
        catching_up.detach_all();
    }

    /// Retries until it succeeds, each time with the next number. Returns `None`
    /// if a retry cannot succeed or the time is over.
    async fn resume(&self, epoch: &mut u64) -> Option<SessionStream> {
        let until = Instant::now() + RESUME_WINDOW;
        let mut backoff = Backoff::default();
        while Instant::now() < until {
            sleep(backoff.next_delay(RESUME_CAP, jitter())).await;
            *epoch += 1;
            let connected =
                self.connector.connect(&self.events, Some(self.id.clone()), *epoch).await;
            match connected {
                Ok(connected) if connected.executor != self.executor => {
                    tracing::debug!("another executor has taken over the environment");
                    return None;
                }
                Ok(connected) => return Some(connected.stream),
                Err(error) if is_session_lost(&error) => {
                    tracing::debug!(%error, "cannot resume the session");
                    return None;
                }
                Err(error) => tracing::debug!(%error, "cannot resume the session yet"),
            }
        }
        None
    }
}

impl Drop for ResumeTask {
    /// The session cannot be resumed any more, or its owner closed it.
    fn drop(&mut self) {
        self.events.close();
        self.streams.send_replace(StreamState::Closed);
        self.announce.send_replace(ConnectionState::Closed);
    }
}

/// Reads the events that a process produced while the session had no stream,
/// until none is missing. Reads again if more events arrived before the response
/// than can be held, and on the next stream if this one ends.
async fn catch_up(
    mut stream_state: watch::Receiver<StreamState>,
    events: EventDispatcher,
    id: ProcessId,
) {
    let mut ended = None;
    while let Some(stream) = wait_for_stream(&mut stream_state, ended).await {
        let Some(position) = events.read_position(&id) else { return };
        let read = Read {
            process_id: id.clone(),
            after_seq: Some(position.after),
            max_bytes: None,
            wait_ms: None,
        };
        let answer = stream.caller.call::<Read>(&read).await;
        let epoch = stream.epoch;
        // The delivery below waits for the reader. It must not keep a stream alive
        // that has ended.
        drop(stream);
        match answer {
            Ok(reply) => events.deliver_read(&id, reply).await,
            // The executor does not know the process, not yet or not any more, or
            // its response is malformed.
            Err(CallError::Refused(_) | CallError::Malformed { .. }) => {
                events.unknown(&id, position, epoch).await;
            }
            Err(CallError::Interrupted | CallError::NotSent) => ended = Some(epoch),
        }
    }
}

/// Waits for a stream that carries the session and does not have the number
/// `ended`. Returns `None` if the session is closed.
async fn wait_for_stream(
    stream_state: &mut watch::Receiver<StreamState>,
    ended: Option<u64>,
) -> Option<Arc<SessionStream>> {
    let settled = stream_state.wait_for(|stream_state| match stream_state {
        StreamState::Open(stream) => ended != Some(stream.epoch),
        StreamState::Resuming => false,
        StreamState::Closed => true,
    });
    match settled.await.as_deref() {
        Ok(StreamState::Open(stream)) => Some(stream.clone()),
        _ => None,
    }
}

/// Whether the session cannot be resumed any more.
fn is_session_lost(error: &ConnectError) -> bool {
    match error {
        // The executor has not yet noticed the end of the old stream.
        ConnectError::Session(CallError::Refused(RpcError {
            code: code::SESSION_ATTACHED,
            ..
        })) => false,
        ConnectError::Session(CallError::Refused(_)) => true,
        other => other.is_final(),
    }
}
