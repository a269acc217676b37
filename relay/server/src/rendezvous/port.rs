//! A hub's port as the protocol of a pump.

use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rendez_proto::close::CloseFrame;
use rendez_proto::peek::peek;
use rendez_relay_core::PortKey;
use rendez_transport::{Protocol, Violation};

use crate::connections::{Connection, ConnectionGuard, SharedHub};

/// One websocket's port, as long as its pump runs.
pub(super) struct HubPort<'a> {
    hub: &'a SharedHub,
    key: PortKey,
    connection: &'a Connection,
    guard: &'a ConnectionGuard,
}

impl<'a> HubPort<'a> {
    pub(super) fn new(guard: &'a ConnectionGuard) -> Self {
        let connection = guard.connection();
        Self { hub: &connection.hub, key: connection.port, connection, guard }
    }

    fn is_evicted(&self) -> bool {
        self.connection.eviction().is_some()
    }
}

impl Protocol for HubPort<'_> {
    fn handle_message(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        if self.is_evicted() {
            return Ok(());
        }
        trace("received", &message);
        self.connection.traffic.count_received(message.len());
        let refusal = self
            .hub
            .change(|hub| hub.handle_message(self.key, message, now))
            .map_err(|_| Violation(CloseFrame::MALFORMED))?;
        // Without the hub's lock.
        if let Some(refusal) = refusal {
            self.guard.audit_refusal(refusal.as_str());
        }
        Ok(())
    }

    fn wants_read(&self) -> bool {
        // An evicted websocket is read, so that its reply to the close is seen.
        self.is_evicted() || self.hub.read(|hub| hub.wants_read(self.key))
    }

    /// A relay forwards frames as they are.
    fn poll_transmit(&mut self, _now: Instant, _budget: usize) -> Option<Bytes> {
        if self.is_evicted() {
            return None;
        }
        let message = self.hub.change(|hub| hub.poll_transmit(self.key))?;
        trace("sent", &message);
        self.connection.traffic.count_sent(message.len());
        Some(message)
    }

    /// When a port that a rate limit paused is read again. The sweeper runs the
    /// hub's other timers: they must run even when no websocket is left.
    fn poll_timeout(&self) -> Option<Instant> {
        self.hub.read(|hub| hub.poll_port_timeout(self.key))
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.hub.change(|hub| hub.handle_port_timeout(self.key, now));
    }

    fn register(&mut self, waker: &Waker) {
        self.hub.register(self.key, waker);
    }

    fn closing(&self) -> Option<CloseFrame> {
        match self.connection.eviction() {
            Some(frame) => Some(frame.clone()),
            None => self.hub.closing(self.key),
        }
    }

    fn wants_ping(&mut self) -> bool {
        self.connection.traffic.take_ping_request()
    }

    fn handle_pong(&mut self, now: Instant, round_trip: Duration) {
        self.connection.traffic.note_pong(now, round_trip);
    }
}

/// Logs the cleartext part of a frame.
fn trace(direction: &'static str, message: &[u8]) {
    if tracing::enabled!(tracing::Level::TRACE)
        && let Ok(frame) = peek(message)
    {
        let kind = frame.kind.as_str();
        // The id is quoted: its bytes are an orchestrator's choice.
        tracing::trace!(direction, stream = ?frame.stream, kind, bytes = message.len(), "frame");
    }
}
