//! The registry's own events in the audit log.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, RegistrationId};

use super::context::Context;
use crate::model::Subject;
use crate::store::StoreError;

impl Context {
    /// Creates an event of this caller in this environment.
    pub(super) fn caller_event(
        &self,
        kind: AuditKind,
        actor: &Subject,
        environment: &EnvironmentId,
        registration: Option<&RegistrationId>,
    ) -> AuditEvent {
        AuditEvent {
            actor: Some(actor.to_string()),
            environment: Some(environment.clone()),
            registration: registration.cloned(),
            ..self.audit().event(kind)
        }
    }

    /// Creates the event of an operator's change, which the store writes in the
    /// transaction of the change. Writes the earlier events first. `actor` is
    /// `None` for an operator on the relay's machine.
    ///
    /// # Errors
    /// The database refused the earlier events.
    pub(super) async fn operator_event(
        &self,
        kind: AuditKind,
        actor: Option<&Subject>,
        what: String,
    ) -> Result<AuditEvent, StoreError> {
        self.audit().flush().await?;
        let event = self.audit().event(kind);
        Ok(AuditEvent { actor: actor.map(Subject::to_string), what: Some(what), ..event })
    }
}
