//! A registry in use leaves no secret in its database files and in its log at the
//! finest level, including that of its dependencies. Alone in its binary, since it
//! captures the process's log.

#![allow(clippy::unwrap_used, reason = "all of it is a test")]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::SigningKey;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use rendez_proto::ids::{EnvironmentId, RegistrationId};
use rendez_proto::keys::PublicKey;
use rendez_proto::proof::{Call, PROOF_HEADER, Proof, body_hash};
use rendez_proto::registry::admin::{CreateToken, Role};
use rendez_registry::jwt::config::IssuerConfig;
use rendez_registry::{Options, Presence, Registry, signer};
use serde_json::{Value, json};
use tower::ServiceExt as _;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Connected(Mutex<Option<RegistrationId>>);

#[async_trait]
impl Presence for Connected {
    async fn connected(&self, _: &EnvironmentId) -> Option<RegistrationId> {
        self.0.lock().clone()
    }
}

async fn token(registry: &Registry, role: Role) -> String {
    let new = CreateToken { label: "a label".to_owned(), ..CreateToken::new(role) };
    registry.tokens().create(None, &new).await.unwrap().token.expose().to_owned()
}

async fn call(registry: &Registry, method: &str, path: &str, token: &str, body: Value) -> Value {
    call_with(registry, method, path, token, None, body).await
}

/// The same with a proof of possession.
async fn call_with(
    registry: &Registry,
    method: &str,
    path: &str,
    token: &str,
    proof: Option<&str>,
    body: Value,
) -> Value {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "relay.test")
        .header("authorization", format!("Bearer {token}"));
    if let Some(proof) = proof {
        request = request.header(PROOF_HEADER, proof);
    }
    let request = request.body(Body::from(body.to_string())).unwrap();
    let response = registry.router().oneshot(request).await.unwrap();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice(&body).unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn ticket(reply: &Value) -> String {
    text(&reply["url"]).split_once("ticket=").unwrap().1.to_owned()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A trusted issuer and a bearer of its.
fn foreign(keys: &Path) -> (IssuerConfig, String) {
    let seed = [9; 32];
    let public = SigningKey::from_bytes(&seed).verifying_key();
    let jwk = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig",
                     "x": URL_SAFE_NO_PAD.encode(public.as_bytes())});
    std::fs::write(keys, json!({ "keys": [jwk] }).to_string()).unwrap();
    let config = json!({
        "issuer": "https://issuer.example", "audience": "rendez", "keys": {"file": keys},
        "rules": [{"claims": {"sub": "*"}, "role": "executor", "environments": "foreign"}],
    });
    // an Ed25519 key in its PKCS #8 form
    let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    let key = EncodingKey::from_ed_der(&[&head[..], &seed].concat());
    let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::EdDSA) };
    let claims = json!({"iss": "https://issuer.example", "aud": "rendez", "sub": "somebody",
                        "exp": unix_now() + 600});
    let bearer = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    (serde_json::from_value(config).unwrap(), bearer)
}

fn proof(environment: &str, nonce: u8, body: &Value) -> String {
    let proof = Proof {
        call: Call::Register,
        environment: environment.parse().unwrap(),
        key: [0; 32],
        time: unix_now(),
        nonce: [nonce; 16],
        body: body_hash(body.to_string().as_bytes()),
    };
    proof.sign(&SigningKey::from_bytes(&[8; 32]))
}

fn files(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        if file.file_name() != signer::SIGNING_KEY_FILE {
            all.extend(std::fs::read(file.path()).unwrap());
        }
    }
    all
}

#[tokio::test]
async fn no_secret_in_database_or_log() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();

    let dir = tempfile::tempdir().unwrap();
    let presence = Arc::<Connected>::default();
    let keys = tempfile::NamedTempFile::new().unwrap();
    let (issuer, jwt) = foreign(keys.path());
    let issuers = vec![issuer];
    let options = Options { presence: presence.clone(), issuers, ..Options::default() };
    let registry = Registry::open(dir.path(), options).await.unwrap();
    let admin = registry.tokens().bootstrap().await.unwrap().unwrap().expose().to_owned();
    let executor = token(&registry, Role::Executor).await;
    let orchestrator = token(&registry, Role::Orchestrator).await;

    let key = |n: u8| PublicKey::hybrid([n; 32], Box::new([n; 1184]));
    let path = |verb: &str| format!("/cloud/environment/dev/{verb}");
    let body = json!({"security_profile": "noise_hybrid_ik_v1", "executor_public_key": key(1)});
    let registered = call(&registry, "POST", &path("register"), &executor, body).await;
    let id = text(&registered["executor_registration_id"]);
    *presence.0.lock() = Some(id.parse().unwrap());
    let body = json!({"harness_public_key": key(2)});
    let connected = call(&registry, "POST", &path("connect"), &orchestrator, body).await;
    let authorization = text(&connected["harness_key_authorization"]);
    let body = json!({"executor_registration_id": id, "harness_public_key": key(2),
                      "harness_key_authorization": authorization});
    for valid in [true, false] {
        let verdict = call(&registry, "POST", &path("validate"), &executor, body.clone()).await;
        assert_eq!(verdict, json!({ "valid": valid }));
    }
    let (executors, orchestrators) = (ticket(&registered), ticket(&connected));
    registry.tickets().admit(&executors, None).await.unwrap();
    registry.tickets().admit(&orchestrators, None).await.unwrap();
    registry.tickets().admit(&orchestrators, None).await.unwrap_err();
    registry.tickets().admit(&format!("{executors}x"), None).await.unwrap_err();
    registry.tickets().check_executor(&authorization, None).await.unwrap_err();
    // an invalid token as a bearer, and one in a body
    let wrong = format!("{}A", &executor[..executor.len() - 1]);
    call(&registry, "POST", &path("register"), &wrong, json!({})).await;
    call(&registry, "POST", &path("register"), &executor, json!(orchestrator)).await;
    let created = json!({"role": "orchestrator"});
    let created = call(&registry, "POST", "/v1/tokens", &admin, created).await;
    let revoked = format!("/v1/tokens/{}", text(&created["id"]));
    call(&registry, "DELETE", &revoked, &admin, Value::Null).await;
    call(&registry, "GET", "/v1/tokens", &admin, Value::Null).await;
    // a rotation, and the use of both secrets
    let first = token(&registry, Role::Executor).await;
    let rotate = format!("/v1/tokens/{}/rotate", first.split('_').nth(2).unwrap());
    let rotated = call(&registry, "POST", &rotate, &admin, json!({"overlap_secs": 60})).await;
    let rotated = text(&rotated["token"]);
    let body = json!({"security_profile": "noise_hybrid_ik_v1", "executor_public_key": key(3)});
    let there = |environment: &str| format!("/cloud/environment/{environment}/register");
    for token in [&first, &rotated] {
        let registered = call(&registry, "POST", &there("rotated"), token, body.clone()).await;
        assert!(registered["url"].is_string(), "{registered}");
    }
    // an executor that enrols and registers again, and refused proofs and
    // enrolments
    let join = token(&registry, Role::Join).await;
    let proofs = [1, 2].map(|nonce| proof("joined", nonce, &body));
    for (proof, good) in [(&proofs[0], true), (&proofs[1], true), (&proofs[1], false)] {
        let path = there("joined");
        let joined = call_with(&registry, "POST", &path, &join, Some(proof), body.clone()).await;
        assert_eq!(joined["url"].is_string(), good, "{joined}");
    }
    let forged = format!("{}A", &proofs[0][..proofs[0].len() - 1]);
    call_with(&registry, "POST", &there("joined"), &join, Some(&forged), body.clone()).await;
    call(&registry, "POST", &there("joined"), &join, body.clone()).await;
    // the bearer of another issuer, also where it is refused
    let registered = call(&registry, "POST", &there("foreign"), &jwt, body.clone()).await;
    assert!(registered["url"].is_string(), "{registered}");
    call(&registry, "POST", &there("elsewhere"), &jwt, body.clone()).await;
    let forged_jwt = format!("{}A", &jwt[..jwt.len() - 1]);
    call(&registry, "POST", &there("foreign"), &forged_jwt, body).await;
    tracing::info!(?registry, "the end");

    let database = files(dir.path());
    let log = log.0.lock().clone();
    // the search finds a known value
    let id = executor.split('_').nth(2).unwrap().as_bytes();
    assert!(contains(&database, id) && contains(&log, id));
    assert!(contains(&log, b"SELECT"), "the database's own log is part of it");

    let mut secrets = vec![
        ("executor's ticket", executors.into_bytes()),
        ("orchestrator's ticket", orchestrators.into_bytes()),
        ("authorization", authorization.into_bytes()),
    ];
    for proof in [&proofs[0], &proofs[1], &forged] {
        secrets.push(("proof's text", proof.as_bytes().to_vec()));
        let bytes = URL_SAFE_NO_PAD.decode(proof).unwrap_or_default();
        if let Some(signature) = bytes.last_chunk::<64>() {
            secrets.push(("proof's signature", signature.to_vec()));
        }
    }
    for jwt in [&jwt, &forged_jwt] {
        secrets.push(("foreign bearer", jwt.as_bytes().to_vec()));
        // the signature of the JWT, without which its claims are not secret
        let signature = jwt.rsplit('.').next().unwrap();
        secrets.push(("foreign bearer's signature", signature.as_bytes().to_vec()));
    }
    let made = text(&created["token"]);
    for token in [&admin, &executor, &orchestrator, &made, &first, &rotated, &join] {
        let secret = token.splitn(4, '_').nth(3).unwrap();
        secrets.push(("token's text", secret.as_bytes().to_vec()));
        secrets.push(("token's bytes", URL_SAFE_NO_PAD.decode(secret).unwrap()));
    }
    let file = std::fs::read_to_string(dir.path().join(signer::SIGNING_KEY_FILE)).unwrap();
    let seed = file.trim().split_once(' ').unwrap().1;
    secrets.push(("signing key's text", seed.as_bytes().to_vec()));
    secrets.push(("signing key's bytes", STANDARD.decode(seed).unwrap()));
    for (what, secret) in secrets {
        assert!(!contains(&database, &secret), "the database holds the {what}");
        assert!(!contains(&log, &secret), "the log holds the {what}");
        // nor as the debug form of a byte string
        let debug = format!("{secret:?}");
        assert!(!contains(&log, debug.as_bytes()), "the log holds the {what} as numbers");
    }
}
