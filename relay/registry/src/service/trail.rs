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

    /// Notes what must leave a trace, before it is done.
    ///
    /// # Errors
    /// The database refused: then it is not to be done.
    pub async fn witness(
        &self,
        kind: AuditKind,
        actor: Option<&Subject>,
        what: &str,
    ) -> Result<(), StoreError> {
        let event = self.audit().event(kind);
        let (actor, what) = (actor.map(Subject::to_string), Some(what.to_owned()));
        let event = AuditEvent { actor, what, ..event };
        self.audit().commit(event).await.map(drop)
    }
}
