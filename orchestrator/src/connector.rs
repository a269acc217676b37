//! Opens a connection step by step: ticket, websocket, handshake, session.

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

/// The time limit for the executor to open a session
/// (docs/codex-wire.md#handshake-limits).
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens connections to the executor of one environment.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) relay: Arc<RelayEndpoint>,
    pub(crate) environment: EnvironmentId,
    pub(crate) grace: Grace,
}

/// The durations of the steps of connecting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timings {
    /// Requesting a ticket from the registry.
    pub ticket: Duration,
    /// Opening the websocket: name lookup, TCP, TLS, upgrade.
    pub dial: Duration,
    /// The Noise handshake with the executor, including the executor's request to
    /// the registry.
    pub handshake: Duration,
    /// Opening the session: the first round trip on the stream.
    pub session: Duration,
}

/// A stream that carries the session, and its websocket.
pub(crate) struct SessionStream {
    pub(crate) caller: Caller<Channel>,
    /// The number of this stream. Every attempt to open one for the session takes
    /// the next number.
    pub(crate) epoch: u64,
    // Declared after the caller, because the socket must be dropped last.
    pub(crate) socket: ReconnectingSocket,
}

/// A stream on which a session was just opened or resumed.
pub(crate) struct Connected {
    pub(crate) stream: SessionStream,
    pub(crate) session: InitializeReply,
    pub(crate) profile: Profile,
    pub(crate) executor: PublicKey,
    pub(crate) timings: Timings,
}

impl Connector {
    /// Opens a stream, and opens or resumes a session on it. Notifications go to
    /// `events`. `epoch` must be higher than in every earlier attempt.
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
