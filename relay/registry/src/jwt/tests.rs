//! Accepted and refused tokens, with real signatures.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header, encode};
use parking_lot::Mutex;
use serde_json::json;

use super::*;
use crate::jwt::keys;
use crate::model::Role;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://token.actions.example";

/// The PKCS #8 form of an Ed25519 key.
fn ed25519(n: u8) -> EncodingKey {
    let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    EncodingKey::from_ed_der(&[&head[..], &[n; 32]].concat())
}

fn public(n: u8, kid: &str) -> Value {
    let key = ed25519_dalek::SigningKey::from_bytes(&[n; 32]).verifying_key();
    json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig",
           "x": URL_SAFE_NO_PAD.encode(key.as_bytes())})
}

#[derive(Clone)]
struct Served(Arc<(Mutex<Option<Value>>, AtomicUsize)>);

impl Served {
    fn new(keys: &[Value]) -> Self {
        Self(Arc::new((Mutex::new(Some(json!({ "keys": keys }))), AtomicUsize::new(0))))
    }
    fn set(&self, keys: Option<&[Value]>) {
        *self.0.0.lock() = keys.map(|keys| json!({ "keys": keys }));
    }
    fn asked(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }
    fn fetch(&self) -> Arc<dyn FetchKeys> {
        Arc::new(self.clone())
    }
}

#[async_trait]
impl FetchKeys for Served {
    async fn fetch(&self, _: &str) -> Result<Vec<u8>, String> {
        self.0.1.fetch_add(1, Ordering::SeqCst);
        let keys = self.0.0.lock().clone();
        keys.map(|keys| keys.to_string().into_bytes()).ok_or_else(|| "down".to_owned())
    }
}

fn no_fetching() -> Arc<dyn FetchKeys> {
    Arc::new(crate::traits::NoFetch)
}

fn config() -> Value {
    json!({
        "issuer": ISSUER, "audience": "rendez", "keys": {"url": "https://keys.example/jwks"},
        "rules": [
            {"claims": {"repository": "acme/*"}, "role": "executor",
             "environments": "ci-{repository}"},
            {"claims": {"ref": "refs/heads/main", "repository": "acme/app"},
             "role": "orchestrator", "environments": "prod"},
        ],
    })
}

fn issuers(config: Value) -> Issuers {
    Issuers::new(&[serde_json::from_value(config).unwrap()]).unwrap()
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "rendez", "sub": "repo:acme/app", "exp": NOW + 300,
           "nbf": NOW - 5, "iat": NOW - 5, "repository": "acme/app", "ref": "refs/heads/dev"})
}

fn signed(claims: &Value, kid: Option<&str>, key: &EncodingKey, algorithm: Algorithm) -> String {
    let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
    encode(&header, claims, key).unwrap()
}

fn good(claims: &Value) -> String {
    signed(claims, Some("k1"), &ed25519(1), Algorithm::EdDSA)
}

#[tokio::test]
async fn valid_jwt_gets_grants_of_its_rules() {
    let served = Served::new(&[public(1, "k1")]);
    let issuers = issuers(config());
    let caller = issuers.authenticate(&good(&claims()), NOW, &served.fetch()).await.unwrap();
    let environments = |caller: &Caller| {
        let grants = caller.grants.iter();
        grants.map(|grant| (grant.role, grant.environments.as_str().to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(environments(&caller), [(Role::Executor, "ci-acme_2fapp".to_owned())]);
    assert_eq!(caller.until, None);
    let mut main = claims();
    main["ref"] = json!("refs/heads/main");
    main["aud"] = json!(["other", "rendez"]);
    let both = issuers.authenticate(&good(&main), NOW, &served.fetch()).await.unwrap();
    assert_eq!(environments(&both)[1], (Role::Orchestrator, "prod".to_owned()));
    assert_eq!(both.subject, caller.subject, "independent of the other claims");
    let Subject::Foreign(id) = &caller.subject else { panic!("not foreign") };
    assert!(issuers.include(id));
    assert!(!issuers.include(&ForeignId::new("https://other", "repo:acme/app")));
    assert_eq!(served.asked(), 1);

    let mut ends = config();
    ends["websockets_end_with_token"] = json!(true);
    let ends = super::tests::issuers(ends);
    let caller = ends.authenticate(&good(&claims()), NOW, &served.fetch()).await;
    assert_eq!(caller.unwrap().until, Some(NOW + 300));
    // without leeway, since its ticket would be refused from then on
    for (now, leeway, strict) in [
        (NOW + 299, Ok(()), Ok(())),
        (NOW + 300, Ok(()), Err(JwtError::Expired)),
        (NOW + 300 + JWT_LEEWAY.as_secs(), Err(JwtError::Expired), Err(JwtError::Expired)),
    ] {
        for (issuers, expected) in [(&issuers, leeway), (&ends, strict)] {
            let result = issuers.authenticate(&good(&claims()), now, &served.fetch()).await;
            assert_eq!(result.map(drop), expected, "{now}");
        }
    }
}

#[tokio::test]
async fn invalid_jwts_are_refused() {
    let served = Served::new(&[public(1, "k1"), public(2, "k2")]);
    let issuers = issuers(config());
    let refused =
        async |token: &str| issuers.authenticate(token, NOW, &served.fetch()).await.unwrap_err();
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        good(&claims)
    };
    let leeway = JWT_LEEWAY.as_secs();
    for (name, value, why) in [
        ("iss", json!("https://evil.example"), JwtError::UnknownIssuer),
        ("iss", json!(7), JwtError::Malformed),
        ("aud", json!("others"), JwtError::Invalid),
        ("aud", json!(["others"]), JwtError::Invalid),
        ("sub", json!(""), JwtError::Invalid),
        ("exp", json!(NOW - leeway), JwtError::Expired),
        ("exp", json!("soon"), JwtError::Invalid),
        ("nbf", json!(NOW + leeway + 1), JwtError::NotYetValid),
        ("iat", json!(NOW + leeway + 1), JwtError::NotYetValid),
        ("nbf", json!("later"), JwtError::Invalid),
        ("repository", json!("evil/app"), JwtError::NoRule),
    ] {
        assert_eq!(refused(&with(name, value.clone())).await, why, "{name} {value}");
    }
    for name in ["iss", "aud", "sub", "exp"] {
        let mut lacking = claims();
        lacking.as_object_mut().unwrap().remove(name);
        let why = refused(&good(&lacking)).await;
        assert!(matches!(why, JwtError::Malformed | JwtError::Invalid), "{name}: {why}");
    }

    let claims = claims();
    let ed = Algorithm::EdDSA;
    assert_eq!(refused(&signed(&claims, None, &ed25519(1), ed)).await, JwtError::NoKeyId);
    let stranger = signed(&claims, Some("k9"), &ed25519(1), ed);
    assert_eq!(refused(&stranger).await, JwtError::UnknownKey);
    let other = signed(&claims, Some("k2"), &ed25519(1), ed);
    assert_eq!(refused(&other).await, JwtError::Invalid, "signed by another key");
    // the public key as the secret of a symmetric algorithm
    let public = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).verifying_key();
    let secret = EncodingKey::from_secret(public.as_bytes());
    let confused = signed(&claims, Some("k1"), &secret, Algorithm::HS256);
    assert_eq!(refused(&confused).await, JwtError::Algorithm);
    let token = good(&claims);
    let body = token.split('.').nth(1).unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","kid":"k1"}"#);
    assert_eq!(refused(&format!("{none}.{body}.")).await, JwtError::Malformed);
    // an algorithm that does not fit the key
    let es = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"k1"}"#);
    let forged = format!("{es}.{body}.{}", URL_SAFE_NO_PAD.encode([1; 64]));
    assert_eq!(refused(&forged).await, JwtError::Algorithm);
    for bad in ["..", "a.b.c", &token[1..], &format!("{token}A")] {
        let why = refused(bad).await;
        assert!(matches!(why, JwtError::Malformed | JwtError::Invalid), "{bad}: {why}");
    }
    let mut large = claims.clone();
    large["pad"] = json!("x".repeat(JWT_MAX_BYTES));
    assert_eq!(refused(&good(&large)).await, JwtError::Malformed);
    assert!(!issuers.accept_format("rdz_e_0011223344556677_secret"));
    assert!(!Issuers::new(&[]).unwrap().accept_format(&token), "without issuers none is a JWT");
}

#[tokio::test]
async fn unconfigured_algorithm_is_refused() {
    let served = Served::new(&[public(1, "k1")]);
    let mut only = config();
    only["algorithms"] = json!(["RS256", "ES256"]);
    let result = issuers(only).authenticate(&good(&claims()), NOW, &served.fetch()).await;
    assert_eq!(result.unwrap_err(), JwtError::Algorithm);
}

#[tokio::test(start_paused = true)]
async fn issuer_keys_are_cached() {
    let served = Served::new(&[public(1, "k1")]);
    let issuers = issuers(config());
    let new = signed(&claims(), Some("k2"), &ed25519(2), Algorithm::EdDSA);
    let old = good(&claims());
    served.set(None);
    let go = async |token: &str| issuers.authenticate(token, NOW, &served.fetch()).await.map(drop);
    for _ in 0..10 {
        assert_eq!(go(&old).await, Err(JwtError::KeysUnavailable), "nothing is there yet");
    }
    assert_eq!(served.asked(), 1);
    served.set(Some(&[public(1, "k1")]));
    tokio::time::advance(keys::JWKS_REFRESH_PAUSE).await;
    assert_eq!(go(&old).await, Ok(()));
    assert_eq!(served.asked(), 2);

    // a rotation at the issuer: found at the next fetch, and strangers cause no
    // further ones
    served.set(Some(&[public(1, "k1"), public(2, "k2")]));
    for _ in 0..10 {
        assert_eq!(go(&new).await, Err(JwtError::UnknownKey));
    }
    assert_eq!(served.asked(), 2);
    tokio::time::advance(keys::JWKS_REFRESH_PAUSE).await;
    assert_eq!(go(&new).await, Ok(()));
    assert_eq!(served.asked(), 3);

    // the issuer is down: known keys are valid for a day
    served.set(None);
    tokio::time::advance(keys::JWKS_MAX_AGE).await;
    assert_eq!(go(&old).await, Ok(()));
    assert_eq!(served.asked(), 4);
    tokio::time::advance(keys::JWKS_STALE_MAX).await;
    assert_eq!(go(&old).await, Err(JwtError::KeysUnavailable));
    // and a key that the issuer removes is refused within the hour
    served.set(Some(&[public(2, "k2")]));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(go(&old).await, Err(JwtError::UnknownKey));
}

/// A fetcher that answers on command, with as many keys as there were calls.
struct Held {
    asked: AtomicUsize,
    gate: tokio::sync::Semaphore,
}

#[async_trait]
impl FetchKeys for Held {
    async fn fetch(&self, _: &str) -> Result<Vec<u8>, String> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.gate.acquire().await.map_err(|_| "closed".to_owned())?.forget();
        let keys: Vec<_> = (1..=asked).map(|n| public(n as u8, &format!("k{n}"))).collect();
        Ok(json!({ "keys": keys }).to_string().into_bytes())
    }
}

/// The paused clock stands still while a task is busy.
#[tokio::test(start_paused = true)]
async fn cancelled_waiter_does_not_cancel_key_fetch() {
    let held = Arc::new(Held { asked: AtomicUsize::new(0), gate: tokio::sync::Semaphore::new(0) });
    let fetch: Arc<dyn FetchKeys> = held.clone();
    let issuers = Arc::new(issuers(config()));
    let begin = |kid: &'static str, n| {
        let (issuers, fetch) = (issuers.clone(), fetch.clone());
        let token = signed(&claims(), Some(kid), &ed25519(n), Algorithm::EdDSA);
        tokio::spawn(async move { issuers.authenticate(&token, NOW, &fetch).await.map(drop) })
    };
    let until_asked = async |times| {
        crate::testing::wait_until(async || held.asked.load(Ordering::SeqCst) >= times).await;
    };
    // the first caller is cancelled, and the second is served by the fetch that it
    // began
    let gone = begin("k1", 1);
    until_asked(1).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let second = begin("k1", 1);
    held.gate.add_permits(1);
    assert_eq!(second.await.unwrap(), Ok(()));
    assert_eq!(held.asked.load(Ordering::SeqCst), 1);

    // unknown keys cause another fetch; bearers of known keys do not wait
    tokio::time::advance(keys::JWKS_REFRESH_PAUSE).await;
    let (stranger, rotated) = (begin("k9", 9), begin("k2", 2));
    until_asked(2).await;
    let known = tokio::time::timeout(Duration::from_secs(1), begin("k1", 1)).await;
    assert_eq!(known.expect("it waits for the stranger's key").unwrap(), Ok(()));
    assert!(!stranger.is_finished() && !rotated.is_finished());
    held.gate.add_permits(1);
    assert_eq!(stranger.await.unwrap(), Err(JwtError::UnknownKey));
    assert_eq!(rotated.await.unwrap(), Ok(()), "they share the answer");

    // an issuer that never answers does not block callers for long
    tokio::time::advance(keys::JWKS_REFRESH_PAUSE).await;
    assert_eq!(begin("k9", 9).await.unwrap(), Err(JwtError::UnknownKey));
    assert_eq!(held.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn issuer_keys_load_from_bounded_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut from_file = config();
    from_file["keys"] = json!({"file": file.path()});
    let go = async || {
        let (issuers, fetch) = (issuers(from_file.clone()), no_fetching());
        issuers.authenticate(&good(&claims()), NOW, &fetch).await.map(drop)
    };
    std::fs::write(file.path(), json!({"keys": [public(1, "k1")]}).to_string()).unwrap();
    assert_eq!(go().await, Ok(()));
    for bad in ["", "[]", &" ".repeat(rendez_proto::limits::JWKS_MAX_BYTES + 1)] {
        std::fs::write(file.path(), bad).unwrap();
        assert_eq!(go().await, Err(JwtError::KeysUnavailable));
    }
    // keys for another use
    for (name, value) in [("use", json!("enc")), ("alg", json!("RS256")), ("crv", json!("P-256"))] {
        let mut key = public(1, "k1");
        key[name] = value;
        std::fs::write(file.path(), json!({"keys": [key]}).to_string()).unwrap();
        assert!(go().await.is_err(), "{name}");
    }
}

/// Keys of the other two kinds, created by the library that also verifies.
#[tokio::test]
async fn es256_is_accepted() {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let pair = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    let key = EncodingKey::from_ec_der(pair.unwrap().as_ref());
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some("ec".to_owned());
    let served = Served::new(&[serde_json::to_value(jwk).unwrap()]);
    let token = signed(&claims(), Some("ec"), &key, Algorithm::ES256);
    issuers(config()).authenticate(&token, NOW, &served.fetch()).await.unwrap();
}

#[tokio::test]
async fn rs256_is_accepted_with_keys_of_2048_bits() {
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    // the content of PKCS #8: a header of 26 bytes precedes a key of this size
    let key = EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]);
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("rsa".to_owned());
    let served = Served::new(&[serde_json::to_value(jwk).unwrap()]);
    let token = signed(&claims(), Some("rsa"), &key, Algorithm::RS256);
    issuers(config()).authenticate(&token, NOW, &served.fetch()).await.unwrap();
    let other = signed(&claims(), Some("rsa"), &key, Algorithm::RS512);
    let refused = issuers(config()).authenticate(&other, NOW, &served.fetch()).await;
    assert_eq!(refused.unwrap_err(), JwtError::Algorithm);
}

/// The response to a registration with this bearer.
async fn register(registry: &crate::Registry, token: &str, environment: &str) -> (u16, Value) {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt as _;

    let body = serde_json::to_vec(&crate::testing::register_request()).unwrap();
    let path = format!("/cloud/environment/{environment}/register");
    let request = axum::http::Request::post(path)
        .header("host", "relay.test:7000")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from(body))
        .unwrap();
    let response = registry.router().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap())
}

/// Over HTTP: from registration to websocket, and the effect of a block.
#[tokio::test]
async fn foreign_bearer_can_register_as_executor() {
    use crate::testing::{Fixture, START, env};

    let keys = tempfile::NamedTempFile::new().unwrap();
    let mut config = config();
    config["keys"] = json!({"file": keys.path()});
    let issuer: IssuerConfig = serde_json::from_value(config).unwrap();
    let fixture = Fixture::trusting(vec![issuer.clone()]).await;
    let mut claims = claims();
    claims["exp"] = json!(START + 300);
    let token = good(&claims);
    let (status, body) = register(&fixture.registry, &token, "ci-acme_2fapp").await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("unavailable")), "no keys yet");

    std::fs::write(keys.path(), json!({"keys": [public(1, "k1")]}).to_string()).unwrap();
    // the first registry does not fetch again so soon
    let fixture = Fixture::trusting(vec![issuer]).await;
    let mut other = claims.clone();
    other["repository"] = json!("evil/app");
    let mut late = claims.clone();
    late["exp"] = json!(START - 31);
    for (token, environment, status, code) in [
        (&good(&other), "ci-acme_2fapp", 403, "forbidden"),
        (&token, "prod", 403, "forbidden"),
        (&good(&late), "ci-acme_2fapp", 401, "unauthorized"),
        (&format!("{token}A"), "ci-acme_2fapp", 401, "unauthorized"),
    ] {
        let (found, body) = register(&fixture.registry, token, environment).await;
        assert_eq!((found, &body["error"]["code"]), (status, &json!(code)), "{body}");
    }
    let (status, reply) = register(&fixture.registry, &token, "ci-acme_2fapp").await;
    assert_eq!(status, 200, "{reply}");
    let (_, ticket) = reply["url"].as_str().unwrap().split_once("ticket=").unwrap();
    let admitted = fixture.registry.tickets().check_executor(ticket, None).await.unwrap();
    let subject = ForeignId::new(ISSUER, "repo:acme/app");
    assert_eq!(admitted.subject, Subject::Foreign(subject));
    assert_eq!(admitted.claims.environment, env("ci-acme_2fapp"));

    fixture.registry.tokens().revoke(None, &admitted.subject).await.unwrap();
    assert!(fixture.registry.tickets().check_executor(ticket, None).await.is_err());
    assert!(!fixture.registry.tickets().is_still_valid(&admitted).await.unwrap());
    assert_eq!(register(&fixture.registry, &token, "ci-acme_2fapp").await.0, 401);
}

#[test]
fn invalid_issuer_configuration_is_refused() {
    let refused = |name: &str, value: Value| {
        let mut config = config();
        config[name] = value;
        match serde_json::from_value::<IssuerConfig>(config) {
            Err(error) => error.to_string(),
            Ok(config) => Issuers::new(&[config]).err().unwrap().to_string(),
        }
    };
    for (name, value, why) in [
        ("issuer", json!(""), "must not be empty"),
        ("audience", json!(""), "must not be empty"),
        ("algorithms", json!([]), "at least one algorithm"),
        ("algorithms", json!(["HS256"]), "unknown variant"),
        ("rules", json!([]), "at least one rule"),
        ("keys", json!({"url": "http://keys.example"}), "https://"),
        ("key", json!(1), "unknown field"),
    ] {
        let message = refused(name, value);
        assert!(message.contains(why), "{name}: {message}");
    }
    let twice: IssuerConfig = serde_json::from_value(config()).unwrap();
    assert!(Issuers::new(&[twice.clone(), twice]).is_err());
}
