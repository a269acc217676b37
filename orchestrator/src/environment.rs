//! One connected executor.

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

/// How long [`Environment::close`] waits for the executor to hear it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connected executor and the session there. Dropping it closes the
/// connection; processes that still run are ended by the executor when the
/// session's grace is over.
pub struct Environment {
    session: Arc<Session>,
    timings: Timings,
}

impl Environment {
    pub(crate) fn new(connected: Connected, connector: Connector, events: EventDispatcher) -> Self {
        let timings = connected.timings;
        Self { session: Arc::new(Session::new(connected, connector, events)), timings }
    }

    /// How long it took to get here.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The profile of the connection.
    pub fn profile(&self) -> Profile {
        self.session.profile
    }

    /// What the executor speaks beyond the stock dialect.
    pub fn extensions(&self) -> &Extensions {
        &self.session.extensions
    }

    /// What the executor says of its environment: shell, directories, system.
    ///
    /// # Errors
    /// The call failed.
    pub async fn info(&self) -> Result<&session::Environment, CallError> {
        self.session.environment().await
    }

    /// One round trip to the executor and back.
    ///
    /// # Errors
    /// The call failed.
    pub async fn ping(&self) -> Result<(), CallError> {
        self.session.call::<EnvironmentStatus>(&EnvironmentStatus {}).await.map(drop)
    }

    /// Starts a process. Who keeps it has to read it: once it has 4 MiB of output
    /// that nobody reads, or less in many small pieces, no call of this executor is
    /// answered and no other process is heard of until somebody does. See the
    /// [crate](crate#read-every-process-that-you-keep).
    ///
    /// # Errors
    /// [`ProcessError::NotFound`], [`ProcessError::Directory`] and
    /// [`ProcessError::CannotStart`] say what the executor has not or cannot,
    /// [`ProcessError::Lost`] if whether it started is unknown.
    pub async fn spawn(&self, command: Command) -> Result<Process, ProcessError> {
        let cwd = match command.cwd()? {
            Some(cwd) => cwd,
            None => self.default_cwd().await?,
        };
        let id = ProcessId(crate::process::random_id()?);
        let start = command.into_start(id, cwd);
        Process::start(self.session.clone(), start).await
    }

    /// The executor's files.
    pub fn files(&self) -> Files<'_> {
        Files::new(&self.session)
    }

    /// Whether the connection stands, and every change of that.
    pub fn connection_state(&self) -> watch::Receiver<ConnectionState> {
        self.session.connection_state()
    }

    /// Closes the connection and waits until the executor knows. Processes
    /// that still run are ended by the executor when its grace is over.
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
