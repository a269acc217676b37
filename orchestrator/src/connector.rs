//! One way in after the other: ticket, websocket, handshake, session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_endpoint::{Config, Connect, Grace, Mux};
use rendez_proto::ids::{EnvironmentId, StreamId};
use rendez_proto::keys::PublicKey;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::registry::ConnectReply;
use rendez_proto::rpc::session::{
    ClientExtensions, Initialize, InitializeReply, Initialized, SessionId,
};
use rendez_rpc::{Caller, Channel, Endpoint};
use tokio::time::timeout;

use crate::error::ConnectError;
use crate::event_dispatcher::EventDispatcher;
use crate::random::random;
use crate::reconnect::ReconnectingSocket;
use crate::relay_endpoint::RelayEndpoint;

/// How long the executor may take to open a session. Codex, WIRE.md section 4.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens streams to the executor of one environment.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) relay: Arc<RelayEndpoint>,
    pub(crate) environment: EnvironmentId,
    pub(crate) grace: Grace,
}

/// How long the steps of connecting took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Asking the registry for a ticket.
    pub ticket: Duration,
    /// Opening the websocket: name, TCP, TLS, upgrade.
    pub dial: Duration,
    /// The Noise handshake with the executor, its question to the registry
    /// included.
    pub handshake: Duration,
    /// Opening a session: the first round trip.
    pub session: Duration,
}

/// One stream that has a session, and the websocket below.
pub(crate) struct SessionStream {
    pub(crate) caller: Caller<Channel>,
    /// Its number among the streams that were tried for the session.
    pub(crate) epoch: u64,
    // After the caller: the socket goes last.
    pub(crate) socket: ReconnectingSocket,
}

/// A stream that was just opened, and what was said on it.
pub(crate) struct Connected {
    pub(crate) stream: SessionStream,
    pub(crate) session: InitializeReply,
    pub(crate) profile: Profile,
    pub(crate) executor: PublicKey,
    pub(crate) timings: Timings,
}

impl Connector {
    /// Opens a stream, and a session on it, or takes one up. EventDispatcher go to
    /// `events`; `epoch` is higher than in any try before.
    pub(crate) async fn connect(
        &self,
        events: &EventDispatcher,
        resume: Option<SessionId>,
        epoch: u64,
    ) -> Result<Connected, ConnectError> {
        let mut clock = Instant::now();
        let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();
        let reply = self.relay.request_ticket(&self.environment).await?;
        let ticket = lap();
        let socket = self.relay.dial(&reply).await?;
        let dial = lap();
        let profile = reply.security_profile;
        let identity = self.relay.identity.clone();
        let mut config = Config::orchestrator(identity, self.environment.clone());
        config.profiles = self.relay.profiles.clone();
        config.limits.grace = self.grace.get();
        let endpoint = Endpoint::new(Mux::new(config, random()?));
        let socket =
            ReconnectingSocket::start(self.relay.clone(), endpoint.clone(), &reply, socket);
        let channel = endpoint.connect(stream_to(&reply)?).await?;
        let handshake = lap();
        tracing::debug!(environment = %self.environment, %profile, "stream open");

        if !profile.is_reliable() {
            events.set_resumable();
        }
        let caller = Caller::new(channel, events.for_stream(epoch));
        let initialize = Initialize {
            client_name: "rendez".into(),
            resume_session_id: resume,
            rendez: Some(ClientExtensions {
                max_chunk: limits::PROCESS_CHUNK_LARGE_MAX_BYTES as u64,
            }),
        };
        let session = timeout(SESSION_TIMEOUT, caller.call::<Initialize>(&initialize))
            .await
            .map_err(|_| ConnectError::Timeout)?
            .map_err(ConnectError::Session)?;
        caller.notify(&Initialized {}).await.map_err(ConnectError::Session)?;
        let timings = Timings { ticket, dial, handshake, session: lap() };
        let stream = SessionStream { caller, epoch, socket };
        Ok(Connected { stream, session, profile, executor: reply.executor_public_key, timings })
    }
}

fn stream_to(reply: &ConnectReply) -> Result<Connect, ConnectError> {
    Ok(Connect {
        stream: StreamId::from_random(random()?),
        profile: reply.security_profile,
        registration: reply.executor_registration_id.clone(),
        peer: reply.executor_public_key.clone(),
        authorization: Bytes::copy_from_slice(reply.harness_key_authorization.expose().as_bytes()),
    })
}
