//! The agent's two calls to the registry (WIRE.md, sections 1.1 and 1.3).
//!
//! Errors tell whose fault it is, because the agent lives on with some of
//! them: see [`RegistryError::is_final`]. No error holds the token or the
//! rendezvous URL, which has a ticket in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rendez_endpoint::Identity;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::profile::{Profile, Suite};
use rendez_proto::proof::{Call, PROOF_HEADER};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};
use rendez_proto::registry::{
    Profiles, RegisterReply, RegisterRequest, STREAM_ID_HEADER, ValidateReply, ValidateRequest,
};
use rendez_transport::cause;
use rendez_transport::dial::REGISTRY_CONNECT_TIMEOUT;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Response, StatusCode};
use rustls::ClientConfig;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use crate::config::{AgentConfig, Auth, RelayUrl};
use crate::credential::{Credential, CredentialError};

/// How long one call may take. Codex, section 1.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The registry, as an executor of one environment uses it.
pub struct Registry {
    http: reqwest::Client,
    relay: RelayUrl,
    environment: EnvironmentId,
    access: Access,
}

/// What each call carries.
enum Access {
    /// A bearer token.
    Bearer(SecretString),
    /// A new proof, and until it has worked, the join token.
    Key { credential: Box<Credential>, join: Option<SecretString>, joined: AtomicBool },
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// HTTP cannot be set up on this machine.
    #[error("cannot set up connections: {0}")]
    Http(#[from] reqwest::Error),
    /// The key cannot be had.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Nobody answered.
    #[error("cannot reach the registry at {at}: {why}")]
    Unreachable {
        /// The registry.
        at: String,
        /// The reason.
        why: String,
    },
    /// This machine cannot make the request.
    #[error("cannot ask the registry: {0}")]
    Ours(String),
    /// The token or key is unknown, expired or revoked, or may not do this.
    #[error("the registry refused the token: {0}")]
    RefusedToken(String),
    /// The registry does not want this registration; another try is the same.
    #[error("the registry refused: {0}")]
    Refused(String),
    /// The registry cannot answer now.
    #[error("the registry is not available: {0}")]
    Unavailable(String),
    /// What came back is not a registry's answer.
    #[error("this is not a registry's answer: {0}")]
    Malformed(String),
}

impl RegistryError {
    /// Whether only a person can help: everything else is tried again.
    pub fn is_final(&self) -> bool {
        matches!(self, RegistryError::RefusedToken(_) | RegistryError::Refused(_))
    }
}

/// What the registry says about a key that knocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may come in.
    Valid,
    /// It may not, or the registry could not say.
    Invalid(String),
    /// The registry does not accept the agent's own token (401).
    AuthenticationRejected,
}

impl Registry {
    /// A client with the settings of `config`.
    ///
    /// # Errors
    /// The HTTP client cannot be built, or the credential not be had.
    pub fn new(config: &AgentConfig, tls: &Arc<ClientConfig>) -> Result<Self, SetupError> {
        let credential =
            || Credential::load_or_create(&config.state, &config.relay, &config.environment);
        let joined = AtomicBool::new(false);
        let access = match &config.auth {
            Auth::Bearer(token) => Access::Bearer(token.clone()),
            Auth::Join(token) => Access::Key {
                credential: Box::new(credential()?),
                join: Some(token.clone()),
                joined,
            },
            Auth::Enrolled => {
                Access::Key { credential: Box::new(credential()?), join: None, joined }
            }
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(ClientConfig::clone(tls))
            .redirect(reqwest::redirect::Policy::none())
            .timeout(CALL_TIMEOUT)
            .connect_timeout(REGISTRY_CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .build()?;
        Ok(Self {
            http,
            relay: config.relay.clone(),
            environment: config.environment.clone(),
            access,
        })
    }

    /// Claims the environment for `identity`, offering `profiles`.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub async fn register(
        &self,
        identity: &Identity,
        profiles: &[Profile],
    ) -> Result<RegisterReply, RegistryError> {
        let request = registration(identity, profiles);
        let answer = self.post(Call::Register, &request)?.send().await;
        let answer = answer.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        let body = self.body(answer).await?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let reply: RegisterReply = serde_json::from_slice(&body)
            .map_err(|error| RegistryError::Malformed(error.to_string()))?;
        if reply.environment_id != self.environment {
            return Err(RegistryError::Malformed("it is about another environment".into()));
        }
        if reply.security_profile != request.security_profile {
            return Err(RegistryError::Malformed("it names another security profile".into()));
        }
        if let Access::Key { join: Some(_), joined, .. } = &self.access
            && !joined.swap(true, Ordering::Relaxed)
        {
            tracing::info!("joined: this agent has a key of its own, and needs no token any more");
        }
        Ok(reply)
    }

    /// Asks about one handshake, once.
    pub async fn validate(&self, request: &ValidateRequest, stream: Option<&str>) -> Verdict {
        let verdict = async {
            let mut call = self.post(Call::Validate, request)?;
            if let Some(stream) = stream {
                call = call.header(STREAM_ID_HEADER, stream);
            }
            self.verdict(call).await
        };
        verdict.await.unwrap_or_else(|error| Verdict::Invalid(error.to_string()))
    }

    async fn verdict(&self, call: reqwest::RequestBuilder) -> Result<Verdict, RegistryError> {
        let answer = call.send().await.map_err(|error| self.unreachable(&error))?;
        let status = answer.status();
        if status == StatusCode::UNAUTHORIZED {
            return Ok(Verdict::AuthenticationRejected);
        }
        let body = self.body(answer).await?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let reply: ValidateReply = serde_json::from_slice(&body)
            .map_err(|error| RegistryError::Malformed(error.to_string()))?;
        Ok(match reply.valid {
            true => Verdict::Valid,
            false => Verdict::Invalid("the registry said no".into()),
        })
    }

    fn post(
        &self,
        call: Call,
        body: &impl Serialize,
    ) -> Result<reqwest::RequestBuilder, RegistryError> {
        let ours = |error: &dyn std::fmt::Display| RegistryError::Ours(error.to_string());
        let body = serde_json::to_vec(body).map_err(|error| ours(&error))?;
        let name = match call {
            Call::Register => "register",
            Call::Validate => "validate",
        };
        let url = self.relay.call(&self.environment, name);
        let request = self.http.post(url).header(CONTENT_TYPE, "application/json");
        let request = match &self.access {
            Access::Bearer(token) => request.bearer_auth(token.expose_secret()),
            Access::Key { credential, join, joined } => {
                let proof = credential.prove(call, &body).map_err(|error| ours(&error))?;
                let request = request.header(PROOF_HEADER, proof);
                match join {
                    Some(join) if !joined.load(Ordering::Relaxed) => {
                        request.bearer_auth(join.expose_secret())
                    }
                    _ => request,
                }
            }
        };
        Ok(request.body(body))
    }

    async fn body(&self, mut answer: Response) -> Result<Vec<u8>, RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            body.extend_from_slice(&chunk);
            if body.len() > limits::REGISTRY_BODY_MAX_BYTES {
                return Err(RegistryError::Malformed("it is too long".into()));
            }
        }
        Ok(body)
    }

    fn unreachable(&self, error: &reqwest::Error) -> RegistryError {
        let why = match error.is_timeout() {
            true => "no answer in time".to_owned(),
            false => cause::innermost(error).to_string(),
        };
        RegistryError::Unreachable { at: self.relay.to_string(), why }
    }
}

/// The first profile is for registries that know only stock ones; the list is
/// for ours.
fn registration(identity: &Identity, profiles: &[Profile]) -> RegisterRequest {
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

fn refusal(status: StatusCode, body: &[u8]) -> RegistryError {
    let said = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    let text = match &said {
        Some(error) => format!("{error}, HTTP {}", status.as_u16()),
        None => format!("HTTP {}, without an explanation that can be read", status.as_u16()),
    };
    match (status, said.map(|error| error.code)) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => RegistryError::RefusedToken(text),
        (
            _,
            Some(
                ErrorCode::InvalidRequest
                | ErrorCode::BodyTooLarge
                | ErrorCode::UnsupportedProfile
                | ErrorCode::LegacyRegistration,
            ),
        ) => RegistryError::Refused(text),
        // a proxy without its backend says 404, too
        _ => RegistryError::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeRegistry, config, identity};
    use rendez_proto::ids::RegistrationId;
    use rendez_proto::proof::Proof;

    fn registry(fake: &FakeRegistry) -> Registry {
        let tls = rendez_transport::tls::client_config().unwrap();
        Registry::new(&config(&fake.url(), std::path::Path::new("/none")), &tls).unwrap()
    }

    const GOOD: &str = r#"{"environment_id":"dev","url":"ws://h/x?ticket=secret",
        "security_profile":"noise_hybrid_ik_v1","executor_registration_id":"reg-1","later":1}"#;

    #[tokio::test]
    async fn registering_sends_the_stock_body_and_our_list() {
        let fake = FakeRegistry::start().await;
        fake.answer("register", 201, GOOD);
        let profiles = [Profile::RendezHybridIkV1, Profile::NoiseHybridIkV1];
        let reply = registry(&fake).register(&identity(), &profiles).await.unwrap();
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
    fn without_the_stock_profile_the_first_one_stands_for_all() {
        let only = registration(&identity(), &[Profile::RendezIkV1]);
        assert_eq!(only.security_profile, Profile::RendezIkV1);
        assert_eq!(only.executor_public_key.suite(), Suite::Ik);
        let both = registration(&identity(), &[Profile::RendezIkV1, Profile::RendezHybridIkV1]);
        assert_eq!(both.security_profile, Profile::RendezIkV1);
        assert_eq!(both.executor_public_key.suite(), Suite::HybridIk);
    }

    #[tokio::test]
    async fn failures_tell_whose_fault_they_are() {
        let error = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
        let other = GOOD.replace("\"dev\"", "\"prod\"");
        let profile = GOOD.replace("noise_hybrid_ik_v1", "rendez_ik_v1");
        let long = " ".repeat(limits::REGISTRY_BODY_MAX_BYTES + 1);
        for (status, body, is_final, text) in [
            (401, error("unauthorized"), true, "refused the token: m (unauthorized), HTTP 401"),
            (403, "no".into(), true, "refused the token: HTTP 403"),
            (400, error("unsupported_profile"), true, "refused: m"),
            (404, "<html>".into(), false, "not available: HTTP 404"),
            (307, String::new(), false, "not available: HTTP 307"),
            (409, error("limit_reached"), false, "not available"),
            (503, error("unavailable"), false, "not available: m"),
            (200, "<html>".into(), false, "not a registry's answer"),
            (200, "{}".into(), false, "not a registry's answer: missing field"),
            (200, other, false, "another environment"),
            (200, profile, false, "another security profile"),
            (200, long, false, "too long"),
        ] {
            let fake = FakeRegistry::start().await;
            fake.answer("register", status, &body);
            let error = registry(&fake).register(&identity(), &[Profile::NoiseHybridIkV1]).await;
            let error = error.unwrap_err();
            assert_eq!(error.is_final(), is_final, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn a_joined_agent_proves_its_key_and_shows_the_join_token_until_then() {
        let fake = FakeRegistry::start().await;
        fake.answer("register", 503, "");
        let state = tempfile::tempdir().unwrap();
        let mut config = config(&fake.url(), state.path());
        config.auth = Auth::of_token("rdz_j_planted".to_owned().into());
        let tls = rendez_transport::tls::client_config().unwrap();
        let client = Registry::new(&config, &tls).unwrap();
        let profiles = [Profile::NoiseHybridIkV1];
        client.register(&identity(), &profiles).await.unwrap_err();
        fake.answer("register", 200, GOOD);
        for _ in 0..2 {
            client.register(&identity(), &profiles).await.unwrap();
        }
        config.auth = Auth::Enrolled;
        let later = Registry::new(&config, &tls).unwrap();
        later.register(&identity(), &profiles).await.unwrap();

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

    #[tokio::test]
    async fn nobody_there_is_unreachable() {
        let fake = FakeRegistry::start().await;
        let client = registry(&fake);
        fake.stop().await;
        let error = client.register(&identity(), &[Profile::NoiseHybridIkV1]).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
        assert!(!error.is_final() && !error.to_string().contains("t0k"));
    }

    #[tokio::test]
    async fn only_a_clear_yes_is_valid() {
        let request = ValidateRequest {
            executor_registration_id: "reg-1".parse::<RegistrationId>().unwrap(),
            harness_public_key: identity().public().clone(),
            harness_key_authorization: "auth-1".parse().unwrap(),
        };
        for (status, body, valid) in [
            (200, r#"{"valid":true,"more":1}"#, true),
            (202, r#"{"valid":true}"#, true),
            (200, r#"{"valid":false}"#, false),
            (200, r#"{"valid":"true"}"#, false),
            (200, "{}", false),
            (204, "", false),
            (403, r#"{"valid":true}"#, false),
            (500, r#"{"valid":true}"#, false),
        ] {
            let fake = FakeRegistry::start().await;
            fake.answer("validate", status, body);
            let verdict = registry(&fake).validate(&request, None).await;
            assert_eq!(verdict == Verdict::Valid, valid, "{status} {body} {verdict:?}");
            assert_ne!(verdict, Verdict::AuthenticationRejected);
            assert_eq!(fake.requests().len(), 1, "one call, no retry");
        }
        let fake = FakeRegistry::start().await;
        fake.answer("validate", 401, "");
        let id = "00000000-0000-4000-8000-000000000001";
        let verdict = registry(&fake).validate(&request, Some(id)).await;
        assert_eq!(verdict, Verdict::AuthenticationRejected);
        let asked = fake.requests().remove(0);
        assert_eq!(asked.header(STREAM_ID_HEADER), Some(id));
        let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        assert_eq!(body["executor_registration_id"], "reg-1");
        assert_eq!(body["harness_key_authorization"], "auth-1");
    }
}
