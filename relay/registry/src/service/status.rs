//! What operators ask of a relay as a whole.

use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::registry::status::{
    AuditStatus, ConnectionCursor, ConnectionList, RegistrationEntry, RegistrationList, RelayStatus,
};

use super::Registry;
use crate::model::{Registration, TokenPattern};
use crate::page;
use crate::store::StoreError;

impl Registry {
    /// The relay as a whole. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn status(&self) -> Result<RelayStatus, StoreError> {
        let node = self.presence().node().await;
        Ok(RelayStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_unix_secs: self.inner.started_at,
            draining: node.draining,
            executors: node.executors as u64,
            orchestrators: node.orchestrators as u64,
            streams: node.streams as u64,
            audit: AuditStatus {
                head: self.audit().head().await?,
                unwritten: self.audit().unwritten() as u64,
                lost: self.audit().lost(),
            },
            history_unwritten: self.history().unwritten() as u64,
            history_lost: self.history().lost(),
        })
    }

    /// The websockets that are open, one page of them; of one environment or of
    /// all. For admins.
    pub async fn connections(
        &self,
        environment: Option<&EnvironmentId>,
        after: Option<&ConnectionCursor>,
    ) -> ConnectionList {
        let limit = limits::LIST_PAGE_MAX as usize;
        let connections = self.presence().connections(environment, after, limit).await;
        let next = page::next(&connections, |last| last.id.clone());
        ConnectionList { connections, next }
    }

    /// The current registration of each environment, one page of them. For
    /// admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn registrations(
        &self,
        after: Option<&EnvironmentId>,
    ) -> Result<RegistrationList, StoreError> {
        let page = self
            .store()
            .environments(&[TokenPattern::everything()], after, limits::LIST_PAGE_MAX)
            .await?;
        let next = page::next(&page, |last| last.id.clone());
        let registrations = page.into_iter().filter_map(|environment| environment.registration);
        Ok(RegistrationList { registrations: registrations.map(entry).collect(), next })
    }
}

fn entry(registration: Registration) -> RegistrationEntry {
    let fingerprint = registration.key.fingerprint();
    RegistrationEntry {
        environment_id: registration.environment,
        executor_registration_id: registration.id,
        generation: registration.generation,
        profiles: registration.profiles,
        key_fingerprint: fingerprint.iter().map(|byte| format!("{byte:02x}")).collect(),
        subject: registration.subject.to_string(),
        registered_at_unix_secs: registration.registered_at,
    }
}
