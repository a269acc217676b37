//! The sessions of one executor, and the services that its connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rendez_proto::limits::STREAM_GRACE;
use rendez_proto::rpc::RpcError;
use rendez_proto::rpc::session::{Environment, SessionId};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::table::{ConnectionId, SessionTable};
use crate::fs::FileService;
use crate::process::ProcessContext;
use crate::process::supervisor::Supervisor;
use crate::sys::signals;

/// The minimum time by which a session outlives its stream, so that the end of a
/// stream does not end its session.
const SESSION_MARGIN: Duration = Duration::from_secs(10);
/// The minimum time for which a detached session is kept. The stock executor keeps
/// it for 80 s (docs/codex-wire.md#session).
pub(super) const SESSION_GRACE: Duration = Duration::from_secs(100);
/// Sessions of one executor, attached and detached.
const SESSIONS_PER_EXECUTOR: usize = 1024;

const _: () = assert!(SESSION_GRACE.as_secs() >= STREAM_GRACE.as_secs() + SESSION_MARGIN.as_secs());

/// The sessions and services of an executor. It outlives all connections.
pub(crate) struct SessionManager {
    sessions: Mutex<SessionTable<Arc<Supervisor>>>,
    /// Notified when a session is detached, which adds an expiry.
    detached: Notify,
    shutdown_token: CancellationToken,
    next_connection: AtomicU64,
    files: FileService,
    processes: Arc<ProcessContext>,
    environment: Environment,
}

/// A session that is attached to a connection; dropping it detaches the session.
pub(super) struct AttachedSession {
    manager: Arc<SessionManager>,
    connection: ConnectionId,
    id: SessionId,
    supervisor: Arc<Supervisor>,
}

impl SessionManager {
    /// Creates an executor without sessions that describes itself as `environment`.
    /// Its sessions outlive streams, which outlive their socket by `stream_grace`.
    /// Its processes never inherit `withheld_variables`.
    ///
    /// Must be called within a tokio runtime.
    pub(crate) fn new(
        environment: Environment,
        stream_grace: Duration,
        withheld_variables: &'static [&'static str],
    ) -> Arc<Self> {
        signals::make_children_reachable();
        let grace = SESSION_GRACE.max(stream_grace + SESSION_MARGIN);
        Arc::new(Self {
            sessions: Mutex::new(SessionTable::new(SESSIONS_PER_EXECUTOR, grace)),
            detached: Notify::new(),
            shutdown_token: CancellationToken::new(),
            next_connection: AtomicU64::new(0),
            files: FileService::default(),
            processes: Arc::new(ProcessContext::new(withheld_variables)),
            environment,
        })
    }

    /// Ends detached sessions whose grace period is over. Never returns: run it as a
    /// task.
    pub(crate) async fn expire_sessions(&self) {
        loop {
            let next = self.sessions.lock().next_expiry();
            match next {
                None => self.detached.notified().await,
                Some(at) => {
                    // a session that is detached meanwhile expires later
                    let _ = timeout_at(at.into(), self.detached.notified()).await;
                }
            }
            let expired = self.sessions.lock().expire(now());
            for supervisor in expired {
                tracing::debug!("session expired");
                supervisor.kill_all();
            }
        }
    }

    /// Ends all streams and sessions and kills their processes. Final.
    pub(crate) fn shutdown(&self) {
        self.shutdown_token.cancel();
        let sessions = self.sessions.lock().drain();
        sessions.iter().for_each(|supervisor| supervisor.kill_all());
    }

    /// Runs `work`; returns `None` if the executor shuts down first.
    pub(crate) async fn until_shutdown<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.shutdown_token.run_until_cancelled(work).await
    }

    pub(super) fn files(&self) -> &FileService {
        &self.files
    }

    pub(super) fn environment(&self) -> &Environment {
        &self.environment
    }

    pub(super) fn next_connection_id(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens a session, or resumes `resume`. From then on chunks of output have at
    /// most `chunk_bytes`.
    pub(super) fn attach(
        self: &Arc<Self>,
        connection: ConnectionId,
        resume: Option<SessionId>,
        chunk_bytes: usize,
    ) -> Result<AttachedSession, RpcError> {
        let (id, supervisor) = match resume {
            Some(id) => {
                let supervisor = self.sessions.lock().resume(&id, connection, now())?;
                (id, supervisor)
            }
            None => {
                let id = random_id()?;
                let supervisor = Supervisor::new(self.processes.clone());
                let mut sessions = self.sessions.lock();
                if self.shutdown_token.is_cancelled() {
                    return Err(RpcError::invalid_request("the executor is shutting down"));
                }
                let gone = sessions.make_room(|supervisor| supervisor.is_idle());
                sessions.open(id.clone(), supervisor.clone(), connection)?;
                drop(sessions);
                drop(gone);
                (id, supervisor)
            }
        };
        supervisor.attach(chunk_bytes);
        Ok(AttachedSession { manager: self.clone(), connection, id, supervisor })
    }
}

impl AttachedSession {
    pub(super) fn id(&self) -> &SessionId {
        &self.id
    }

    pub(super) fn supervisor(&self) -> &Arc<Supervisor> {
        &self.supervisor
    }
}

impl Drop for AttachedSession {
    fn drop(&mut self) {
        // detach the processes first: a later resume attaches them again
        self.supervisor.detach();
        if self.manager.sessions.lock().detach(&self.id, self.connection, now()) {
            self.manager.detached.notify_one();
        }
    }
}

/// The time of tokio's clock, which tests can pause.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A random (version 4) UUID.
fn random_id() -> Result<SessionId, RpcError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|error| RpcError::internal(format!("cannot create a session id: {error}")))?;
    Ok(SessionId(uuid::Builder::from_random_bytes(random).into_uuid().to_string()))
}
