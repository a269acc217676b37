//! The agent's credentials for the registry, and the registration that it
//! requests.

use rendez_endpoint::Identity;
use rendez_proto::profile::{Profile, Suite};
use rendez_proto::registry::{Profiles, RegisterRequest};
use rendez_registry_client::ExecutorAuth;

use crate::config::{AgentConfig, Auth};
use crate::credential::{Credential, CredentialError};

/// Loads the credentials that the settings name.
///
/// # Errors
/// The agent's own key cannot be read or created.
pub(crate) fn auth(config: &AgentConfig) -> Result<ExecutorAuth, CredentialError> {
    let key = || {
        Credential::load_or_create(&config.state, &config.relay, &config.environment)
            .map(|credential| Box::new(credential.into_key()))
    };
    Ok(match &config.auth {
        Auth::Bearer(token) => ExecutorAuth::Bearer(token.clone()),
        Auth::Join(token) => ExecutorAuth::Key { key: key()?, join: Some(token.clone()) },
        Auth::Enrolled => ExecutorAuth::Key { key: key()?, join: None },
    })
}

/// Builds the registration. `security_profile` is for registries that know only
/// the stock profiles; the list is for ours.
pub(crate) fn registration(identity: &Identity, profiles: &[Profile]) -> RegisterRequest {
    let stock = Profile::NoiseHybridIkV1;
    let security_profile = match profiles.first() {
        Some(first) if !profiles.contains(&stock) => *first,
        _ => stock,
    };
    let hybrid = profiles.iter().any(|profile| profile.suite() == Suite::HybridIk);
    let suite = if hybrid { Suite::HybridIk } else { security_profile.suite() };
    RegisterRequest {
        security_profile,
        executor_public_key: identity.public_for(suite).clone(),
        rendez: Some(Profiles { profiles: profiles.to_vec() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{config, identity};
    use rendez_proto::proof::{Call, PROOF_HEADER, Proof};
    use rendez_registry_client::ExecutorClient;
    use rendez_registry_client::testing::FakeRegistry;

    fn client(config: &AgentConfig) -> ExecutorClient {
        let base = config.relay.as_url().clone();
        ExecutorClient::new(base, config.environment.clone(), auth(config).unwrap()).unwrap()
    }

    const GOOD: &str = r#"{"environment_id":"dev","url":"ws://h/x?ticket=secret",
        "security_profile":"noise_hybrid_ik_v1","executor_registration_id":"reg-1","later":1}"#;

    #[tokio::test]
    async fn registration_has_stock_fields_and_profile_list() {
        let fake = FakeRegistry::start().await;
        fake.answer("register", 201, GOOD);
        let profiles = [Profile::RendezHybridIkV1, Profile::NoiseHybridIkV1];
        let client = client(&config(&fake.url(), std::path::Path::new("/none")));
        let reply = client.register(&registration(&identity(), &profiles)).await.unwrap();
        assert_eq!(reply.executor_registration_id.as_str(), "reg-1");
        assert!(!format!("{reply:?}").contains("secret"));
        let request = fake.requests().remove(0);
        assert_eq!(request.path, "/cloud/environment/dev/register");
        assert_eq!(request.header("authorization"), Some("Bearer t0k"));
        let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body["security_profile"], "noise_hybrid_ik_v1");
        assert_eq!(body["executor_public_key"], serde_json::to_value(identity().public()).unwrap());
        assert_eq!(
            body["rendez"]["profiles"],
            serde_json::json!(["rendez_hybrid_ik_v1", "noise_hybrid_ik_v1"])
        );
    }

    #[test]
    fn first_profile_replaces_missing_stock_profile() {
        let only = registration(&identity(), &[Profile::RendezIkV1]);
        assert_eq!(only.security_profile, Profile::RendezIkV1);
        assert_eq!(only.executor_public_key.suite(), Suite::Ik);
        let both = registration(&identity(), &[Profile::RendezIkV1, Profile::RendezHybridIkV1]);
        assert_eq!(both.security_profile, Profile::RendezIkV1);
        assert_eq!(both.executor_public_key.suite(), Suite::HybridIk);
    }

    #[tokio::test]
    async fn join_token_is_sent_until_key_is_enrolled() {
        let fake = FakeRegistry::start().await;
        fake.answer("register", 503, "");
        let state = tempfile::tempdir().unwrap();
        let mut config = config(&fake.url(), state.path());
        config.auth = Auth::of_token("rdz_j_planted".to_owned().into());
        let joining = client(&config);
        let request = registration(&identity(), &[Profile::NoiseHybridIkV1]);
        joining.register(&request).await.unwrap_err();
        fake.answer("register", 200, GOOD);
        for _ in 0..2 {
            joining.register(&request).await.unwrap();
        }
        config.auth = Auth::Enrolled;
        client(&config).register(&request).await.unwrap();

        let requests = fake.requests();
        let bearers: Vec<_> = requests.iter().map(|r| r.header("authorization")).collect();
        let join = Some("Bearer rdz_j_planted");
        assert_eq!(bearers, [join, join, None, None]);
        let proofs: Vec<_> = requests
            .iter()
            .map(|r| Proof::verify(r.header(PROOF_HEADER).unwrap()).unwrap())
            .collect();
        for (proof, request) in proofs.iter().zip(&requests) {
            assert_eq!((proof.call, proof.key), (Call::Register, proofs[0].key));
            assert_eq!(proof.body, rendez_proto::proof::body_hash(&request.body));
        }
    }
}
