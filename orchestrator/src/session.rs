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
const SESSION_WINDOW: Duration = Duration::from_secs(75);

#[derive(Clone)]
enum Stage {
    Up(Arc<SessionStream>),
    Resuming,
    Over,
}

/// See the module.
pub(crate) struct Session {
    stage: watch::Receiver<Stage>,
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
        let Connected { stream: live, session, profile, executor, timings: _ } = connected;
        let socket_state = live.socket.state();
        let epoch = live.epoch;
        let (stages, stage) = watch::channel(Stage::Up(Arc::new(live)));
        let (state, resume_task) = if profile.is_reliable() {
            (socket_state, None)
        } else {
            let (announce, state) = watch::channel(ConnectionState::Up);
            let (id, events) = (session.session_id, events.clone());
            let task = ResumeTask { connector, id, executor, events, stages, announce };
            (state, Some(tokio::spawn(task.run(epoch)).abort_handle()))
        };
        Self {
            stage,
            state,
            resume_task,
            events,
            extensions: session.rendez.unwrap_or_default(),
            profile,
            environment: OnceCell::new_with(session.environment_info),
        }
    }

    /// Whether writes that were not answered may be sent again.
    pub(crate) fn is_kept(&self) -> bool {
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
    pub(crate) async fn live(&self) -> Result<Arc<SessionStream>, CallError> {
        self.other_than(None).await
    }

    /// The stream that has the session once this one is over.
    ///
    /// # Errors
    /// See [`live`](Self::live).
    pub(crate) async fn after(
        &self,
        gone: &Arc<SessionStream>,
    ) -> Result<Arc<SessionStream>, CallError> {
        self.other_than(Some(gone.epoch)).await
    }

    async fn other_than(&self, gone: Option<u64>) -> Result<Arc<SessionStream>, CallError> {
        settled(&mut self.stage.clone(), gone).await.ok_or(CallError::NotSent)
    }

    /// Sends a call, on the next stream if this one is over before it was sent.
    ///
    /// # Errors
    /// [`CallError::NotSent`]
    pub(crate) async fn request<T: Method>(
        &self,
        params: &T::Params,
    ) -> Result<(Arc<SessionStream>, PendingResponse<T>), CallError> {
        let mut live = self.live().await?;
        loop {
            match live.caller.request::<T>(params).await {
                Err(CallError::NotSent) if self.is_kept() => {
                    live = self.after(&live).await?;
                }
                Err(error) => return Err(error),
                Ok(answer) => return Ok((live, answer)),
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
    pub(crate) fn release(&self) -> Option<Arc<SessionStream>> {
        // Before the task goes: it leaves none behind.
        let live = match &*self.stage.borrow() {
            Stage::Up(live) => Some(live.clone()),
            Stage::Resuming | Stage::Over => None,
        };
        if let Some(task) = &self.resume_task {
            task.abort();
        }
        live
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.release();
    }
}

struct ResumeTask {
    connector: Connector,
    id: SessionId,
    executor: PublicKey,
    events: EventDispatcher,
    stages: watch::Sender<Stage>,
    announce: watch::Sender<ConnectionState>,
}

impl ResumeTask {
    /// `epoch` is the number of the stream that has the session.
    async fn run(self, mut epoch: u64) {
        // At most one per process that runs.
        let mut catching_up = JoinSet::new();
        loop {
            self.events.broken(epoch).await;
            self.events.hold();
            self.announce.send_replace(ConnectionState::Resuming);
            // The socket may stand still, as when only the executor left.
            self.stages.send_replace(Stage::Resuming);
            let Some(live) = self.resume(&mut epoch).await else { break };
            self.stages.send_replace(Stage::Up(Arc::new(live)));
            self.announce.send_replace(ConnectionState::Up);
            while catching_up.try_join_next().is_some() {}
            for id in self.events.behind() {
                catching_up.spawn(catch_up(self.stages.subscribe(), self.events.clone(), id));
            }
        }
        // They may have events in their hands, and go when those are told.
        catching_up.detach_all();
    }

    /// Tries until it works, each time under the next number; `None` if there
    /// is no use.
    async fn resume(&self, epoch: &mut u64) -> Option<SessionStream> {
        let until = Instant::now() + SESSION_WINDOW;
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
                Err(error) if is_hopeless(&error) => {
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
        self.events.over();
        self.stages.send_replace(Stage::Over);
        self.announce.send_replace(ConnectionState::Down);
    }
}

/// Reads what a process did while it had no stream, until nothing is missing any
/// more: again after more has arrived before the answer than can be held, and
/// over the next stream if this one ends.
async fn catch_up(mut stage: watch::Receiver<Stage>, events: EventDispatcher, id: ProcessId) {
    let mut gone = None;
    while let Some(live) = settled(&mut stage, gone).await {
        let Some(position) = events.position(&id) else { return };
        let read = Read {
            process_id: id.clone(),
            after_seq: Some(position.after),
            max_bytes: None,
            wait_ms: None,
        };
        let answer = live.caller.call::<Read>(&read).await;
        let epoch = live.epoch;
        // What follows waits for a reader, and must not hold a stream that ends.
        drop(live);
        match answer {
            Ok(reply) => events.caught_up(&id, reply).await,
            // The executor does not know it, not yet or not any more, or says
            // what nobody understands.
            Err(CallError::Refused(_) | CallError::Malformed { .. }) => {
                events.unknown(&id, position, epoch).await;
            }
            Err(CallError::Interrupted | CallError::NotSent) => gone = Some(epoch),
        }
    }
}

/// The stream that has the session, but not the one of this number; `None` if
/// there never will be one.
async fn settled(
    stage: &mut watch::Receiver<Stage>,
    gone: Option<u64>,
) -> Option<Arc<SessionStream>> {
    let settled = stage.wait_for(|stage| match stage {
        Stage::Up(live) => gone != Some(live.epoch),
        Stage::Resuming => false,
        Stage::Over => true,
    });
    match settled.await.as_deref() {
        Ok(Stage::Up(live)) => Some(live.clone()),
        _ => None,
    }
}

/// Whether the session is gone for good.
fn is_hopeless(error: &ConnectError) -> bool {
    match error {
        // Until the executor notices that the old stream is gone.
        ConnectError::Session(CallError::Refused(RpcError {
            code: code::SESSION_ATTACHED,
            ..
        })) => false,
        ConnectError::Session(CallError::Refused(_)) => true,
        other => other.is_final(),
    }
}
