//! The document in the repository is current, and every operation behaves as it
//! describes.

use std::path::Path;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use rendez_proto::ids::Generation;
use rendez_proto::limits;
use rendez_proto::registry::environments::EndReason;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::model::Role;
use crate::store::connections::ConnectionRow;
use crate::testing::{Fixture, START, env};

/// The arguments of an operation.
struct Call {
    path: String,
    body: Option<Value>,
    /// A query that the operation must refuse.
    bad_query: Option<&'static str>,
    /// The roles that may call the operation. All others are refused.
    roles: &'static [Role],
}

/// A call of each operation. A new operation fails here until it is listed.
async fn call(fixture: &Fixture, method: &str, path: &str) -> Call {
    const ADMIN: &[Role] = &[Role::Admin];
    const CLIENTS: &[Role] = &[Role::Admin, Role::Orchestrator];
    let on =
        |path: &str, bad_query, roles| Call { path: path.to_owned(), body: None, bad_query, roles };
    match (method, path) {
        ("get", "/v1/environments") => on(path, Some("after=a%20b"), CLIENTS),
        ("get", "/v1/environments/{id}") => {
            on("/v1/environments/dev", Some("probe=perhaps"), CLIENTS)
        }
        ("get", "/v1/registrations") => on(path, Some("after=a%20b"), ADMIN),
        ("get", "/v1/connections") => on(path, Some("after=dev"), ADMIN),
        ("get", "/v1/status" | "/v1/audit/head") => on(path, None, ADMIN),
        ("get", "/v1/audit") => on(path, Some("after=last"), ADMIN),
        ("get", "/v1/tokens") => on(path, Some("after=nobody"), ADMIN),
        ("post", "/v1/tokens") => {
            let body = Some(json!({"role": "orchestrator", "label": "made by a test"}));
            Call { body, ..on(path, None, ADMIN) }
        }
        ("delete", "/v1/tokens/{id}") => {
            let token = fixture.token(Role::Executor, "*").await;
            let id = token.split('_').nth(2).unwrap();
            on(&format!("/v1/tokens/{id}"), None, ADMIN)
        }
        ("post", "/v1/tokens/{id}/rotate") => {
            let token = fixture.token(Role::Executor, "*").await;
            let id = token.split('_').nth(2).unwrap();
            let path = format!("/v1/tokens/{id}/rotate");
            Call { body: Some(json!({"overlap_secs": 60})), ..on(&path, None, ADMIN) }
        }
        ("delete", "/v1/environments/{id}" | "/v1/environments/{id}/registration") => {
            // an executor that no other call needs
            let executor = fixture.caller(Role::Executor, "*").await;
            let id = if path.ends_with("registration") { "ended" } else { "revoked" };
            fixture.register(&executor, id).await;
            on(&path.replace("{id}", id), None, ADMIN)
        }
        ("get", "/v1/openapi.json") => on(path, None, &[]),
        _ => panic!("say here how to call {method} {path}"),
    }
}

struct Answer {
    status: StatusCode,
    body: Value,
}

async fn send_to(
    fixture: &Fixture,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Answer {
    let mut request = Request::builder().method(method.to_uppercase().as_str()).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let response = fixture.registry.router().oneshot(request.body(body).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = to_bytes(response.into_body(), 1 << 22).await.unwrap();
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    Answer { status, body }
}

/// Whether the body has an empty list, whose entries no schema has checked. Most
/// tokens have no networks.
fn is_empty(body: &Value) -> bool {
    match body {
        Value::Array(list) => list.is_empty() || list.iter().any(is_empty),
        Value::Object(members) => {
            members.iter().any(|(name, value)| name != "source_cidrs" && is_empty(value))
        }
        _ => false,
    }
}

/// Checks that the operation describes this response.
fn check(document: &Value, operation: &Value, answer: &Answer, what: &str) {
    let status = answer.status.as_str();
    let described = &operation["responses"][status];
    assert!(described.is_object(), "{what}: {status} is not described: {}", answer.body);
    let schema = &described["content"]["application/json"]["schema"];
    if schema.is_null() {
        assert!(answer.body.is_null(), "{what}: {status} has no body: {}", answer.body);
        return;
    }
    let mut whole = schema.clone();
    whole["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&whole).unwrap();
    let errors: Vec<_> =
        validator.iter_errors(&answer.body).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{what}: {status} {}: {errors:?}", answer.body);
}

#[test]
fn openapi_document_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
    let wanted = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "docs/openapi.json is another document: BLESS=1 writes it");
}

#[tokio::test]
async fn responses_match_the_openapi_schemas() {
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "*").await;
    fixture.online(&executor, "dev").await;
    fixture.register(&executor, "away").await;
    let history = fixture.registry.history();
    for (environment, ended) in [("dev", None), ("away", Some((START + 1, EndReason::Revoked)))] {
        history.record(ConnectionRow {
            id: history.next_id(),
            environment: env(environment),
            registration: "reg_x".parse().unwrap(),
            generation: Generation(1),
            connected_at: START,
            ended,
            received_bytes: 1,
            sent_bytes: 2,
        });
    }
    history.flush().await.unwrap();
    fixture.registry.audit().flush().await.unwrap();
    let mut tokens = Vec::new();
    for role in Role::ALL {
        tokens.push((role, fixture.token(role, "*").await));
    }

    let document = serde_json::to_value(openapi()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 9, "only {} paths are described", paths.len());
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            let what = format!("{method} {path}");
            let call = call(&fixture, method, path).await;
            let is_open = operation["security"] == json!([{}]);
            let send = async |token: Option<&str>, query: &str| {
                let path = format!("{}{query}", call.path);
                let answer = send_to(&fixture, method, &path, token, call.body.as_ref()).await;
                check(&document, operation, &answer, &what);
                let compared = !answer.status.is_success() || is_open || !is_empty(&answer.body);
                assert!(compared, "{what}: a list has nothing in it: {}", answer.body);
                answer.status
            };
            assert_eq!(is_open, call.roles.is_empty(), "{what}");
            if is_open {
                assert!(send(None, "").await.is_success(), "{what}");
                continue;
            }
            assert_eq!(send(None, "").await, StatusCode::UNAUTHORIZED, "{what}");
            assert_eq!(send(Some("rdz_a_nobody"), "").await, StatusCode::UNAUTHORIZED, "{what}");
            for (role, token) in tokens.iter().filter(|(role, _)| !call.roles.contains(role)) {
                let status = send(Some(token), "").await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{what} by {role:?}");
            }
            for (role, token) in tokens.iter().filter(|(role, _)| call.roles.contains(role)) {
                if let Some(query) = call.bad_query {
                    let status = send(Some(token), &format!("?{query}")).await;
                    assert_eq!(status, StatusCode::BAD_REQUEST, "{what}?{query}");
                }
                assert!(send(Some(token), "").await.is_success(), "{what} by {role:?}");
                if call.body.is_some() {
                    let large = json!("x".repeat(limits::REGISTRY_BODY_MAX_BYTES));
                    let answer =
                        send_to(&fixture, method, &call.path, Some(token), Some(&large)).await;
                    check(&document, operation, &answer, &what);
                    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{what}");
                }
            }
            // responses that are hard to cause
            let rare: &[_] =
                if call.body.is_some() { &["408", "500", "503"] } else { &["500", "503"] };
            for status in rare {
                assert!(operation["responses"][status].is_object(), "{what}: {status}");
            }
        }
    }
}

/// The check above would accept everything if schemas were empty.
#[test]
fn openapi_schemas_reject_other_values() {
    let document = serde_json::to_value(openapi()).unwrap();
    let operation = &document["paths"]["/v1/environments/{id}"]["get"];
    let good = json!({"environment_id": "dev", "state": "never_seen", "orchestrators": 0,
                      "streams": 0, "history": []});
    let verdict = |body: &Value| {
        let mut schema =
            operation["responses"]["200"]["content"]["application/json"]["schema"].clone();
        schema["components"] = document["components"].clone();
        jsonschema::validator_for(&schema).unwrap().is_valid(body)
    };
    assert!(verdict(&good));
    for (member, wrong) in [
        ("environment_id", json!("a b")),
        ("state", json!("asleep")),
        ("streams", json!(-1)),
        ("history", json!([{"ended_because": "bored"}])),
        ("orchestrators", Value::Null),
    ] {
        let mut bad = good.clone();
        bad[member] = wrong;
        assert!(!verdict(&bad), "{bad}");
    }
}
