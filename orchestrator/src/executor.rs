//! One connected executor.

use std::sync::Arc;
use std::time::Duration;

use rendez_proto::profile::Profile;
use rendez_proto::rpc::path::PathUri;
use rendez_proto::rpc::process::ProcessId;
use rendez_proto::rpc::session::{Environment, EnvironmentInfo, EnvironmentStatus, Extensions};
use rendez_rpc::CallError;
use tokio::sync::{OnceCell, watch};
use tokio::time::timeout;

use crate::connection::Connection;
use crate::error::ProcessError;
use crate::events::Events;
use crate::files::Files;
use crate::link::LinkState;
use crate::opener::{Opened, Opener};
use crate::process::{Command, Process};
use crate::session::Session;

pub use crate::opener::Timings;

/// How long [`Executor::close`] waits for the executor to hear it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connected executor and the session there. Dropping it closes the
/// connection; processes that still run are ended by the executor when the
/// session's grace is over.
pub struct Executor {
    connection: Arc<Connection>,
    timings: Timings,
}

impl Executor {
    pub(crate) fn new(opened: Opened, opener: Opener, events: Events) -> Self {
        let Opened { live, session, profile, executor, timings } = opened;
        let kept = if profile.is_reliable() {
            Session::of(live)
        } else {
            Session::kept(live, opener, session.session_id, executor, events.clone())
        };
        let connection = Connection {
            session: kept,
            events,
            extensions: session.rendez.unwrap_or_default(),
            environment: OnceCell::new_with(session.environment_info),
            profile,
        };
        Self { connection: Arc::new(connection), timings }
    }

    /// How long it took to get here.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// The profile of the connection.
    pub fn profile(&self) -> Profile {
        self.connection.profile
    }

    /// What the executor speaks beyond the stock dialect.
    pub fn extensions(&self) -> &Extensions {
        &self.connection.extensions
    }

    /// What the executor says of its environment: shell, directories, system.
    ///
    /// # Errors
    /// The call failed.
    pub async fn environment(&self) -> Result<&Environment, CallError> {
        let ask = || self.connection.session.call::<EnvironmentInfo>(&EnvironmentInfo {});
        self.connection.environment.get_or_try_init(ask).await
    }

    /// One round trip to the executor and back.
    ///
    /// # Errors
    /// The call failed.
    pub async fn ping(&self) -> Result<(), CallError> {
        self.connection.session.call::<EnvironmentStatus>(&EnvironmentStatus {}).await.map(drop)
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
        Process::start(self.connection.clone(), start).await
    }

    /// The executor's files.
    pub fn files(&self) -> Files<'_> {
        Files::new(&self.connection)
    }

    /// Whether the connection stands, and every change of that.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.connection.session.link()
    }

    /// Closes the connection and waits until the executor knows. Processes
    /// that still run are ended by the executor when its grace is over.
    pub async fn close(self) {
        if let Some(live) = self.connection.session.release() {
            let _ = timeout(CLOSE_TIMEOUT, live.caller.messages().finish()).await;
            live.link.close().await;
        }
    }

    async fn default_cwd(&self) -> Result<PathUri, ProcessError> {
        let environment = self.environment().await?;
        environment.cwd.clone().ok_or(ProcessError::Unsupported("a default working directory"))
    }
}
