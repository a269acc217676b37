//! One row of the connection table.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{EnvironmentId, Generation, RegistrationId};
use rendez_proto::profile::Profile;
use rendez_proto::registry::environments::{EndReason, LiveExecutor};
use rendez_proto::registry::status::{ConnectionCursor, ConnectionEntry, ConnectionRole};
use rendez_registry::Registry;
use rendez_registry::model::Subject;
use rendez_registry::store::connections::{ConnectionId, ConnectionRow};
use rendez_relay_core::{MemoryCharge, PortKey};
use tokio_util::sync::CancellationToken;

use super::hub::SharedHub;
use super::traffic::Traffic;

/// One websocket, from its admission to its end.
pub(crate) struct Connection {
    /// Identifies it in the history.
    pub(super) id: ConnectionId,
    /// Whether it is an executor's; otherwise it is an orchestrator's.
    pub(crate) is_executor: bool,
    pub(crate) environment: EnvironmentId,
    pub(crate) registration: RegistrationId,
    pub(super) generation: Generation,
    /// The token that asked for its ticket.
    pub(crate) subject: Subject,
    pub(crate) profile: Profile,
    /// When it was admitted, in seconds since 1970.
    pub(super) connected_at: u64,
    /// When its token expires, in seconds since 1970.
    pub(super) expires_at: Option<u64>,
    pub(crate) hub: Arc<SharedHub>,
    pub(crate) port: PortKey,
    pub(crate) traffic: Traffic,
    /// Set once the second check of its ticket has passed.
    pub(super) is_open: AtomicBool,
    /// The close frame of its eviction, once it is evicted.
    pub(super) eviction: OnceLock<CloseFrame>,
    pub(super) evicted: CancellationToken,
}

impl Connection {
    /// Its key in the table.
    pub(super) fn key(&self) -> (EnvironmentId, u64) {
        (self.environment.clone(), self.id.number)
    }

    /// A charge to its accounts, for the bytes that its socket buffers.
    pub(crate) fn memory_charge(&self) -> MemoryCharge {
        self.hub.read(|hub| hub.memory_charge(self.port))
    }

    /// `executor` or `orchestrator`.
    pub(crate) fn role(&self) -> &'static str {
        if self.is_executor { "executor" } else { "orchestrator" }
    }

    /// Whether operators see it.
    pub(super) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// From now on no frame passes, in either direction, and the websocket closes
    /// with `frame`. A second eviction changes nothing.
    pub(super) fn evict(&self, frame: CloseFrame) {
        let _ = self.eviction.set(frame);
        self.hub.wake(self.port);
        self.evicted.cancel();
    }

    /// The close frame of its eviction, once it is evicted.
    pub(crate) fn eviction(&self) -> Option<&CloseFrame> {
        self.eviction.get()
    }

    /// Sends a ping as soon as the socket has room, and waits for its pong, or
    /// for that of a ping under way.
    pub(super) async fn ping(&self) {
        let mut pong = pin!(self.traffic.pong().notified());
        // Enabled before the request: the pong may come at once.
        pong.as_mut().enable();
        self.traffic.request_ping();
        self.hub.wake(self.port);
        pong.await;
    }

    /// Its row in a list of connections.
    pub(super) fn entry(&self) -> ConnectionEntry {
        let (environment, number) = self.key();
        ConnectionEntry {
            id: ConnectionCursor { environment, number }.to_string(),
            environment_id: self.environment.clone(),
            role: match self.is_executor {
                true => ConnectionRole::Executor,
                false => ConnectionRole::Orchestrator,
            },
            executor_registration_id: self.registration.clone(),
            generation: self.generation,
            subject: self.subject.to_string(),
            profile: self.profile.to_string(),
            connected_at_unix_secs: self.connected_at,
            verified_ms_ago: self.traffic.verified().map(|round_trip| round_trip.age_ms),
            received_bytes: self.traffic.received_bytes(),
            sent_bytes: self.traffic.sent_bytes(),
        }
    }

    /// Its part of an environment's details.
    pub(super) fn live(&self) -> LiveExecutor {
        LiveExecutor {
            executor_registration_id: self.registration.clone(),
            connected_at_unix_secs: self.connected_at,
            verified: self.traffic.verified(),
            received_bytes: self.traffic.received_bytes(),
            sent_bytes: self.traffic.sent_bytes(),
        }
    }

    /// An audit event about it.
    pub(super) fn event(&self, registry: &Registry, kind: AuditKind) -> AuditEvent {
        AuditEvent {
            actor: Some(self.subject.to_string()),
            environment: Some(self.environment.clone()),
            registration: Some(self.registration.clone()),
            what: Some(self.role().to_owned()),
            ..registry.audit().event(kind)
        }
    }

    /// Its record in the history. The bytes are recorded when it has ended.
    pub(super) fn record(&self, ended: Option<(u64, EndReason)>) -> ConnectionRow {
        let at_end = |bytes| if ended.is_some() { bytes } else { 0 };
        ConnectionRow {
            id: self.id.clone(),
            environment: self.environment.clone(),
            registration: self.registration.clone(),
            generation: self.generation,
            connected_at: self.connected_at,
            ended,
            received_bytes: at_end(self.traffic.received_bytes()),
            sent_bytes: at_end(self.traffic.sent_bytes()),
        }
    }
}
