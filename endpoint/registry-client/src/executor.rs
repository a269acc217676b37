//! The registry's calls for executors (docs/codex-wire.md#register and
//! docs/codex-wire.md#validate).
//!
//! No error contains the token, or the rendezvous URL with its ticket.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::proof::{Call, PROOF_HEADER};
use rendez_proto::registry::error::{ErrorBody, ErrorCode};
use rendez_proto::registry::{
    RegisterReply, RegisterRequest, STREAM_ID_HEADER, ValidateReply, ValidateRequest,
};
use rendez_transport::tls;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use url::Url;

use crate::error::RegistryError;
use crate::http::{HttpClient, parse};
use crate::proof::prove;

/// The time limit of one call (docs/codex-wire.md#registry-api).
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The client of the executor of one environment.
pub struct ExecutorClient {
    http: HttpClient,
    environment: EnvironmentId,
    auth: ExecutorAuth,
    /// Whether a registration has enrolled the executor's key.
    enrolled: AtomicBool,
}

/// The credentials of an executor.
pub enum ExecutorAuth {
    /// A bearer token.
    Bearer(SecretString),
    /// A key of its own.
    Key {
        /// The key that signs a proof for each call.
        key: Box<SigningKey>,
        /// The token that is sent with the proof until the first successful
        /// registration enrols the key.
        join: Option<SecretString>,
    },
}

/// The registry's decision about the key of an orchestrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The handshake may complete.
    Valid,
    /// The registry denied it or could not decide, with the reason.
    Invalid(String),
    /// The registry does not accept the executor's own credentials (401).
    AuthenticationRejected,
}

impl ExecutorClient {
    /// Creates a client of the relay at `base`.
    ///
    /// # Errors
    /// [`RegistryError::TrustStore`] or [`RegistryError::Local`].
    pub fn new(
        base: Url,
        environment: EnvironmentId,
        auth: ExecutorAuth,
    ) -> Result<Self, RegistryError> {
        let tls = tls::for_url(base.as_str())
            .map_err(|error| RegistryError::TrustStore(error.to_string()))?;
        let http = HttpClient::new(base, &tls, CALL_TIMEOUT, limits::REGISTRY_BODY_MAX_BYTES)?;
        Ok(Self { http, environment, auth, enrolled: AtomicBool::new(false) })
    }

    /// Registers the executor for the environment.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn register(
        &self,
        request: &RegisterRequest,
    ) -> Result<RegisterReply, RegistryError> {
        let response = self.http.send(self.post(Call::Register, request)?).await?;
        let status = response.status();
        let body = self.http.read(response).await?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        let reply: RegisterReply = parse(&body)?;
        if reply.environment_id != self.environment {
            return Err(RegistryError::Malformed("it names another environment".into()));
        }
        if reply.security_profile != request.security_profile {
            return Err(RegistryError::Malformed("it names another security profile".into()));
        }
        if let ExecutorAuth::Key { join: Some(_), .. } = &self.auth
            && !self.enrolled.swap(true, Ordering::Relaxed)
        {
            tracing::info!(
                "joined: this agent has enrolled its own key and no longer needs the join token"
            );
        }
        Ok(reply)
    }

    /// Asks the registry to authorize one handshake. Does not retry.
    pub async fn validate(&self, request: &ValidateRequest, stream: Option<&str>) -> Verdict {
        let verdict = self.verdict(request, stream).await;
        verdict.unwrap_or_else(|error| Verdict::Invalid(error.to_string()))
    }

    async fn verdict(
        &self,
        request: &ValidateRequest,
        stream: Option<&str>,
    ) -> Result<Verdict, RegistryError> {
        let mut call = self.post(Call::Validate, request)?;
        if let Some(stream) = stream {
            call = call.header(STREAM_ID_HEADER, stream);
        }
        let response = self.http.send(call).await?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED {
            return Ok(Verdict::AuthenticationRejected);
        }
        let body = self.http.read(response).await?;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        Ok(match parse::<ValidateReply>(&body)?.valid {
            true => Verdict::Valid,
            false => Verdict::Invalid("the registry denied the key".into()),
        })
    }

    fn post(&self, call: Call, body: &impl Serialize) -> Result<RequestBuilder, RegistryError> {
        let local = |error: &dyn std::fmt::Display| RegistryError::Local(error.to_string());
        let body = serde_json::to_vec(body).map_err(|error| local(&error))?;
        let name = match call {
            Call::Register => "register",
            Call::Validate => "validate",
        };
        let path = format!("/cloud/environment/{}/{name}", self.environment);
        let request = self.http.request(Method::POST, &path);
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = match &self.auth {
            ExecutorAuth::Bearer(token) => request.bearer_auth(token.expose_secret()),
            ExecutorAuth::Key { key, join } => {
                let proof =
                    prove(key, &self.environment, call, &body).map_err(|error| local(&error))?;
                let request = request.header(PROOF_HEADER, proof);
                match join {
                    Some(join) if !self.enrolled.load(Ordering::Relaxed) => {
                        request.bearer_auth(join.expose_secret())
                    }
                    _ => request,
                }
            }
        };
        Ok(request.body(body))
    }
}

/// Converts an error response. The status counts first, because an executor also
/// registers at registries with other error bodies than ours.
fn refusal(status: StatusCode, body: &[u8]) -> RegistryError {
    let detail = serde_json::from_slice::<ErrorBody>(body).ok().map(|body| body.error);
    let text = match &detail {
        Some(error) => format!("{error}, HTTP {}", status.as_u16()),
        None => format!("HTTP {}, without a readable error body", status.as_u16()),
    };
    match (status, detail.map(|error| error.code)) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, _) => RegistryError::TokenRefused(text),
        (
            _,
            Some(
                ErrorCode::InvalidRequest
                | ErrorCode::BodyTooLarge
                | ErrorCode::UnsupportedProfile
                | ErrorCode::LegacyRegistration,
            ),
        ) => RegistryError::RegistrationRefused(text),
        // A 404 can also come from a proxy without its backend: retry.
        _ => RegistryError::Unavailable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeRegistry;
    use rendez_proto::ids::RegistrationId;
    use rendez_proto::keys::PublicKey;
    use rendez_proto::profile::Profile;

    fn client(registry: &FakeRegistry) -> ExecutorClient {
        let auth = ExecutorAuth::Bearer("t0k".to_owned().into());
        let base = registry.url().parse().unwrap();
        ExecutorClient::new(base, "dev".parse().unwrap(), auth).unwrap()
    }

    fn public_key() -> PublicKey {
        PublicKey::x25519_only([7; 32])
    }

    fn registration() -> RegisterRequest {
        RegisterRequest {
            security_profile: Profile::NoiseHybridIkV1,
            executor_public_key: public_key(),
            rendez: None,
        }
    }

    const GOOD: &str = r#"{"environment_id":"dev","url":"ws://h/x?ticket=secret",
        "security_profile":"noise_hybrid_ik_v1","executor_registration_id":"reg-1","later":1}"#;

    #[tokio::test]
    async fn registration_failures_are_classified() {
        let error = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"m"}}}}"#);
        let other = GOOD.replace("\"dev\"", "\"prod\"");
        let profile = GOOD.replace("noise_hybrid_ik_v1", "rendez_ik_v1");
        let long = " ".repeat(limits::REGISTRY_BODY_MAX_BYTES + 1);
        for (status, body, is_final, text) in [
            (401, error("unauthorized"), true, "refused the token: m (unauthorized), HTTP 401"),
            (403, "no".into(), true, "refused the token: HTTP 403"),
            (400, error("unsupported_profile"), true, "refused the registration: m"),
            (404, "<html>".into(), false, "cannot serve the request now: HTTP 404"),
            (307, String::new(), false, "cannot serve the request now: HTTP 307"),
            (409, error("limit_reached"), false, "cannot serve the request now"),
            (503, error("unavailable"), false, "cannot serve the request now: m"),
            (200, "<html>".into(), false, "unexpected response from the relay"),
            (200, "{}".into(), false, "unexpected response from the relay: missing field"),
            (200, other, false, "another environment"),
            (200, profile, false, "another security profile"),
            (200, long, false, "too long"),
        ] {
            let fake = FakeRegistry::start().await;
            fake.answer("register", status, &body);
            let error = client(&fake).register(&registration()).await.unwrap_err();
            assert_eq!(error.is_final(), is_final, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn closed_port_is_unreachable() {
        let fake = FakeRegistry::start().await;
        let client = client(&fake);
        fake.stop().await;
        let error = client.register(&registration()).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
        assert!(!error.is_final() && !error.to_string().contains("t0k"));
    }

    #[tokio::test]
    async fn only_explicit_approval_is_valid() {
        let request = ValidateRequest {
            executor_registration_id: "reg-1".parse::<RegistrationId>().unwrap(),
            harness_public_key: public_key(),
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
            let verdict = client(&fake).validate(&request, None).await;
            assert_eq!(verdict == Verdict::Valid, valid, "{status} {body} {verdict:?}");
            assert_ne!(verdict, Verdict::AuthenticationRejected);
            assert_eq!(fake.requests().len(), 1, "one call, no retry");
        }
        let fake = FakeRegistry::start().await;
        fake.answer("validate", 401, "");
        let id = "00000000-0000-4000-8000-000000000001";
        let verdict = client(&fake).validate(&request, Some(id)).await;
        assert_eq!(verdict, Verdict::AuthenticationRejected);
        let asked = fake.requests().remove(0);
        assert_eq!(asked.header(STREAM_ID_HEADER), Some(id));
        let body: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
        assert_eq!(body["executor_registration_id"], "reg-1");
        assert_eq!(body["harness_key_authorization"], "auth-1");
    }
}
