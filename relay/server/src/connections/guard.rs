//! The owner of one websocket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::registry::environments::EndReason;
use rendez_registry::model::Subject;
use rendez_registry::{Admitted, Registry};
use rendez_relay_core::JoinError;
use tokio::time::sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::connection::Connection;
use super::permit::ConnectionPermit;
use super::stats::End;
use super::table::ConnectionTable;

/// How long an evicted websocket may take to complete the close handshake before
/// it is dropped.
pub(super) const EVICTION_GRACE: Duration = Duration::from_secs(2);

/// Everything that one websocket holds: its port in the hub, its row in the
/// table (which lists it for operators, for revocations and for the expiry of
/// its token), its records in history and audit log, its share of the tasks that
/// a shutdown waits for, and its permit of the listener.
///
/// [`join`](Self::join) makes it, [`open`](Self::open) records the connection, and
/// [`end`](Self::end) or a drop gives everything back.
pub(crate) struct ConnectionGuard {
    connection: Arc<Connection>,
    table: Arc<ConnectionTable>,
    registry: Registry,
    end: Option<End>,
    /// Dropped in this order, after the rest: a shutdown waits until the
    /// websocket is gone from hub and table.
    _task: TaskTrackerToken,
    _permit: ConnectionPermit,
}

impl ConnectionGuard {
    /// Joins an admitted websocket to its environment's hub.
    ///
    /// # Errors
    /// [`JoinError`]: the registration is stale, or a quota is used up.
    pub(crate) fn join(
        table: &Arc<ConnectionTable>,
        registry: &Registry,
        admitted: &Admitted,
        permit: ConnectionPermit,
    ) -> Result<Self, JoinError> {
        Ok(Self {
            connection: table.insert(registry, admitted)?,
            table: table.clone(),
            registry: registry.clone(),
            end: None,
            _task: table.task(),
            _permit: permit,
        })
    }

    /// The row of the websocket in the table.
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Records the connection in history and audit log, and shows it to operators.
    pub(crate) fn open(&self) {
        let Self { connection, registry, .. } = self;
        if connection.is_executor {
            registry.history().record(connection.record(None));
        }
        registry.audit().record(connection.event(registry, AuditKind::Open));
        connection.is_open.store(true, Ordering::Relaxed);
    }

    /// Completes when the websocket was evicted and has not closed within
    /// [`EVICTION_GRACE`].
    pub(crate) async fn eviction_overdue(&self) -> CloseFrame {
        self.connection.evicted.cancelled().await;
        sleep(EVICTION_GRACE).await;
        self.connection.eviction().cloned().unwrap_or(CloseFrame::RESTARTING)
    }

    /// Audits a limit that a message of this websocket exceeded.
    pub(crate) fn audit_refusal(&self, limit: &str) {
        let Connection { subject, environment, registration, .. } = &*self.connection;
        audit_refusal(&self.registry, subject, environment, registration, limit);
    }

    /// Counts and audits a message that waits for memory.
    pub(crate) fn count_memory_wait(&self) {
        self.table.connection_stats().count_memory_wait();
        self.audit_refusal("memory for an unfinished message");
    }

    /// Ends the connection. Without this a drop records it as broken.
    pub(crate) fn end(mut self, end: End) {
        match end {
            End::MessageTimeout => self.audit_refusal("time for one message"),
            End::NotReading => self.audit_refusal("time without reading"),
            _ => {}
        }
        self.end = Some(end);
    }
}

impl Drop for ConnectionGuard {
    /// The order matters: the end reason is recorded before the executor leaves
    /// the hub, so that a later `/connect` can report it.
    fn drop(&mut self) {
        if self.connection.is_open() {
            self.record_end();
        }
        self.table.remove(&self.connection);
        self.connection.hub.leave(self.connection.port);
        if let Some(end) = self.end {
            self.table.connection_stats().count_ended(end);
        }
    }
}

impl ConnectionGuard {
    fn record_end(&self) {
        let Self { connection, registry, .. } = self;
        // Without a reason the client left between the ticket's check and the upgrade,
        // or the task was dropped.
        let reason = self.end.map_or(EndReason::SocketError, End::reason);
        if connection.is_executor {
            let now = registry.unix_now().max(connection.connected_at);
            registry.history().record(connection.record(Some((now, reason))));
        }
        registry.audit().record(AuditEvent {
            what: Some(format!("{} {}", connection.role(), reason.as_str())),
            received_bytes: Some(connection.traffic.received_bytes()),
            sent_bytes: Some(connection.traffic.sent_bytes()),
            ..connection.event(registry, AuditKind::Close)
        });
    }
}

/// Audits a limit that a token exceeded.
pub(crate) fn audit_refusal(
    registry: &Registry,
    subject: &Subject,
    environment: &EnvironmentId,
    registration: &RegistrationId,
    limit: &str,
) {
    let audit = registry.audit();
    audit.record_refusal(AuditEvent {
        actor: Some(subject.to_string()),
        environment: Some(environment.clone()),
        registration: Some(registration.clone()),
        what: Some(limit.to_owned()),
        count: Some(1),
        ..audit.event(AuditKind::Quota)
    });
}
