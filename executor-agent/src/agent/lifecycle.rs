//! Keeps the agent connected: runs the phases of [`phase`](super::phase).

use std::sync::atomic::{AtomicBool, Ordering};

use rendez_transport::dial::{DialledSocket, dial};
use rendez_transport::pump;
use tokio::time::Instant;

use super::phase::{AgentPhase, BackOff, Dial, Register, Retries, Serve};
use super::{Agent, AgentError, AgentState};
use crate::registry::registration;

/// A running agent: the work of each phase.
pub(super) struct Lifecycle<'a, F> {
    agent: &'a Agent,
    on_state: F,
    /// Whether the websocket is open.
    connected: &'a AtomicBool,
    retries: Retries,
}

impl<'a, F: Fn(AgentState)> Lifecycle<'a, F> {
    pub(super) fn new(agent: &'a Agent, connected: &'a AtomicBool, on_state: F) -> Self {
        Self { agent, on_state, connected, retries: Retries::default() }
    }

    /// Returns after [`Endpoint::shut_down`](rendez_rpc::Endpoint::shut_down).
    ///
    /// # Errors
    /// The registry refused the token or the registration.
    pub(super) async fn run(mut self) -> Result<(), AgentError> {
        let mut phase = AgentPhase::start();
        loop {
            phase = match phase {
                AgentPhase::Register(register) => self.register(register).await?,
                AgentPhase::Dial(dial) => self.dial(dial).await,
                AgentPhase::Serve(serve, socket) => self.serve(serve, socket).await,
                AgentPhase::BackOff(back_off) => self.back_off(back_off).await,
                AgentPhase::Stopped => return Ok(()),
            };
        }
    }

    async fn register(&self, register: Register) -> Result<AgentPhase<DialledSocket>, AgentError> {
        (self.on_state)(AgentState::Registering);
        let Agent { registry, identity, config, .. } = self.agent;
        let request = registration(identity, &config.profiles);
        let reply = match registry.register(&request).await {
            Ok(reply) => reply,
            Err(error) => return Ok(AgentPhase::BackOff(register.failed(error)?)),
        };
        let registration = reply.executor_registration_id.clone();
        tracing::info!(environment = %config.environment, %registration, "registered");
        (self.on_state)(AgentState::Registered { registration });
        Ok(AgentPhase::Dial(register.registered(reply)))
    }

    async fn dial(&self, state: Dial) -> AgentPhase<DialledSocket> {
        match dial(state.url()).await {
            Ok(socket) => AgentPhase::Serve(state.connected(), socket),
            Err(error) => AgentPhase::BackOff(state.failed(&error)),
        }
    }

    async fn serve(&mut self, serve: Serve, socket: DialledSocket) -> AgentPhase<DialledSocket> {
        tracing::info!(registration = %serve.registration(), "connected");
        (self.on_state)(AgentState::Connected);
        self.connected.store(true, Ordering::Relaxed);
        let since = Instant::now();
        let mut driver = self.agent.endpoint.attach(serve.registration().clone());
        let ended = pump(socket, &mut driver).await;
        drop(driver);
        self.connected.store(false, Ordering::Relaxed);
        if self.agent.endpoint.is_shut_down() {
            return AgentPhase::Stopped;
        }
        self.retries.disconnected(&ended, since.elapsed());
        AgentPhase::BackOff(serve.closed(&ended))
    }

    async fn back_off(&mut self, back_off: BackOff) -> AgentPhase<DialledSocket> {
        let mut random = [0xff; 4];
        // without random numbers it waits for the longest time
        let _ = getrandom::fill(&mut random);
        let endpoint = &self.agent.endpoint;
        let retry_in = self.retries.next_delay(endpoint.has_streams(), u32::from_le_bytes(random));
        let error = back_off.error.clone();
        let retry_ms = retry_in.as_millis();
        if self.retries.warns(&back_off) {
            tracing::warn!(%error, retry_ms, "not connected");
        } else {
            tracing::info!(%error, retry_ms, "not connected");
        }
        (self.on_state)(AgentState::Waiting { error, retry_in });
        endpoint.wait_detached(retry_in).await;
        back_off.elapsed()
    }
}
