//! A connected environment: the executor of an environment, and the session there.

use std::sync::Arc;
use std::time::Duration;

use rendez_proto::profile::Profile;
use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::process::ProcessId;
use rendez_proto::rpc::session::{self, EnvironmentStatus, Extensions};
use rendez_rpc::CallError;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::command::Command;
use crate::connector::{Connected, Connector};
use crate::error::ProcessError;
use crate::event_dispatcher::EventDispatcher;
use crate::files::Files;
use crate::process::Process;
use crate::reconnect::ConnectionState;
use crate::session::Session;

pub use crate::connector::Timings;

/// How long [`Environment::close`] waits until the executor has acknowledged the
/// end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to the executor of an environment, and the session there.
///
/// Dropping it closes the connection. The executor terminates processes that
/// still run when the grace period of the session ends.
pub struct Environment {
    session: Arc<Session>,
    timings: Timings,
}

impl Environment {
    pub(crate) fn new(connected: Connected, connector: Connector, events: EventDispatcher) -> Self {
        let timings = connected.timings;
        Self { session: Arc::new(Session::new(connected, connector, events)), timings }
    }

    /// Returns how long the steps of connecting took.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Returns the security profile of the connection.
    pub fn profile(&self) -> Profile {
        self.session.profile
    }

    /// Returns the protocol extensions that the executor supports.
    pub fn extensions(&self) -> &Extensions {
        &self.session.extensions
    }

    /// Returns the executor's description of its environment: shell, directories,
    /// system.
    ///
    /// # Errors
    /// The call failed.
    pub async fn info(&self) -> Result<&session::Environment, CallError> {
        self.session.environment().await
    }

    /// Makes one round trip to the executor and back.
    ///
    /// # Errors
    /// The call failed.
    pub async fn ping(&self) -> Result<(), CallError> {
        self.session.call::<EnvironmentStatus>(&EnvironmentStatus {}).await.map(drop)
    }

    /// Starts a process.
    ///
    /// The caller must read the [`Process`] as long as it keeps it. With 4 MiB of
    /// unread output, or less in many small pieces, replies to calls and events of
    /// other processes wait behind that output. See [the crate
    /// documentation](crate#read-every-process-that-you-keep).
    ///
    /// # Errors
    /// [`ProcessError::NotFound`], [`ProcessError::Directory`] or
    /// [`ProcessError::CannotStart`] if the executor cannot start the process;
    /// [`ProcessError::Lost`] if the connection was lost and it is unknown whether
    /// the process started.
    pub async fn spawn(&self, command: Command) -> Result<Process, ProcessError> {
        let cwd = match command.cwd()? {
            Some(cwd) => cwd,
            None => self.default_cwd().await?,
        };
        let id = ProcessId(crate::process::random_id()?);
        let start = command.into_start(id, cwd);
        Process::start(self.session.clone(), start).await
    }

    /// Returns the file operations on the executor.
    pub fn files(&self) -> Files<'_> {
        Files::new(&self.session)
    }

    /// Watches the state of the connection.
    pub fn connection_state(&self) -> watch::Receiver<ConnectionState> {
        self.session.connection_state()
    }

    /// Closes the connection and waits, for a second at most, until the executor
    /// has acknowledged it. The executor terminates processes that still run when
    /// the grace period of the session ends.
    pub async fn close(self) {
        if let Some(stream) = self.session.stop_resuming() {
            let _ = timeout(CLOSE_TIMEOUT, stream.caller.messages().finish()).await;
            stream.socket.close().await;
        }
    }

    async fn default_cwd(&self) -> Result<PathUri, ProcessError> {
        let info = self.info().await?;
        info.cwd.clone().ok_or(ProcessError::Unsupported("a default working directory"))
    }
}
