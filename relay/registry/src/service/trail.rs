//! What the registry's own calls leave in the audit log.

use rendez_proto::audit::{AuditEvent, AuditKind};
use rendez_proto::ids::{EnvironmentId, RegistrationId};

use super::Registry;
use crate::model::Subject;
use crate::store::StoreError;

impl Registry {
    /// Notes what happens often.
    pub(super) fn trail(
        &self,
        kind: AuditKind,
        actor: &str,
        environment: &EnvironmentId,
        registration: Option<&RegistrationId>,
        what: Option<&str>,
    ) {
        let event = self.audit().event(kind);
        self.audit().record(AuditEvent {
            actor: Some(actor.to_owned()),
            environment: Some(environment.clone()),
            registration: registration.cloned(),
            what: what.map(str::to_owned),
            ..event
        });
    }

    /// The row of what an operator does, which the store writes together with
    /// it, behind all that was noted before. `actor` is `None` for who works on
    /// the relay's machine.
    ///
    /// # Errors
    /// The database refused what was noted before.
    pub(super) async fn act(
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
