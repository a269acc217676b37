//! The relay through which a client reaches executors: for connecting and for
//! reconnecting.

use rendez_endpoint::Identity;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::profile::Profile;
use rendez_proto::registry::{ConnectReply, ConnectRequest, Profiles};
use rendez_registry_client::{OrchestratorClient, RegistryError};
use rendez_transport::dial::{DialledSocket, dial};

use crate::error::ConnectError;

/// A relay, with the client's identity and accepted profiles.
pub(crate) struct RelayEndpoint {
    pub(crate) registry: OrchestratorClient,
    pub(crate) identity: Identity,
    pub(crate) profiles: Vec<Profile>,
}

impl RelayEndpoint {
    /// Requests a ticket, and checks that the reply is for this environment and not
    /// a downgrade.
    pub(crate) async fn request_ticket(
        &self,
        environment: &EnvironmentId,
    ) -> Result<ConnectReply, ConnectError> {
        let request = ConnectRequest {
            harness_public_key: self.identity.public().clone(),
            rendez: Some(Profiles { profiles: self.profiles.clone() }),
        };
        let reply = self.registry.connect(environment, &request).await?;
        if reply.environment_id != *environment {
            let why = format!("it is for {} instead of {environment}", reply.environment_id);
            return Err(RegistryError::Malformed(why).into());
        }
        let offered = reply.rendez.as_ref().map_or(&[][..], |offer| &offer.profiles);
        match best(&self.profiles, offered, reply.security_profile) {
            Some(best) if best == reply.security_profile => Ok(reply),
            _ => Err(ConnectError::Downgrade(reply.security_profile)),
        }
    }

    /// Opens the websocket with the ticket of a reply.
    pub(crate) async fn dial(&self, reply: &ConnectReply) -> Result<DialledSocket, ConnectError> {
        Ok(dial(reply.url.expose()).await?)
    }
}

/// Returns the best accepted profile among those that the executor offers and the
/// one that the registry chose.
fn best(accepted: &[Profile], offered: &[Profile], chosen: Profile) -> Option<Profile> {
    accepted.iter().copied().find(|profile| offered.contains(profile) || *profile == chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferred_profile_detects_downgrade() {
        use Profile::{NoiseHybridIkV1 as Codex, RendezHybridIkV1 as Ours, RendezIkV1 as Ik};
        let accepted = [Ours, Codex];
        assert_eq!(best(&accepted, &[Codex, Ours], Ours), Some(Ours));
        assert_eq!(best(&accepted, &[Codex, Ours], Codex), Some(Ours));
        assert_eq!(best(&accepted, &[Codex], Codex), Some(Codex));
        assert_eq!(best(&accepted, &[], Codex), Some(Codex), "a stock registry");
        assert_eq!(best(&accepted, &[], Ik), None);
    }
}
