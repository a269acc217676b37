//! The API from a client's view: every status, its body and its counter.

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use rendez_proto::audit::AuditKind;
use rendez_proto::limits;
use rendez_proto::proof::{Call, Proof, body_hash};
use rendez_proto::registry::STREAM_ID_HEADER;
use rendez_proto::registry::error::ErrorCode;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::model::{Role, TokenId};
use crate::stats::{Operation, Outcome};
use crate::store::sqlite::SqliteStore;
use crate::store::{StoreError, TokenStore as _};
use crate::testing::{Fixture, START, audit_event, connect_request, key, register_request};

const REGISTER: &str = "/cloud/environment/dev/register";
const CONNECT: &str = "/cloud/environment/dev/connect";
const VALIDATE: &str = "/cloud/environment/dev/validate";

struct Api {
    fixture: Fixture,
    executor: String,
    orchestrator: String,
    admin: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or("none")
    }
}

impl Api {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let executor = fixture.token(Role::Executor, "dev*").await;
        let orchestrator = fixture.token(Role::Orchestrator, "dev*").await;
        let admin = fixture.token(Role::Admin, "*").await;
        Self { fixture, executor, orchestrator, admin }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.fixture.registry.router().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let body =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        Answer { status, headers, body }
    }

    async fn call(&self, method: &str, path: &str, token: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "relay.test:7000")
            .header("authorization", format!("Bearer {token}"))
            .body(body.into())
            .unwrap();
        self.send(request).await
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> Answer {
        self.call("POST", path, token, body.to_string()).await
    }

    /// `/validate` as stock executors call it, for this stream.
    async fn validate_for(&self, stream: &str, body: Value) -> Answer {
        let request = Request::builder()
            .method("POST")
            .uri(VALIDATE)
            .header("host", "relay.test:7000")
            .header("authorization", format!("Bearer {}", self.executor))
            .header(STREAM_ID_HEADER, stream)
            .body(body.to_string().into())
            .unwrap();
        self.send(request).await
    }

    fn count(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.fixture.registry.stats().get(operation, outcome)
    }

    /// Registers over HTTP and opens the websocket.
    async fn online(&self) -> Value {
        let reply = self.post(REGISTER, &self.executor, stock_register()).await;
        assert_eq!(reply.status, StatusCode::OK);
        let id = reply.body["executor_registration_id"].as_str().unwrap().parse().unwrap();
        self.fixture.set_connected("dev", &id);
        reply.body
    }
}

fn stock_register() -> Value {
    json!({"security_profile": "noise_hybrid_ik_v1", "executor_public_key": key(1)})
}

fn stock_connect() -> Value {
    json!({"harness_public_key": key(2)})
}

fn stock_validate(connect: &Value) -> Value {
    json!({
        "executor_registration_id": connect["executor_registration_id"],
        "harness_public_key": key(2),
        "harness_key_authorization": connect["harness_key_authorization"],
    })
}

#[tokio::test]
async fn stock_peers_register_connect_and_validate() {
    let api = Api::new().await;
    let registered = api.online().await;
    assert_eq!(registered["environment_id"], "dev");
    assert_eq!(registered["security_profile"], "noise_hybrid_ik_v1");
    assert_eq!(
        registered["transport_policy"],
        json!({"version": 1, "assignment_epoch": "1", "outbound_tcp_nodelay": true,
               "rendezvous_accepted_tcp_nodelay": true})
    );
    let url = registered["url"].as_str().unwrap();
    assert!(url.starts_with("ws://relay.test:7000/v1/rendezvous?ticket="));

    let connected = api.post(CONNECT, &api.orchestrator, stock_connect()).await;
    assert_eq!(connected.status, StatusCode::OK);
    assert_eq!(connected.headers["cache-control"], "no-store");
    assert_eq!(connected.body["security_profile"], "noise_hybrid_ik_v1");
    assert_eq!(connected.body["executor_public_key"], json!(key(1)));
    assert_eq!(connected.body["executor_registration_id"], registered["executor_registration_id"]);
    let authorization = connected.body["harness_key_authorization"].as_str().unwrap();
    assert!(authorization.len() <= limits::AUTHORIZATION_MAX_BYTES);

    let ctx = stock_validate(&connected.body);
    let stream = "0f8fad5b-d9cb-469f-a165-70867728950e";
    let verdict = api.validate_for(stream, ctx.clone()).await;
    assert_eq!((verdict.status, verdict.body), (StatusCode::OK, json!({"valid": true})));
    let verdict = api.validate_for("mine", ctx).await;
    assert_eq!((verdict.status, verdict.body), (StatusCode::OK, json!({"valid": false})));
    api.fixture.registry.audit().flush().await.unwrap();
    let rows = api.fixture.registry.audit().page(0).await.unwrap().rows;
    let validations =
        rows.iter().map(|row| &row.event).filter(|row| row.kind == AuditKind::Validate);
    let validations: Vec<_> =
        validations.map(|row| (row.what.as_deref(), row.stream.as_deref())).collect();
    assert_eq!(validations, [(Some("valid"), Some(stream)), (Some("denied"), None)]);

    for operation in [Operation::Register, Operation::Connect, Operation::Validate] {
        assert_eq!(api.count(operation, Outcome::Ok), 1, "{operation:?}");
    }
    assert_eq!(api.count(Operation::Validate, Outcome::Denied), 1);
}

#[tokio::test]
async fn rendez_peers_agree_on_rendez_profile() {
    let api = Api::new().await;
    let body = serde_json::to_value(register_request()).unwrap();
    let reply = api.post(REGISTER, &api.executor, body).await.body;
    let offered = json!(["noise_hybrid_ik_v1", "rendez_hybrid_ik_v1", "rendez_ik_v1"]);
    assert_eq!(reply["rendez"]["profiles"], offered);
    let id = reply["executor_registration_id"].as_str().unwrap().parse().unwrap();
    api.fixture.set_connected("dev", &id);

    let accepted = [rendez_proto::profile::Profile::RendezIkV1];
    let body = serde_json::to_value(connect_request(Some(&accepted))).unwrap();
    let reply = api.post(CONNECT, &api.orchestrator, body).await.body;
    assert_eq!(reply["security_profile"], "rendez_ik_v1");
    assert_eq!(reply["executor_public_key"]["suite"], "Noise_IK_25519_AESGCM_SHA256");
    assert_eq!(reply["rendez"]["profiles"], offered);
}

#[tokio::test]
async fn invalid_bearer_is_refused_everywhere() {
    let api = Api::new().await;
    let routes = [
        ("POST", REGISTER, Operation::Register),
        ("POST", CONNECT, Operation::Connect),
        ("POST", VALIDATE, Operation::Validate),
        ("GET", "/v1/environments", Operation::Environments),
        ("GET", "/v1/tokens", Operation::Tokens),
        ("POST", "/v1/tokens", Operation::Tokens),
        ("DELETE", "/v1/tokens/0011223344556677", Operation::Tokens),
        ("POST", "/v1/tokens/0011223344556677/rotate", Operation::Tokens),
        ("DELETE", "/v1/environments/dev", Operation::Environments),
        ("DELETE", "/v1/environments/dev/registration", Operation::Environments),
    ];
    let forged = api.admin.replace("rdz_a_", "rdz_a_0");
    let headers: [Option<&str>; 6] = [
        None,
        Some("Basic YTpi"),
        Some("Bearer "),
        Some("Bearer sk-live"),
        Some(&api.admin),
        Some(&format!("Bearer {forged}")),
    ];
    for (method, path, operation) in routes {
        let outcome = Outcome::Error(ErrorCode::Unauthorized);
        let before = api.count(operation, outcome);
        for header in headers {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(value) = header {
                request = request.header("authorization", value);
            }
            let answer = api.send(request.body(Body::empty()).unwrap()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path} {header:?}");
            assert_eq!(answer.code(), "unauthorized");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
        assert_eq!(api.count(operation, outcome), before + headers.len() as u64);
    }
}

#[tokio::test]
async fn wrong_role_or_pattern_is_forbidden() {
    let api = Api::new().await;
    let (executor, orchestrator, admin) = (&api.executor, &api.orchestrator, &api.admin);
    let elsewhere = "/cloud/environment/prod";
    let cases: [(&str, &str, &str); 16] = [
        ("POST", REGISTER, orchestrator),
        ("POST", REGISTER, admin),
        ("POST", &format!("{elsewhere}/register"), executor),
        ("POST", CONNECT, executor),
        ("POST", CONNECT, admin),
        ("POST", &format!("{elsewhere}/connect"), orchestrator),
        ("POST", VALIDATE, orchestrator),
        ("POST", VALIDATE, admin),
        ("POST", &format!("{elsewhere}/validate"), executor),
        ("GET", "/v1/environments", executor),
        ("GET", "/v1/tokens", executor),
        ("GET", "/v1/tokens", orchestrator),
        ("POST", "/v1/tokens", executor),
        ("POST", "/v1/tokens", orchestrator),
        ("DELETE", "/v1/tokens/0011223344556677", executor),
        ("DELETE", "/v1/tokens/0011223344556677", orchestrator),
    ];
    for (method, path, token) in cases {
        let answer = api.call(method, path, token, Body::empty()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}");
        assert_eq!(answer.code(), "forbidden");
    }
    let forbidden = Outcome::Error(ErrorCode::Forbidden);
    assert_eq!(api.count(Operation::Register, forbidden), 3);
    assert_eq!(api.count(Operation::Tokens, forbidden), 6);
}

#[tokio::test]
async fn invalid_bodies_are_refused_with_reason() {
    let api = Api::new().await;
    api.online().await;
    let mut short_key = stock_register();
    short_key["executor_public_key"]["x25519_public_key"] = json!("AQ==");
    let mut other_suite = stock_register();
    other_suite["executor_public_key"]["suite"] = json!("Noise_XX_25519_AESGCM_SHA256");
    let direct = json!({"security_profile": "direct_jsonrpc_v1"});
    let mut ours_only = stock_connect();
    ours_only["rendez"] = json!({"profiles": ["rendez_ik_v1"]});
    let mut short_harness_key = stock_connect();
    short_harness_key["harness_public_key"]["mlkem768_public_key"] = json!("AQ==");

    for (path, body, code) in [
        (REGISTER, String::new(), "legacy_registration"),
        (REGISTER, "{}".to_owned(), "legacy_registration"),
        (REGISTER, "not json".to_owned(), "invalid_request"),
        (REGISTER, direct.to_string(), "unsupported_profile"),
        (REGISTER, short_key.to_string(), "invalid_request"),
        (REGISTER, other_suite.to_string(), "invalid_request"),
        (CONNECT, String::new(), "invalid_request"),
        (CONNECT, "[1, 2".to_owned(), "invalid_request"),
        (CONNECT, "{}".to_owned(), "invalid_request"),
        (CONNECT, short_harness_key.to_string(), "invalid_request"),
        // the executor of this test is a stock one
        (CONNECT, ours_only.to_string(), "unsupported_profile"),
        (VALIDATE, "{}".to_owned(), "invalid_request"),
        (VALIDATE, "not json".to_owned(), "invalid_request"),
    ] {
        let token = if path == CONNECT { &api.orchestrator } else { &api.executor };
        let answer = api.call("POST", path, token, body.clone()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {body}");
        assert_eq!(answer.code(), code, "{path} {body}");
        assert!(!answer.body["error"]["message"].as_str().unwrap().is_empty());
    }
    let count = |operation, code| api.count(operation, Outcome::Error(code));
    assert_eq!(count(Operation::Register, ErrorCode::LegacyRegistration), 2);
    assert_eq!(count(Operation::Register, ErrorCode::InvalidRequest), 3);
    assert_eq!(count(Operation::Connect, ErrorCode::UnsupportedProfile), 1);
    assert_eq!(count(Operation::Validate, ErrorCode::InvalidRequest), 2);
}

#[tokio::test]
async fn oversized_bodies_are_refused_and_drained() {
    let api = Api::new().await;
    // a valid request, padded to the limit and one byte over
    let mut body = stock_register().to_string().into_bytes();
    body.resize(limits::REGISTRY_BODY_MAX_BYTES, b' ');
    let answer = api.call("POST", REGISTER, &api.executor, body.clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
    body.push(b' ');
    let answer = api.call("POST", REGISTER, &api.executor, body).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(answer.code(), "body_too_large");
    assert_eq!(api.count(Operation::Register, Outcome::Error(ErrorCode::BodyTooLarge)), 1);

    // an endless body
    let piece = Bytes::from(vec![b' '; 64 * 1024]);
    let endless = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
    let answer = api.call("POST", REGISTER, &api.executor, Body::from_stream(endless)).await;
    assert_eq!(answer.code(), "body_too_large");
}

/// The paused clock advances only while every task is idle: the database is not
/// used between authentication and the end of the wait.
#[tokio::test]
async fn late_body_times_out() {
    tokio::time::pause();
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let failure = super::body::read(Body::from_stream(never)).await.unwrap_err();
    assert_eq!(failure.code(), ErrorCode::RequestTimeout);
    assert_eq!(super::error::status(failure.code()), StatusCode::REQUEST_TIMEOUT);
}

#[tokio::test]
async fn truncated_body_is_a_bad_request() {
    let broken = futures_util::stream::iter([
        Ok(Bytes::from_static(b"{")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ]);
    let failure = super::body::read(Body::from_stream(broken)).await.unwrap_err();
    assert_eq!(failure.code(), ErrorCode::InvalidRequest);
}

#[tokio::test]
async fn offline_executor_is_retryable_conflict() {
    let api = Api::new().await;
    let answer = api.post(CONNECT, &api.orchestrator, stock_connect()).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.code(), "environment_offline");
    assert_eq!(answer.body["rendez"], json!({"state": "unknown"}));

    api.post(REGISTER, &api.executor, stock_register()).await;
    let answer = api.post(CONNECT, &api.orchestrator, stock_connect()).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.code(), "environment_offline");
    let since = json!({"state": "offline", "since_unix_secs": START});
    assert_eq!(answer.body["rendez"], since);
    let offline = Outcome::Error(ErrorCode::EnvironmentOffline);
    assert_eq!(api.count(Operation::Connect, offline), 2);
}

/// 401 would make the executor complete the handshake with a rejection.
#[tokio::test]
async fn validate_reserves_401_for_the_caller() {
    let api = Api::new().await;
    api.online().await;
    let connected = api.post(CONNECT, &api.orchestrator, stock_connect()).await.body;

    let mut forged = stock_validate(&connected);
    forged["harness_key_authorization"] = json!("forged");
    let answer = api.post(VALIDATE, &api.executor, forged).await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, json!({"valid": false})));

    let mut old = stock_validate(&connected);
    old["executor_registration_id"] = json!("reg_of_another_time");
    let answer = api.post(VALIDATE, &api.executor, old).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.code(), "registration_superseded");

    let other = api.fixture.token(Role::Executor, "dev").await;
    let answer = api.post(VALIDATE, &other, stock_validate(&connected)).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn unknown_paths_get_the_error_shape() {
    let api = Api::new().await;
    for path in ["/", "/cloud/environment/dev", "/cloud/environment/dev/other", "/v2/tokens"] {
        let answer = api.call("POST", path, &api.executor, Body::empty()).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "not_found"), "{path}");
    }
    for (method, path) in [("GET", REGISTER), ("PUT", CONNECT), ("POST", "/v1/environments")] {
        let answer = api.call(method, path, &api.executor, Body::empty()).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(answer.code(), "method_not_allowed");
    }
    let long = "x".repeat(limits::ENVIRONMENT_ID_MAX_BYTES + 1);
    for id in ["a.b", "%20env", "%ff", &long] {
        let path = format!("/cloud/environment/{id}/register");
        let answer = api.post(&path, &api.executor, stock_register()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{id}");
        assert_eq!(answer.code(), "invalid_request");
    }
    let count = |code| api.count(Operation::UnknownRoute, Outcome::Error(code));
    assert_eq!(count(ErrorCode::NotFound), 4);
    assert_eq!(count(ErrorCode::MethodNotAllowed), 3);
}

#[tokio::test]
async fn request_without_host_gets_no_url() {
    let api = Api::new().await;
    let request = Request::post(REGISTER)
        .header("authorization", format!("bearer {}", api.executor))
        .body(stock_register().to_string().into())
        .unwrap();
    let answer = api.send(request).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "invalid_request"));
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("Host"));
}

#[tokio::test]
async fn database_failure_is_503() {
    let api = Api::new().await;
    // drops the tables under the running registry
    let path = api.fixture.dir.path().join(crate::registry::DATABASE_FILE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).foreign_keys(false);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("DROP TABLE registrations").execute(&pool).await.unwrap();
    let answer = api.post(CONNECT, &api.orchestrator, stock_connect()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.code(), "unavailable");
    assert_eq!(answer.headers["retry-after"], "2");
    assert!(!answer.body.to_string().contains("registrations"), "details stay in the log");
    assert_eq!(api.count(Operation::Connect, Outcome::Error(ErrorCode::Unavailable)), 1);
}

#[tokio::test]
async fn register_waits_for_another_writer() {
    let api = Api::new().await;
    let path = api.fixture.dir.path().join(crate::registry::DATABASE_FILE);
    let other = SqliteStore::open(&path).await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    let lock = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();

    let call = api.post(REGISTER, &api.executor, stock_register());
    // when one write has timed out, the registry's first one has too
    let release = async {
        let stuck = other.revoke(&TokenId::from_random([0; 8]).into(), 0, &audit_event()).await;
        lock.rollback().await.unwrap();
        stuck
    };
    let (answer, stuck) = tokio::join!(call, release);
    assert!(matches!(stuck, Err(StoreError::Unavailable(_))), "{stuck:?}");
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
}

#[tokio::test]
async fn admin_creates_lists_and_revokes_tokens() {
    let api = Api::new().await;
    let admin = &api.admin;
    let body = json!({"role": "orchestrator", "environments": "dev", "label": "ci",
                      "expires_in_secs": 60});
    let created = api.post("/v1/tokens", admin, body).await;
    assert_eq!(created.status, StatusCode::CREATED);
    let (token, id) = (created.body["token"].as_str().unwrap(), &created.body["id"]);
    assert!(token.starts_with("rdz_o_"));
    let answer = api.call("GET", "/v1/environments", token, Body::empty()).await;
    assert_eq!((answer.status, answer.body), (StatusCode::OK, json!({"environments": []})));

    let list = api.call("GET", "/v1/tokens", admin, Body::empty()).await.body;
    let entry = list["tokens"].as_array().unwrap().iter().find(|entry| entry["id"] == *id).unwrap();
    assert_eq!((&entry["label"], &entry["role"]), (&json!("ci"), &json!("orchestrator")));
    assert!(!list.to_string().contains(token), "a token is shown once");

    let path = format!("/v1/tokens/{}", id.as_str().unwrap());
    let answer = api.call("DELETE", &path, admin, Body::empty()).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let answer = api.call("GET", "/v1/environments", token, Body::empty()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("revoked"));

    for id in ["0011223344556677", "nonsense"] {
        let answer = api.call("DELETE", &format!("/v1/tokens/{id}"), admin, Body::empty()).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "not_found"));
    }
    for body in [json!({}), json!({"role": "admin", "environments": "a b"})] {
        let answer = api.post("/v1/tokens", admin, body).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "invalid_request"));
    }
    let answer = api.call("GET", "/v1/tokens?after=nonsense", admin, Body::empty()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "invalid_request"));
}

#[tokio::test]
async fn admin_rotates_tokens_and_revokes_environments() {
    let api = Api::new().await;
    let admin = &api.admin;
    let id = api.orchestrator.split('_').nth(2).unwrap();
    let rotate = format!("/v1/tokens/{id}/rotate");
    let rotated = api.call("POST", &rotate, admin, Body::empty()).await;
    assert_eq!((rotated.status, &rotated.body["id"]), (StatusCode::OK, &json!(id)));
    let new = rotated.body["token"].as_str().unwrap();
    for token in [new, &api.orchestrator] {
        let answer = api.call("GET", "/v1/environments", token, Body::empty()).await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    api.fixture.advance(3600);
    let answer = api.call("GET", "/v1/environments", &api.orchestrator, Body::empty()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    for (path, body, status) in [
        (rotate.as_str(), json!({"overlap_secs": 1_u64 << 40}), StatusCode::BAD_REQUEST),
        (&rotate, json!({"overlap": 5}), StatusCode::BAD_REQUEST),
        ("/v1/tokens/0011223344556677/rotate", json!({}), StatusCode::NOT_FOUND),
        ("/v1/tokens/nonsense/rotate", json!({}), StatusCode::NOT_FOUND),
    ] {
        assert_eq!(api.post(path, admin, body).await.status, status, "{path}");
    }

    api.online().await;
    for path in ["/v1/environments/dev/registration", "/v1/environments/dev"] {
        for token in [&api.executor, new] {
            let answer = api.call("DELETE", path, token, Body::empty()).await;
            assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "forbidden"));
        }
        let answer = api.call("DELETE", path, admin, Body::empty()).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{path}");
    }
    let answer = api.call("DELETE", "/v1/environments/never", admin, Body::empty()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::NOT_FOUND, "not_found"));
    let answer = api.post(REGISTER, &api.executor, stock_register()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "forbidden"));
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("revoked"));
}

#[tokio::test]
async fn http_token_is_limited_to_networks_and_uses() {
    let api = Api::new().await;
    let body = json!({"role": "executor", "source_cidrs": ["192.0.2.0/24"], "max_uses": 1});
    let token = api.post("/v1/tokens", &api.admin, body).await.body;
    let (id, token) = (&token["id"], token["token"].as_str().unwrap());
    let from = async |peer: Option<&str>, forwarded: &str| {
        let mut request = Request::post(REGISTER)
            .header("host", "relay.test:7000")
            .header("authorization", format!("Bearer {token}"))
            .header("x-forwarded-for", forwarded)
            .body(Body::from(stock_register().to_string()))
            .unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(crate::PeerAddr(peer.parse().unwrap()));
        }
        api.send(request).await
    };
    // 127.0.0.1 is a trusted proxy here, the others are not
    for (peer, forwarded) in [
        (Some("198.51.100.1"), "192.0.2.1"),
        (Some("127.0.0.1"), "198.51.100.1"),
        (Some("127.0.0.1"), "192.0.2.1, 198.51.100.1"),
        (None, "192.0.2.1"),
    ] {
        let answer = from(peer, forwarded).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "forbidden"));
        assert!(answer.body["error"]["message"].as_str().unwrap().contains("may not be used from"));
    }
    let answer = from(Some("127.0.0.1"), "198.51.100.1, 192.0.2.1").await;
    assert_eq!(answer.status, StatusCode::OK, "refusals are no uses");
    let answer = from(Some("192.0.2.7"), "").await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "forbidden"));
    assert!(answer.body["error"]["message"].as_str().unwrap().contains("used up"));

    let list = api.call("GET", "/v1/tokens", &api.admin, Body::empty()).await.body;
    let entry = list["tokens"].as_array().unwrap().iter().find(|entry| entry["id"] == *id).unwrap();
    assert_eq!(entry["source_cidrs"], json!(["192.0.2.0/24"]));
    assert_eq!((&entry["uses"], &entry["max_uses"]), (&json!(1), &json!(1)));

    // an orchestrator's use is a granted connection
    let body = json!({"role": "orchestrator", "max_uses": 1});
    let token = api.post("/v1/tokens", &api.admin, body).await.body;
    let token = token["token"].as_str().unwrap();
    let offline = api.post(CONNECT, token, stock_connect()).await;
    assert_eq!(offline.code(), "environment_offline");
    api.online().await;
    assert_eq!(api.post(CONNECT, token, stock_connect()).await.status, StatusCode::OK);
    let answer = api.post(CONNECT, token, stock_connect()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::FORBIDDEN, "forbidden"));
    for body in [
        json!({"role": "admin", "max_uses": 2}),
        json!({"role": "join", "max_uses": 0}),
        json!({"role": "executor", "source_cidrs": ["here"]}),
        json!({"role": "executor", "source_cidrs": vec!["::/0"; 33]}),
    ] {
        let answer = api.post("/v1/tokens", &api.admin, body).await;
        assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "invalid_request"));
    }
}

/// A request about `body` from the executor with this key.
fn proven(key: u8, call: Call, environment: &str, nonce: u8, body: &[u8]) -> String {
    let proof = Proof {
        call,
        environment: environment.parse().unwrap(),
        key: [0; 32],
        time: START,
        nonce: [nonce; 16],
        body: body_hash(body),
    };
    proof.sign(&ed25519_dalek::SigningKey::from_bytes(&[key; 32]))
}

#[tokio::test]
async fn enrolled_executor_needs_no_join_token() {
    let api = Api::new().await;
    let body = serde_json::to_vec(&register_request()).unwrap();
    let send = async |path: &str, proof: &str, bearer: Option<&str>, body: &[u8]| {
        let mut request = Request::post(path)
            .header("host", "relay.test:7000")
            .header(rendez_proto::proof::PROOF_HEADER, proof);
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        api.send(request.body(body.to_vec().into()).unwrap()).await
    };
    let refused =
        async |path: &str, proof: &str, bearer: Option<&str>, body: &[u8], status: u16| {
            let answer = send(path, proof, bearer, body).await;
            assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
            answer.body["error"]["message"].as_str().unwrap().to_owned()
        };
    let join = api.fixture.token(Role::Join, "dev*").await;
    let register = |key, nonce| proven(key, Call::Register, "dev", nonce, &body);

    // refused requests enrol nothing and use up nothing
    for bad in ["", "rubbish", &register(1, 0)[1..]] {
        refused(REGISTER, bad, Some(&join), &body, 401).await;
    }
    let first = register(1, 1);
    assert!(refused(REGISTER, &first, None, &body, 401).await.contains("not enrolled"));
    refused(REGISTER, &first, Some("nonsense"), &body, 401).await;
    refused(REGISTER, &first, Some(&api.executor), &body, 403).await;
    refused(REGISTER, &first, Some(&join), b"{}", 400).await;
    let other = serde_json::to_vec(&stock_register()).unwrap();
    assert!(refused(REGISTER, &first, Some(&join), &other, 401).await.contains("another request"));
    refused("/cloud/environment/dev2/register", &first, Some(&join), &body, 401).await;
    refused(VALIDATE, &first, Some(&join), &body, 401).await;
    let stranger = proven(1, Call::Register, "prod", 1, &body);
    refused("/cloud/environment/prod/register", &stranger, Some(&join), &body, 403).await;
    let stock = api.post(REGISTER, &join, stock_register()).await;
    assert_eq!(stock.status, StatusCode::FORBIDDEN);
    assert!(stock.body["error"]["message"].as_str().unwrap().contains("executor token"));

    let joined = send(REGISTER, &first, Some(&join), &body).await;
    assert_eq!(joined.status, StatusCode::OK, "{}", joined.body);
    assert!(refused(REGISTER, &first, Some(&join), &body, 401).await.contains("used before"));
    let again = send(REGISTER, &register(1, 2), None, &body).await;
    assert_eq!(again.status, StatusCode::OK);
    refused(REGISTER, &register(2, 3), Some(&join), &body, 403).await;

    // the whole way to a handshake
    let id = again.body["executor_registration_id"].as_str().unwrap().parse().unwrap();
    api.fixture.set_connected("dev", &id);
    let connected = api.post(CONNECT, &api.orchestrator, stock_connect()).await.body;
    let ctx = stock_validate(&connected).to_string();
    let asked = proven(1, Call::Validate, "dev", 4, ctx.as_bytes());
    let verdict = send(VALIDATE, &asked, None, ctx.as_bytes()).await;
    assert_eq!((verdict.status, verdict.body), (StatusCode::OK, json!({"valid": true})));

    let path = format!("/v1/tokens/{}", enrolled(&api).await);
    let answer = api.call("POST", &format!("{path}/rotate"), &api.admin, Body::empty()).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::BAD_REQUEST, "invalid_request"));
    let answer = api.call("DELETE", &path, &api.admin, Body::empty()).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let join = api.fixture.token(Role::Join, "dev*").await;
    let message = refused(REGISTER, &register(1, 5), Some(&join), &body, 401).await;
    assert!(message.contains("revoked") && message.contains("join"), "{message}");
    assert_eq!(send(REGISTER, &register(3, 6), Some(&join), &body).await.status, StatusCode::OK);
}

/// The id of the enrolled executor.
async fn enrolled(api: &Api) -> String {
    let list = api.call("GET", "/v1/tokens", &api.admin, Body::empty()).await.body;
    let entries = list["tokens"].as_array().unwrap();
    let entry = entries.iter().find(|entry| !entry["enrolled_by"].is_null()).unwrap();
    assert_eq!((&entry["role"], &entry["environments"]), (&json!("executor"), &json!("dev")));
    entry["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn environments_are_listed_in_pages() {
    let api = Api::new().await;
    api.online().await;
    let list = api.call("GET", "/v1/environments", &api.orchestrator, Body::empty()).await.body;
    assert_eq!(list["environments"][0]["environment_id"], "dev");
    assert_eq!(list["environments"][0]["online"], true);
    assert_eq!(list["environments"][0]["profiles"], json!(["noise_hybrid_ik_v1"]));
    assert_eq!(list.get("next"), None);
    let path = "/v1/environments?after=dev";
    let list = api.call("GET", path, &api.orchestrator, Body::empty()).await.body;
    assert_eq!(list["environments"], json!([]));
}

#[tokio::test]
async fn connections_page_starts_after_a_valid_cursor() {
    let api = Api::new().await;
    api.online().await;
    let get = async |query: &str| {
        let path = format!("/v1/connections{query}");
        api.call("GET", &path, &api.admin, Body::empty()).await
    };
    let list = get("").await.body;
    assert_eq!(list["connections"].as_array().unwrap().len(), 1);
    let id = list["connections"][0]["id"].as_str().unwrap().to_owned();
    for query in [format!("?after={id}"), format!("?environment=dev&after={id}")] {
        assert_eq!(get(&query).await.body["connections"], json!([]), "{query}");
    }
    for bad in
        ["after=", "after=dev", "after=dev.x", "after=.1", "after=dev.-1", "environment=a%20b"]
    {
        let answer = get(&format!("?{bad}")).await;
        assert_eq!((answer.status.as_u16(), answer.code()), (400, "invalid_request"), "{bad}");
    }
    let elsewhere = get(&format!("?environment=prod&after={id}")).await;
    assert_eq!(elsewhere.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn openapi_document_is_served_and_counted() {
    let api = Api::new().await;
    let before = api.fixture.registry.stats().get(Operation::Document, Outcome::Ok);
    let path = "/v1/openapi.json";
    let first = api.call("GET", path, "", Body::empty()).await;
    assert_eq!((first.status, &first.body["info"]["version"]), (StatusCode::OK, &json!("1")));
    assert_eq!(api.call("GET", path, "", Body::empty()).await.body, first.body);
    let after = api.fixture.registry.stats().get(Operation::Document, Outcome::Ok);
    assert_eq!(after, before + 2);
}

/// The table is part of the protocol: a change here changes the behaviour of stock
/// clients.
#[test]
fn error_codes_map_to_statuses() {
    use ErrorCode::*;
    let table = [
        (InvalidRequest, 400),
        (BodyTooLarge, 413),
        (RequestTimeout, 408),
        (UnsupportedProfile, 400),
        (LegacyRegistration, 400),
        (Unauthorized, 401),
        (Forbidden, 403),
        (LimitReached, 403),
        (EnvironmentOffline, 409),
        (RegistrationSuperseded, 409),
        (NotFound, 404),
        (MethodNotAllowed, 405),
        (Unavailable, 503),
        (Internal, 500),
        (Other, 500),
    ];
    assert_eq!(table.len(), ErrorCode::ALL.len());
    for (code, status) in table {
        assert_eq!(super::error::status(code).as_u16(), status, "{code}");
    }
}
