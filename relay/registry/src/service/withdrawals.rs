//! Ending what is open: what the registry says about live websockets.
//!
//! The `actor` of a call is whom the audit log names, `None` for who works on
//! the relay's machine.

use rendez_proto::audit::AuditKind;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::limits;
use rendez_proto::ticket::Purpose;

use super::Registry;
use super::tickets::Admitted;
use crate::model::Subject;
use crate::store::{StoreError, Withdrawn};

impl Registry {
    /// The number of the last withdrawal so far: where a relay begins to read.
    ///
    /// # Errors
    /// The store's.
    pub async fn last_withdrawal(&self) -> Result<u64, StoreError> {
        self.store().last_withdrawal().await
    }

    /// What was withdrawn after the withdrawal with this number, by whichever
    /// process, one page of it.
    ///
    /// # Errors
    /// The store's.
    pub async fn withdrawals(&self, after: u64) -> Result<Withdrawn, StoreError> {
        self.store().withdrawals(after, limits::WITHDRAWALS_PAGE).await
    }

    /// Whether what a ticket opened may still be open. A relay that lists a
    /// websocket among the live ones, then asks this, and then reads
    /// withdrawals misses none.
    ///
    /// # Errors
    /// The store's.
    pub async fn is_still_good(&self, admitted: &Admitted) -> Result<bool, StoreError> {
        let claims = &admitted.claims;
        let Some(current) = self.store().registration(&claims.environment).await? else {
            return Ok(false);
        };
        let superseded = claims.purpose == Purpose::Executor && current.id != claims.registration;
        Ok(!superseded && self.standing(&admitted.subject).await?.is_some())
    }

    /// Ends whatever came from this subject: its bearer, its tickets and its
    /// authorizations are refused from now on, and its live websockets close
    /// within seconds. `false`: there is no such token. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke(
        &self,
        actor: Option<&Subject>,
        subject: &Subject,
    ) -> Result<bool, StoreError> {
        let act = self.act(AuditKind::Revoke, actor, format!("token_revoked {subject}")).await?;
        let found = self.store().revoke(subject, self.now(), &act).await?;
        if found {
            tracing::info!(token = %subject, "token revoked");
        }
        Ok(found)
    }

    /// Ends an environment: its registration is gone, all its websockets close
    /// within seconds, and no credential that was made until now can register
    /// in it again. `false`: nobody ever registered. For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_environment(
        &self,
        actor: Option<&Subject>,
        environment: &EnvironmentId,
    ) -> Result<bool, StoreError> {
        let what = format!("environment_revoked {environment}");
        let act = self.act(AuditKind::Revoke, actor, what).await?;
        let found = self.store().revoke_environment(environment, self.now(), &act).await?;
        if found {
            tracing::info!(%environment, "environment revoked");
        }
        Ok(found)
    }

    /// Ends an environment's current registration, and closes its websockets
    /// within seconds; its executor may register anew. `None`: there was none.
    /// For admins.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_registration(
        &self,
        actor: Option<&Subject>,
        environment: &EnvironmentId,
    ) -> Result<Option<RegistrationId>, StoreError> {
        let what = format!("registration_ended {environment}");
        let act = self.act(AuditKind::Revoke, actor, what).await?;
        let ended = self.store().remove_registration(environment, self.now(), &act).await?;
        if let Some(registration) = &ended {
            tracing::info!(%environment, %registration, "registration ended");
        }
        Ok(ended)
    }
}
