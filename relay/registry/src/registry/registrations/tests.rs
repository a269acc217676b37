//! Registering, connecting and validating.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rendez_proto::ids::{Generation, StreamId};
use rendez_proto::profile::Profile;
use rendez_proto::proof::{Call, PROOF_HEADER, Proof, body_hash};
use rendez_proto::registry::error::AbsenceState;
use rendez_proto::registry::{ConnectReply, ValidateRequest};
use rendez_proto::ticket::{BINDING_BYTES, Ticket, TicketError};

use super::*;
use crate::bearer_token::{BearerToken, SECRET_BYTES};
use crate::model::{Credential, Grant, Token, TokenId};
use crate::signer::Signer;
use crate::store_retry;
use crate::store_retry::StoreRetry;
use crate::testing::{
    Fixture, MemoryStore, START, base, busy, connect_request, env, key, register_request, ticket,
    token, validate_request,
};
use crate::{NoPresence, Options, Registry};
use tokio::time::Instant;
use tower::ServiceExt as _;

async fn connect(
    fixture: &Fixture,
    caller: &Caller,
    profiles: Option<&[Profile]>,
) -> Result<ConnectReply, ConnectError> {
    let request = connect_request(profiles);
    fixture.registry.registrations().connect(caller, &env("dev"), &request, &base()).await
}

fn claims(fixture: &Fixture, ticket: &str, purpose: Purpose) -> Claims {
    let now = fixture.registry.unix_now();
    Ticket::verify(ticket, &fixture.registry.verifying_key(), purpose, now).unwrap()
}

#[tokio::test]
async fn register_returns_url_with_ticket() {
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "dev").await;
    let first = fixture.register(&executor, "dev").await;
    assert_eq!(first.environment_id, env("dev"));
    assert_eq!(first.security_profile, Profile::NoiseHybridIkV1);
    assert_eq!(first.executor_registration_id.as_str().len(), 26);
    assert_eq!(first.transport_policy, Some(TransportPolicy::nodelay(Generation(1))));
    assert_eq!(first.rendez.unwrap().profiles.len(), 3);

    let claims = claims(&fixture, &ticket(&first.url), Purpose::Executor);
    assert_eq!(claims.environment, env("dev"));
    assert_eq!(claims.registration, first.executor_registration_id);
    assert_eq!(claims.subject, executor.subject.to_string());
    assert_eq!(claims.expires_at_unix_secs, None);
    assert_eq!(claims.binding, [0; BINDING_BYTES]);

    let second = fixture.register(&executor, "dev").await;
    assert_ne!(second.executor_registration_id, first.executor_registration_id);
    assert_eq!(second.transport_policy, Some(TransportPolicy::nodelay(Generation(2))));
}

#[tokio::test]
async fn roles_and_patterns_are_enforced() {
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "dev").await;
    let reply = fixture.online(&executor, "dev").await;
    let orchestrator = fixture.caller(Role::Orchestrator, "*").await;
    let good = connect(&fixture, &orchestrator, None).await.unwrap();
    assert_eq!(good.executor_registration_id, reply.executor_registration_id);

    let (registry, request) = (&fixture.registry, register_request());
    let validate = validate_request(&good);
    for (role, pattern, why) in [
        (Role::Orchestrator, "*", Forbidden::Role),
        (Role::Admin, "*", Forbidden::Role),
        (Role::Executor, "prod-*", Forbidden::Environment),
    ] {
        let caller = fixture.caller(role, pattern).await;
        let result = registry
            .registrations()
            .register(&caller, &env("dev"), &request, &base(), StoreRetry::for_registration())
            .await;
        assert!(matches!(result, Err(RegisterError::Forbidden(f)) if f == why));
        let result = registry.registrations().validate(&caller, &env("dev"), &validate, None).await;
        assert!(matches!(result, Err(ValidateError::Forbidden(f)) if f == why));
    }
    for (role, pattern, why) in [
        (Role::Executor, "*", Forbidden::Role),
        (Role::Admin, "*", Forbidden::Role),
        (Role::Orchestrator, "prod-*", Forbidden::Environment),
    ] {
        let caller = fixture.caller(role, pattern).await;
        let result = connect(&fixture, &caller, None).await;
        assert!(matches!(result, Err(ConnectError::Forbidden(f)) if f == why));
    }
    // an executor's token that covers the environment but did not register
    let other = fixture.caller(Role::Executor, "*").await;
    let result = registry.registrations().validate(&other, &env("dev"), &validate, None).await;
    assert!(matches!(result, Err(ValidateError::Forbidden(Forbidden::Token))));
    let result = registry.registrations().validate(&executor, &env("dev"), &validate, None).await;
    assert_eq!(result.unwrap(), Verdict::Valid, "none of these used it up");
}

#[tokio::test]
async fn connect_needs_connected_current_executor() {
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "dev").await;
    let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
    let absent = async || match connect(&fixture, &orchestrator, None).await {
        Err(ConnectError::Offline(away)) => Some(away.absence.state),
        result => result.map(|_| None).unwrap(),
    };
    assert_eq!(absent().await, Some(AbsenceState::Unknown));
    let first = fixture.register(&executor, "dev").await;
    assert_eq!(absent().await, Some(AbsenceState::Offline));
    fixture.set_connected("dev", &first.executor_registration_id);
    assert_eq!(absent().await, None);
    // registered again, while the old websocket is still open
    let second = fixture.register(&executor, "dev").await;
    assert_eq!(absent().await, Some(AbsenceState::Offline));
    fixture.set_connected("dev", &second.executor_registration_id);
    assert_eq!(absent().await, None);
}

#[tokio::test]
async fn connect_reply_matches_chosen_profile() {
    use Profile::*;
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "dev").await;
    fixture.online(&executor, "dev").await;
    let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
    for (accepted, chosen) in [
        (None, NoiseHybridIkV1),
        (Some(&[RendezHybridIkV1, RendezIkV1][..]), RendezHybridIkV1),
        (Some(&[RendezIkV1, RendezHybridIkV1][..]), RendezIkV1),
    ] {
        let reply = connect(&fixture, &orchestrator, accepted).await.unwrap();
        assert_eq!(reply.security_profile, chosen);
        assert_eq!(Some(&reply.executor_public_key), key(1).for_suite(chosen.suite()).as_ref());
        let authorization = reply.harness_key_authorization.expose();
        for (text, purpose) in [
            (ticket(&reply.url).as_str(), Purpose::Orchestrator),
            (authorization, Purpose::KeyAuthorization),
        ] {
            let claims = claims(&fixture, text, purpose);
            assert_eq!(claims.profile, chosen);
            assert_eq!(claims.expires_at_unix_secs, Some(START + 60));
            assert_eq!(claims.subject, orchestrator.subject.to_string());
        }
        let verdict = fixture
            .registry
            .registrations()
            .validate(&executor, &env("dev"), &validate_request(&reply), None)
            .await;
        assert_eq!(verdict.unwrap(), Verdict::Valid);
    }
    let result = connect(&fixture, &orchestrator, Some(&[])).await;
    assert!(matches!(result, Err(ConnectError::NoCommonProfile { .. })));
}

#[tokio::test]
async fn key_authorization_is_valid_once() {
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "*").await;
    fixture.online(&executor, "dev").await;
    let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
    let denied = async |request: &ValidateRequest| match fixture
        .registry
        .registrations()
        .validate(&executor, &env("dev"), request, None)
        .await
        .unwrap()
    {
        Verdict::Valid => None,
        Verdict::Denied(why) => Some(why),
    };

    let reply = connect(&fixture, &orchestrator, None).await.unwrap();
    let good = validate_request(&reply);
    for harness_public_key in [key(3), key(2).for_suite(rendez_proto::profile::Suite::Ik).unwrap()]
    {
        let request = ValidateRequest { harness_public_key, ..good.clone() };
        assert_eq!(denied(&request).await, Some(Denied::OtherKeys));
    }
    for (text, why) in [
        ("auth-1".to_owned(), TicketError::Malformed),
        (ticket(&reply.url), TicketError::WrongPurpose),
    ] {
        let harness_key_authorization = text.parse().unwrap();
        let request = ValidateRequest { harness_key_authorization, ..good.clone() };
        assert_eq!(denied(&request).await, Some(Denied::Ticket(why)));
    }
    assert_eq!(denied(&good).await, None, "the refused ones did not use it up");
    assert_eq!(denied(&good).await, Some(Denied::Used));

    let late = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
    fixture.advance(59);
    let in_time = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
    fixture.advance(1);
    assert_eq!(denied(&late).await, Some(Denied::Ticket(TicketError::Expired)));
    assert_eq!(denied(&in_time).await, None);

    // the same keys in another environment, or after a new registration
    let other = fixture.online(&executor, "other").await;
    let foreign = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
    let foreign =
        ValidateRequest { executor_registration_id: other.executor_registration_id, ..foreign };
    let verdict = fixture
        .registry
        .registrations()
        .validate(&executor, &env("other"), &foreign, None)
        .await
        .unwrap();
    assert_eq!(verdict, Verdict::Denied(Denied::OtherRegistration));

    let before = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
    let anew = fixture.online(&executor, "dev").await;
    let result =
        fixture.registry.registrations().validate(&executor, &env("dev"), &before, None).await;
    assert!(matches!(result, Err(ValidateError::Superseded)));
    let spliced =
        ValidateRequest { executor_registration_id: anew.executor_registration_id, ..before };
    assert_eq!(denied(&spliced).await, Some(Denied::OtherRegistration));
}

#[tokio::test]
async fn repeated_refusals_are_audited_once_a_minute() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let executor = fixture.caller(Role::Executor, "dev").await;
    let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
    for _ in 0..50 {
        assert!(connect(&fixture, &orchestrator, None).await.is_err());
    }
    fixture.online(&executor, "dev").await;
    let request = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
    for _ in 0..50 {
        let stream = uuid(1);
        registry
            .registrations()
            .validate(&executor, &env("dev"), &request, Some(&stream))
            .await
            .unwrap();
    }
    registry.flush_on_shutdown().await;
    let rows = registry.audit().page(0).await.unwrap().rows;
    let rows = rows.into_iter().map(|row| row.event).filter(|event| !event.kind.is_act());
    let rows: Vec<_> = rows.map(|event| (event.kind.as_str(), event.what, event.count)).collect();
    let expected = [
        ("connect", Some("away"), None),
        ("register", None, None),
        ("connect", None, None),
        ("validate", Some("valid"), None),
        ("validate", Some("denied"), None),
        ("connect", Some("away"), Some(49)),
        ("validate", Some("denied"), Some(48)),
    ];
    assert_eq!(rows, expected.map(|(kind, what, count)| (kind, what.map(str::to_owned), count)));
}

fn uuid(n: u8) -> StreamId {
    format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
}

#[tokio::test]
async fn revoked_orchestrator_fails_validation() {
    let fixture = Fixture::new().await;
    let executor = fixture.caller(Role::Executor, "dev").await;
    fixture.online(&executor, "dev").await;
    let orchestrator = fixture.caller(Role::Orchestrator, "dev").await;
    let request = validate_request(&connect(&fixture, &orchestrator, None).await.unwrap());
    assert!(fixture.registry.tokens().revoke(None, &orchestrator.subject).await.unwrap());
    let verdict = fixture
        .registry
        .registrations()
        .validate(&executor, &env("dev"), &request, None)
        .await
        .unwrap();
    assert_eq!(verdict, Verdict::Denied(Denied::TokenInactive));
}

/// A registry over a store in memory that knows the bearer of a token with this
/// role. Each call of the store fails first with these errors.
fn scripted(
    role: Role,
    failures: impl IntoIterator<Item = (&'static str, Vec<StoreError>)>,
) -> (Registry, Arc<MemoryStore>, BearerToken) {
    let bearer = BearerToken::new(role, TokenId::from_random([1; 8]), [1; SECRET_BYTES]);
    let credential = Credential::Secret { hash: bearer.secret_hash(), previous: None };
    let token = Token { credential, ..token(1, role) };
    let store = Arc::new(MemoryStore::scripted(token, failures));
    let options = Options { presence: Arc::new(NoPresence), ..Options::default() };
    let registry = Registry::new(store.clone(), 1, Signer::from_seed(&[1; 32]), options);
    (registry, store, bearer)
}

async fn register_on(failures: Vec<StoreError>) -> (Result<RegisterReply, RegisterError>, usize) {
    let (registry, store, _) = scripted(Role::Executor, [("put", failures)]);
    let caller = Caller {
        subject: TokenId::from_random([1; 8]).into(),
        grants: vec![Grant { role: Role::Executor, environments: "*".parse().unwrap() }],
        until: None,
    };
    let result = registry
        .registrations()
        .register(
            &caller,
            &env("dev"),
            &register_request(),
            &base(),
            StoreRetry::for_registration(),
        )
        .await;
    (result, store.calls.load(Ordering::SeqCst))
}

#[tokio::test(start_paused = true)]
async fn register_retries_while_database_is_busy() {
    let start = Instant::now();
    let (result, calls) = register_on((0..100).map(|_| busy()).collect()).await;
    assert!(result.is_ok());
    assert_eq!(calls, 101);
    assert_eq!(start.elapsed(), store_retry::REGISTER_RETRY_PAUSE * 100);
}

#[tokio::test(start_paused = true)]
async fn register_gives_up_before_executor_does() {
    let start = Instant::now();
    let (result, _) = register_on((0..1000).map(|_| busy()).collect()).await;
    assert!(matches!(result, Err(RegisterError::Store(StoreError::Unavailable(_)))));
    assert!(start.elapsed() <= store_retry::REGISTER_RETRY_TIMEOUT);
    assert!(
        start.elapsed() + store_retry::REGISTER_RETRY_PAUSE >= store_retry::REGISTER_RETRY_TIMEOUT
    );
}

#[tokio::test(start_paused = true)]
async fn permanent_errors_are_not_retried() {
    let (result, calls) = register_on(vec![StoreError::Corrupt("generation")]).await;
    assert!(matches!(result, Err(RegisterError::Store(StoreError::Corrupt(_)))));
    assert_eq!(calls, 1);
}

/// The status of `/register` over HTTP, with a bearer alone or with a proof.
async fn register_over_http(
    registry: &Registry,
    bearer: &BearerToken,
    with_key: bool,
) -> axum::http::StatusCode {
    let body = serde_json::to_vec(&register_request()).unwrap();
    let mut request = axum::http::Request::builder()
        .method("POST")
        .uri("/cloud/environment/dev-1/register")
        .header("host", "relay.test:7000")
        .header("authorization", format!("Bearer {}", bearer.to_text().expose()));
    if with_key {
        let proof = Proof {
            call: Call::Register,
            environment: env("dev-1"),
            key: [0; 32],
            time: registry.unix_now(),
            nonce: [7; 16],
            body: body_hash(&body),
        };
        let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
        request = request.header(PROOF_HEADER, proof.sign(&key));
    }
    let request = request.body(axum::body::Body::from(body)).unwrap();
    registry.router().oneshot(request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn register_shares_one_retry_deadline() {
    let times = |n: usize| (0..n).map(|_| busy()).collect::<Vec<_>>();
    let start = Instant::now();
    let failures = [("token", times(50)), ("put", times(50))];
    let (registry, store, bearer) = scripted(Role::Executor, failures);
    assert_eq!(register_over_http(&registry, &bearer, false).await, 200);
    assert_eq!(store.calls.load(Ordering::SeqCst), 102);
    assert_eq!(start.elapsed(), store_retry::REGISTER_RETRY_PAUSE * 100);

    // an enrolment makes more calls
    let calls = ["token_by_key", "token", "redeem", "enrol", "put"];
    let (registry, store, bearer) = scripted(Role::Join, calls.map(|call| (call, times(20))));
    assert_eq!(register_over_http(&registry, &bearer, true).await, 200);
    // the join token is read again when it is used
    assert_eq!(store.calls.load(Ordering::SeqCst), calls.len() * 21 + 1);

    // never longer than the executor waits, whichever call takes the time
    for failures in [
        vec![("token", times(1000))],
        vec![("token", times(100)), ("put", times(1000))],
        vec![("token", times(159)), ("put", times(2))],
    ] {
        let start = Instant::now();
        let (registry, _, bearer) = scripted(Role::Executor, failures);
        assert_eq!(register_over_http(&registry, &bearer, false).await, 503);
        assert!(start.elapsed() <= store_retry::REGISTER_RETRY_TIMEOUT);
        assert!(
            start.elapsed() + store_retry::REGISTER_RETRY_PAUSE
                >= store_retry::REGISTER_RETRY_TIMEOUT
        );
    }
    // other callers get the error at once, since they retry themselves
    let (registry, store, bearer) = scripted(Role::Executor, [("token", times(1))]);
    assert!(
        registry
            .tokens()
            .authenticate(bearer.to_text().expose(), None, StoreRetry::NEVER)
            .await
            .is_err()
    );
    assert_eq!(store.calls.load(Ordering::SeqCst), 1);
}
