//! What the registry's own calls leave in the audit log.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, RegistrationId};

use super::context::Context;
use crate::model::Subject;
use crate::store::StoreError;

impl Context {
    /// An event of this actor in this environment.
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

    /// The row of what an operator does, which the store writes together with
    /// it, behind all that was noted before. `actor` is `None` for who works on
    /// the relay's machine.
    ///
    /// # Errors
    /// The database refused what was noted before.
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
