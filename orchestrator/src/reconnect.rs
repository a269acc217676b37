//! Reconnects the websocket below a stream.
//!
//! When the socket of a reliable profile is lost, the reconnect loop requests a
//! new ticket at once and the stream resumes over the next socket. The
//! application sees a pause. The loop ends when the stream's grace period is over
//! or when a retry cannot succeed: the relay refuses the token, or another
//! executor has taken over the environment. Streams of the Codex profile cannot
//! resume and end with their socket.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_proto::registry::ConnectReply;
use rendez_rpc::Endpoint;
use rendez_transport::backoff::{Backoff, RESUME_CAP};
use rendez_transport::dial::DialledSocket;
use rendez_transport::{Ended, pump};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::error::ConnectError;
use crate::random::jitter;
use crate::relay_endpoint::RelayEndpoint;

/// The time limit for closing the socket.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The state of the connection to an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionState {
    /// The connection is established.
    Connected,
    /// The connection was lost and is being re-established. No data is lost yet.
    Reconnecting,
    /// The connection has ended.
    Closed,
}

/// A websocket that a task owns and reconnects.
pub(crate) struct ReconnectingSocket {
    endpoint: Endpoint,
    state: watch::Receiver<ConnectionState>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl ReconnectingSocket {
    pub(crate) fn start(
        relay: Arc<RelayEndpoint>,
        endpoint: Endpoint,
        reply: &ConnectReply,
        socket: DialledSocket,
    ) -> Self {
        let (announce, state) = watch::channel(ConnectionState::Connected);
        let reconnecting = ReconnectLoop {
            relay,
            endpoint: endpoint.clone(),
            environment: reply.environment_id.clone(),
            executor: reply.executor_public_key.clone(),
            profile: reply.security_profile,
            announce,
        };
        let task = tokio::spawn(reconnecting.run(socket, reply.executor_registration_id.clone()));
        Self { endpoint, state, task: Mutex::new(Some(task)) }
    }

    pub(crate) fn state(&self) -> watch::Receiver<ConnectionState> {
        self.state.clone()
    }

    /// Closes the socket with a close frame.
    pub(crate) async fn close(&self) {
        self.endpoint.shut_down(CloseFrame::NORMAL);
        let task = self.task.lock().take();
        if let Some(mut task) = task
            && timeout(CLOSE_TIMEOUT, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for ReconnectingSocket {
    /// The task ends when everything buffered is sent.
    fn drop(&mut self) {
        self.endpoint.shut_down(CloseFrame::NORMAL);
    }
}

struct ReconnectLoop {
    relay: Arc<RelayEndpoint>,
    endpoint: Endpoint,
    environment: EnvironmentId,
    executor: PublicKey,
    profile: Profile,
    announce: watch::Sender<ConnectionState>,
}

impl ReconnectLoop {
    async fn run(self, mut socket: DialledSocket, mut registration: RegistrationId) {
        let mut backoff = Backoff::default();
        loop {
            let since = Instant::now();
            let mut driver = self.endpoint.attach(registration);
            let ended = pump(socket, &mut driver).await;
            let wanted = !self.endpoint.is_shut_down() && self.profile.is_reliable();
            drop(driver);
            tracing::debug!(environment = %self.environment, why = %ended, "websocket ended");
            if !wanted {
                break;
            }
            backoff.connected_for(since.elapsed());
            if let Ended::ReconnectWithin(within) = ended {
                backoff.reconnect_within(within);
            }
            self.announce.send_replace(ConnectionState::Reconnecting);
            match self.reconnect(&mut backoff).await {
                Some(reconnected) => (socket, registration) = reconnected,
                None => break,
            }
            self.announce.send_replace(ConnectionState::Connected);
        }
        self.endpoint.abandon();
        self.announce.send_replace(ConnectionState::Closed);
    }

    /// Retries until it succeeds. Returns `None` if a retry cannot succeed.
    async fn reconnect(&self, backoff: &mut Backoff) -> Option<(DialledSocket, RegistrationId)> {
        loop {
            self.endpoint.wait_detached(backoff.next_delay(RESUME_CAP, jitter())).await;
            if !self.endpoint.has_streams() || self.endpoint.is_shut_down() {
                return None;
            }
            let error = match self.try_reconnect().await {
                Ok(reconnected) => return Some(reconnected),
                Err(error) => error,
            };
            tracing::debug!(environment = %self.environment, %error, "cannot reconnect yet");
            if error.is_final() {
                return None;
            }
        }
    }

    async fn try_reconnect(&self) -> Result<(DialledSocket, RegistrationId), ConnectError> {
        let reply = self.relay.request_ticket(&self.environment).await?;
        // Another executor does not know the stream.
        if reply.executor_public_key != self.executor {
            return Err(ConnectError::ExecutorChanged);
        }
        if reply.security_profile != self.profile {
            return Err(ConnectError::Downgrade(reply.security_profile));
        }
        let socket = self.relay.dial(&reply).await?;
        Ok((socket, reply.executor_registration_id))
    }
}
