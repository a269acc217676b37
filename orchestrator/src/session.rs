//! The session of a connection, and how it outlives streams that cannot resume.
//!
//! ```text
//!   Up ──the stream ended──► Resuming ──another stream took the session up──► Up
//!                                └──── no way back, or the executor forgot ──► Over
//! ```
//!
//! Streams of our own profiles resume below a session ([`reconnect`](crate::reconnect)).
//! One of the Codex profile ends with either websocket, but the executor keeps
//! the session, its processes and their newest output for a while (WIRE.md,
//! sections 6.1 and 6.2). So the session is taken up over a new stream, output
//! is read from where it was, and writes to standard input that nobody answered
//! are sent again under their ids, which an executor applies once, as is its end.
//! No other call is repeated: its outcome is unknown.
//!
//! Output that was read waits for its reader in a task of its process, which
//! lasts over streams: the end of a stream is noticed whoever does not read.

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

/// How long an executor is asked for its session: it keeps one for 80 s
/// (WIRE.md, section 6.2).
const RESUME_WINDOW: Duration = Duration::from_secs(75);

#[derive(Clone)]
enum StreamState {
    Open(Arc<SessionStream>),
    Resuming,
    Closed,
}

/// See the module.
pub(crate) struct Session {
    stream_state: watch::Receiver<StreamState>,
    state: watch::Receiver<ConnectionState>,
    resume_task: Option<AbortHandle>,
    pub(crate) events: EventDispatcher,
    /// What the executor speaks beyond the stock dialect.
    pub(crate) extensions: Extensions,
    pub(crate) profile: Profile,
    /// Asked for once, if the session did not bring it.
    environment: OnceCell<Environment>,
}

impl Session {
    /// The session that was opened on a stream; another one takes it up where
    /// that stream cannot resume by itself.
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

    /// Whether writes that were not answered may be sent again.
    pub(crate) fn is_resumable(&self) -> bool {
        self.resume_task.is_some()
    }

    pub(crate) fn connection_state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// What the executor says of its environment.
    ///
    /// # Errors
    /// The call failed.
    pub(crate) async fn environment(&self) -> Result<&Environment, CallError> {
        let ask = || self.call::<EnvironmentInfo>(&EnvironmentInfo {});
        self.environment.get_or_try_init(ask).await
    }

    /// The stream that has the session, as soon as there is one again.
    ///
    /// # Errors
    /// [`CallError::NotSent`] if there never will be.
    pub(crate) async fn stream(&self) -> Result<Arc<SessionStream>, CallError> {
        self.stream_other_than(None).await
    }

    /// The stream that has the session once this one is over.
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

    /// Sends a call, on the next stream if this one is over before it was sent.
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

    /// Calls `T` and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`] tells whether the call may have taken effect.
    pub(crate) async fn call<T: Method>(&self, params: &T::Params) -> Result<T::Reply, CallError> {
        let (_live, answer) = self.request::<T>(params).await?;
        answer.wait().await
    }

    /// No further stream takes the session up; the present one, if there is one.
    pub(crate) fn stop_resuming(&self) -> Option<Arc<SessionStream>> {
        // Before the task goes: it leaves none behind.
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
    /// `epoch` is the number of the stream that has the session.
    async fn run(self, mut epoch: u64) {
        // At most one per process that runs.
        let mut catching_up = JoinSet::new();
        loop {
            self.events.stream_ended(epoch).await;
            self.events.mark_behind();
            self.announce.send_replace(ConnectionState::Reconnecting);
            // The socket may stand still, as when only the executor left.
            self.streams.send_replace(StreamState::Resuming);
            let Some(stream) = self.resume(&mut epoch).await else { break };
            self.streams.send_replace(StreamState::Open(Arc::new(stream)));
            self.announce.send_replace(ConnectionState::Connected);
            while catching_up.try_join_next().is_some() {}
            for id in self.events.claim_behind() {
                catching_up.spawn(catch_up(self.streams.subscribe(), self.events.clone(), id));
            }
        }
        // They may have events in their hands, and go when those are told.
        catching_up.detach_all();
    }

    /// Tries until it works, each time under the next number; `None` if there
    /// is no use.
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
                    tracing::debug!("another executor answers under this name");
                    return None;
                }
                Ok(connected) => return Some(connected.stream),
                Err(error) if is_session_lost(&error) => {
                    tracing::debug!(%error, "the session cannot be taken up");
                    return None;
                }
                Err(error) => tracing::debug!(%error, "cannot take the session up yet"),
            }
        }
        None
    }
}

impl Drop for ResumeTask {
    /// Nobody takes the session up any more: there is no way back, or it was closed.
    fn drop(&mut self) {
        self.events.close();
        self.streams.send_replace(StreamState::Closed);
        self.announce.send_replace(ConnectionState::Closed);
    }
}

/// Reads what a process did while it had no stream, until nothing is missing any
/// more: again after more has arrived before the answer than can be held, and
/// over the next stream if this one ends.
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
        // What follows waits for a reader, and must not hold a stream that ends.
        drop(stream);
        match answer {
            Ok(reply) => events.deliver_read(&id, reply).await,
            // The executor does not know it, not yet or not any more, or says
            // what nobody understands.
            Err(CallError::Refused(_) | CallError::Malformed { .. }) => {
                events.unknown(&id, position, epoch).await;
            }
            Err(CallError::Interrupted | CallError::NotSent) => ended = Some(epoch),
        }
    }
}

/// The stream that has the session, but not the one of this number; `None` if
/// there never will be one.
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

/// Whether the session is ended for good.
fn is_session_lost(error: &ConnectError) -> bool {
    match error {
        // Until the executor notices that the old stream is ended.
        ConnectError::Session(CallError::Refused(RpcError {
            code: code::SESSION_ATTACHED,
            ..
        })) => false,
        ConnectError::Session(CallError::Refused(_)) => true,
        other => other.is_final(),
    }
}
