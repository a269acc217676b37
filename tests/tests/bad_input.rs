//! Bad input to every interface of a relay. Each test requires three things: the
//! documented status or close code, an increase by one of exactly the named
//! counters, and no effect on a witness pair that is connected all the time.

use std::pin::pin;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::StreamId;
use rendez_proto::limits;
use rendez_proto::registry::ConnectRequest;
use rendez_proto::registry::admin::Role;
use rendez_proto::registry::error::{AbsenceState, ErrorCode};
use rendez_proto::ticket::TICKET_MAX_BYTES;
use rendez_proto::ticket::{Claims, Purpose, Ticket};
use rendez_registry::http::body::REGISTRY_BODY_DRAIN_BYTES;
use rendez_registry::stats::{Operation, Outcome, TicketFault};
use rendez_relay::connections::End;
use rendez_relay_core::Dropped;
use rendez_tests::relay::{
    Counter, SHORT_TIMEOUT, TestRelay, Websocket, Witness, data_frame, key, refusal,
    register_request, ticket, token_id,
};
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame as RawFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

/// The witness's environment; misbehaving orchestrators share it.
const ENVIRONMENT: &str = "dev";
/// The environment of misbehaving executors.
const ELSEWHERE: &str = "elsewhere";
/// More than [`limits::MESSAGE_MAX_BYTES`].
const TOO_BIG_BYTES: usize = 300 * 1024;

/// A relay with a witness.
struct Fixture {
    relay: TestRelay,
    witness: Witness,
}

impl Fixture {
    async fn start() -> Result<Self> {
        let relay = TestRelay::start().await?;
        let witness = Witness::start(&relay, ENVIRONMENT).await?;
        Ok(Self { relay, witness })
    }

    /// Runs `input`. It must increase each of `counters` by one, no other counter,
    /// and must not affect the witness.
    async fn watch<T>(
        &mut self,
        counters: &[Counter],
        input: impl AsyncFnOnce(&TestRelay) -> Result<T>,
    ) -> Result<T> {
        self.witness.exchange().await?;
        let before = self.relay.counters();
        let output = input(&self.relay).await?;
        self.relay.counted(&before, counters).await?;
        self.witness.exchange().await?;
        // late increases had the time of the exchange to show
        self.relay.counted(&before, counters).await?;
        Ok(output)
    }

    /// Sends a request to the registry that must be refused, and counted as refused.
    async fn refused(
        &mut self,
        operation: Operation,
        code: ErrorCode,
        request: impl FnOnce(&TestRelay) -> RequestBuilder,
    ) -> Result<()> {
        let counter = Counter::Registry(operation, Outcome::Error(code));
        let (status, body) =
            self.watch(&[counter], async |relay| refusal(request(relay)).await).await?;
        ensure!(body.error.code == code, "{status} with {body:?} instead of {code}");
        ensure!(status == documented_status(code), "{status} with {code}");
        Ok(())
    }

    /// Uses a ticket that must be refused, and counted as refused.
    async fn refused_ticket(
        &mut self,
        ticket: &str,
        operation: Operation,
        fault: TicketFault,
    ) -> Result<()> {
        let url = format!("{}/v1/rendezvous?ticket={ticket}", self.relay.base());
        let counter = Counter::Registry(operation, Outcome::Ticket(fault));
        let refused = async |relay: &TestRelay| relay.refused_upgrade(&url).await;
        let (status, body) = self.watch(&[counter], refused).await?;
        let code = match fault {
            TicketFault::Superseded => ErrorCode::RegistrationSuperseded,
            _ => ErrorCode::Unauthorized,
        };
        ensure!(body.error.code == code, "{status} with {body:?} instead of {code}");
        ensure!(status == documented_status(code), "{status} with {code}");
        Ok(())
    }

    /// Sends messages for which the relay must close the sender's websocket.
    async fn closed(
        &mut self,
        socket: Websocket,
        counters: &[Counter],
        messages: Vec<Message>,
    ) -> Result<(u16, String)> {
        let mut socket = socket;
        self.watch(counters, async |_| {
            for message in messages {
                // The relay may have closed before all of it was sent.
                let _ = socket.send(message).await;
            }
            socket.closed().await
        })
        .await
    }

    async fn orchestrator(&self) -> Result<Websocket> {
        self.relay.orchestrator(ENVIRONMENT, key(9)).await
    }

    /// The claims in a ticket of the relay.
    fn claims(&self, ticket: &str, purpose: Purpose) -> Result<Claims> {
        Ok(Ticket::verify(ticket, &self.relay.verifying_key(), purpose, now()?)?)
    }
}

/// The documented status of each error (docs/codex-wire.md#registry-api,
/// docs/protocol.md).
fn documented_status(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::InvalidRequest
        | ErrorCode::UnsupportedProfile
        | ErrorCode::LegacyRegistration => 400,
        ErrorCode::Unauthorized => 401,
        ErrorCode::Forbidden => 403,
        ErrorCode::NotFound => 404,
        ErrorCode::RequestTimeout => 408,
        ErrorCode::EnvironmentOffline | ErrorCode::RegistrationSuperseded => 409,
        ErrorCode::BodyTooLarge => 413,
        other => panic!("unexpected error code {other}"),
    }
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn ended(end: End) -> Counter {
    Counter::Ended(end)
}

fn close(code: u16, reason: &str) -> (u16, String) {
    (code, reason.to_owned())
}

fn connect_body() -> ConnectRequest {
    ConnectRequest { harness_public_key: key(9), rendez: None }
}

fn validate_body() -> Value {
    json!({
        "executor_registration_id": "reg-1",
        "harness_public_key": key(9),
        "harness_key_authorization": "none",
    })
}

/// The three calls, each with a good body and the token that may make it.
fn good_calls(relay: &TestRelay) -> Result<[(Operation, &'static str, Value, &str); 3]> {
    let (executor, orchestrator) = (relay.executor_token(), relay.orchestrator_token());
    Ok([
        (Operation::Register, "register", serde_json::to_value(register_request())?, executor),
        (Operation::Connect, "connect", serde_json::to_value(connect_body())?, orchestrator),
        (Operation::Validate, "validate", validate_body(), executor),
    ])
}

// ---- tokens ----------------------------------------------------------------

#[tokio::test]
async fn wrong_token_is_unauthorized() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let other = TestRelay::start().await?;
    let stranger = other.executor_token();
    let mut wrong_secret = fixture.relay.executor_token().to_owned();
    let last = if wrong_secret.ends_with("AAAA") { "BBBB" } else { "AAAA" };
    wrong_secret.replace_range(wrong_secret.len() - 4.., last);
    for token in ["nonsense", "sk-live-1", stranger, &wrong_secret] {
        for (operation, call, body, _) in good_calls(&other)? {
            let request =
                |relay: &TestRelay| relay.call(ENVIRONMENT, call).bearer_auth(token).json(&body);
            fixture.refused(operation, ErrorCode::Unauthorized, request).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn missing_token_is_unauthorized() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for (operation, call, body, _) in good_calls(&TestRelay::start().await?)? {
        let request = |relay: &TestRelay| relay.call(ENVIRONMENT, call).json(&body);
        fixture.refused(operation, ErrorCode::Unauthorized, request).await?;
        let basic = |relay: &TestRelay| {
            relay.call(ENVIRONMENT, call).basic_auth("a", Some("b")).json(&body)
        };
        fixture.refused(operation, ErrorCode::Unauthorized, basic).await?;
    }
    Ok(())
}

#[tokio::test]
async fn token_of_wrong_role_is_forbidden() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let admin = fixture.relay.token(Role::Admin, "*").await?;
    let executor = fixture.relay.executor_token().to_owned();
    let orchestrator = fixture.relay.orchestrator_token().to_owned();
    for (operation, call, body, right) in good_calls(&TestRelay::start().await?)? {
        let right_role = right.split('_').nth(1);
        for token in [admin.expose(), &executor, &orchestrator] {
            if token.split('_').nth(1) == right_role {
                continue;
            }
            let request =
                |relay: &TestRelay| relay.call(ENVIRONMENT, call).bearer_auth(token).json(&body);
            fixture.refused(operation, ErrorCode::Forbidden, request).await?;
        }
    }
    let list = |relay: &TestRelay| relay.request(Method::GET, "/v1/tokens").bearer_auth(&executor);
    fixture.refused(Operation::Tokens, ErrorCode::Forbidden, list).await
}

#[tokio::test]
async fn token_for_other_environment_is_forbidden() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for (operation, call, body, right) in good_calls(&TestRelay::start().await?)? {
        let executors = right.starts_with("rdz_e");
        let role = if executors { Role::Executor } else { Role::Orchestrator };
        let token = fixture.relay.token(role, "other-*").await?;
        let request = |relay: &TestRelay| {
            relay.call(ENVIRONMENT, call).bearer_auth(token.expose()).json(&body)
        };
        fixture.refused(operation, ErrorCode::Forbidden, request).await?;
    }
    Ok(())
}

// ---- bodies and paths ------------------------------------------------------

#[tokio::test]
async fn unknown_environment_is_offline() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let offline =
        Counter::Registry(Operation::Connect, Outcome::Error(ErrorCode::EnvironmentOffline));
    let connect = async |relay: &TestRelay| {
        let request = relay.call("nowhere", "connect").bearer_auth(relay.orchestrator_token());
        refusal(request.json(&connect_body())).await
    };
    let (status, body) = fixture.watch(&[offline], connect).await?;
    ensure!(status == StatusCode::CONFLICT, "{status}");
    ensure!(body.error.code == ErrorCode::EnvironmentOffline, "{body:?}");
    ensure!(body.rendez.map(|absence| absence.state) == Some(AbsenceState::Unknown), "{body:?}");

    let validate = |relay: &TestRelay| {
        relay.call("nowhere", "validate").bearer_auth(relay.executor_token()).json(&validate_body())
    };
    fixture.refused(Operation::Validate, ErrorCode::RegistrationSuperseded, validate).await?;
    // not an environment id
    let register =
        |relay: &TestRelay| relay.call("no%2Fid", "register").bearer_auth(relay.executor_token());
    fixture.refused(Operation::Register, ErrorCode::InvalidRequest, register).await
}

#[tokio::test]
async fn body_without_json_is_invalid() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let calls = TestRelay::start().await?;
    for (operation, call, _, right) in good_calls(&calls)? {
        let executors = right.starts_with("rdz_e");
        for body in ["{", "no json", "\u{0}", "[1]", "\"text\"", "{\"security_profile\":1}"] {
            let request = |relay: &TestRelay| {
                let token =
                    if executors { relay.executor_token() } else { relay.orchestrator_token() };
                relay.call(ENVIRONMENT, call).bearer_auth(token).body(body)
            };
            fixture.refused(operation, ErrorCode::InvalidRequest, request).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn malformed_keys_are_invalid() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let good = serde_json::to_value(key(9))?;
    let with = |field: &str, value: &str| {
        let mut key = good.clone();
        key[field] = json!(value);
        key
    };
    let mut without_mlkem = good.clone();
    without_mlkem.as_object_mut().context("a key is an object")?.remove("mlkem768_public_key");
    for key in [
        with("x25519_public_key", "AQEB"),
        with("x25519_public_key", ""),
        with("x25519_public_key", "not base64"),
        with("mlkem768_public_key", "AQEB"),
        with("suite", "Noise_XX_25519_ChaChaPoly_BLAKE2s"),
        // the IK suite has no ML-KEM key
        with("suite", "Noise_IK_25519_AESGCM_SHA256"),
        with("more", "fields"),
        without_mlkem,
    ] {
        let register = json!({
            "security_profile": "noise_hybrid_ik_v1",
            "executor_public_key": key,
        });
        let request = |relay: &TestRelay| {
            relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token()).json(&register)
        };
        fixture.refused(Operation::Register, ErrorCode::InvalidRequest, request).await?;
        let connect = json!({ "harness_public_key": key });
        let request = |relay: &TestRelay| {
            relay
                .call(ENVIRONMENT, "connect")
                .bearer_auth(relay.orchestrator_token())
                .json(&connect)
        };
        fixture.refused(Operation::Connect, ErrorCode::InvalidRequest, request).await?;
    }
    Ok(())
}

#[tokio::test]
async fn unsupported_profile_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let body = json!({ "security_profile": "direct_jsonrpc_v1", "executor_public_key": key(9) });
    let request = |relay: &TestRelay| {
        relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token()).json(&body)
    };
    fixture.refused(Operation::Register, ErrorCode::UnsupportedProfile, request).await
}

#[tokio::test]
async fn legacy_registration_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for body in [None, Some(""), Some("{}"), Some("{\"name\":\"old\"}")] {
        let request = |relay: &TestRelay| {
            let request = relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token());
            match body {
                None => request,
                Some(body) => request.body(body),
            }
        };
        fixture.refused(Operation::Register, ErrorCode::LegacyRegistration, request).await?;
    }
    Ok(())
}

#[tokio::test]
async fn oversized_body_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for length in [limits::REGISTRY_BODY_MAX_BYTES + 1, REGISTRY_BODY_DRAIN_BYTES] {
        let body = vec![b' '; length];
        let request = |relay: &TestRelay| {
            let request = relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token());
            request.body(body.clone())
        };
        fixture.refused(Operation::Register, ErrorCode::BodyTooLarge, request).await?;
    }
    // a body without a valid token is not read
    let request = |relay: &TestRelay| {
        relay.call(ENVIRONMENT, "register").body(vec![b' '; limits::REGISTRY_BODY_MAX_BYTES + 1])
    };
    fixture.refused(Operation::Register, ErrorCode::Unauthorized, request).await
}

// ---- slow and broken HTTP --------------------------------------------------

/// Sends `request` and waits until the relay closes. Returns its response.
async fn raw_http(relay: &TestRelay, request: &[u8]) -> Result<String> {
    let mut tcp = TcpStream::connect(relay.address()).await?;
    tcp.write_all(request).await?;
    let mut answer = Vec::new();
    // The relay's timeout is ten seconds, and closing takes a moment.
    timeout(2 * SHORT_TIMEOUT, tcp.read_to_end(&mut answer))
        .await
        .context("the relay waits on")??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn slow_request_head_times_out() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let half = async |relay: &TestRelay| raw_http(relay, b"GET /livez HTTP/1.1\r\nhost: x").await;
    let answer = fixture.watch(&[Counter::HeadTimeout], half).await?;
    ensure!(answer.is_empty(), "half a request was answered: {answer}");
    Ok(())
}

#[tokio::test]
async fn slow_request_body_times_out() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let late = Counter::Registry(Operation::Register, Outcome::Error(ErrorCode::RequestTimeout));
    let half = async |relay: &TestRelay| {
        let token = relay.executor_token();
        let request = format!(
            "POST /cloud/environment/dev/register HTTP/1.1\r\nhost: x\r\n\
             authorization: Bearer {token}\r\ncontent-length: 10\r\n\r\n{{"
        );
        raw_http(relay, request.as_bytes()).await
    };
    let answer = fixture.watch(&[late], half).await?;
    ensure!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    ensure!(answer.contains("request_timeout"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn invalid_http_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let too_large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    for (request, status) in
        [("\u{16}\u{3}\u{1} no TLS here\r\n\r\n", "400"), (too_large.as_str(), "431")]
    {
        let send = async |relay: &TestRelay| raw_http(relay, request.as_bytes()).await;
        let answer = fixture.watch(&[Counter::BadHead], send).await?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn unknown_path_is_not_found() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let request = |relay: &TestRelay| relay.request(Method::GET, "/wp-login.php");
    fixture.refused(Operation::UnknownRoute, ErrorCode::NotFound, request).await
}

#[tokio::test]
async fn connections_beyond_limit_wait() -> Result<()> {
    let relay = TestRelay::start_with_connections(3).await?;
    let mut witness = Witness::start(&relay, ENVIRONMENT).await?;
    let third = relay.orchestrator(ENVIRONMENT, key(9)).await?;
    let mut fourth = pin!(relay.request(Method::GET, "/livez").send());
    // open websockets keep their places, so this one stays in the queue
    for _ in 0..100 {
        tokio::select! {
            biased;
            answer = &mut fourth => bail!("answered with {answer:?}"),
            exchanged = witness.exchange() => exchanged?,
        }
    }
    drop(third);
    ensure!(timeout(SHORT_TIMEOUT, fourth).await??.status() == StatusCode::OK);
    witness.exchange().await
}

// ---- tickets ---------------------------------------------------------------

#[tokio::test]
async fn replayed_ticket_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let reply = fixture.relay.connect(ENVIRONMENT, key(9)).await?;
    let mut first = Websocket::open(reply.url.expose()).await?;
    let ticket = ticket(reply.url.expose())?;
    fixture.refused_ticket(ticket, Operation::OrchestratorTicket, TicketFault::Used).await?;
    // the first user of the ticket is not affected
    let frame = data_frame(&StreamId::from_random([9; 16]), 0, b"still here");
    first.send_binary(frame.clone()).await?;
    ensure!(fixture.witness.executor.receive().await? == frame);
    Ok(())
}

#[tokio::test]
async fn expired_ticket_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let reply = fixture.relay.connect(ENVIRONMENT, key(9)).await?;
    let claims = fixture.claims(ticket(reply.url.expose())?, Purpose::Orchestrator)?;
    let end = claims.expires_at_unix_secs.context("an orchestrator's ticket ends")?;
    ensure!(end <= now()? + limits::ORCHESTRATOR_TICKET_TTL.as_secs(), "it lives too long");

    let expired = Claims { expires_at_unix_secs: Some(now()?), ..claims };
    let expired = Ticket::issue(&expired, &fixture.relay.signing_key()?)?;
    fixture
        .refused_ticket(expired.expose(), Operation::OrchestratorTicket, TicketFault::Expired)
        .await?;
    // the same ticket was good a moment ago, and only its time was changed
    Websocket::open(reply.url.expose()).await.map(drop)
}

#[tokio::test]
async fn forged_ticket_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let stranger = TestRelay::start().await?.signing_key()?;
    let executors = fixture.relay.register(ELSEWHERE).await?;
    let genuine = fixture.claims(ticket(executors.url.expose())?, Purpose::Executor)?;
    // the same claims, signed with another key
    let forged = Ticket::issue(&genuine, &stranger)?;
    fixture
        .refused_ticket(forged.expose(), Operation::UnknownTicket, TicketFault::BadSignature)
        .await?;
    // other claims under the genuine signature
    let changed = Claims { environment: "elsewherE".parse()?, ..genuine };
    let changed = Ticket::issue(&changed, &stranger)?;
    let signature = ticket(executors.url.expose())?;
    // 64 bytes of signature are the last 85 1/3 characters
    let cut = |text: &str| text.len() - 85;
    let spliced =
        format!("{}{}", &changed.expose()[..cut(changed.expose())], &signature[cut(signature)..]);
    fixture.refused_ticket(&spliced, Operation::UnknownTicket, TicketFault::BadSignature).await?;
    let rubbish = "A".repeat(TICKET_MAX_BYTES + 1);
    for text in ["rubbish", "%00", "a.b.c", &rubbish] {
        fixture.refused_ticket(text, Operation::UnknownTicket, TicketFault::Malformed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn ticket_of_another_registry_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let other = TestRelay::start().await?;
    let executors = other.register(ENVIRONMENT).await?;
    let _executor = Websocket::open(executors.url.expose()).await?;
    let orchestrators = other.connect(ENVIRONMENT, key(9)).await?;
    for url in [&executors.url, &orchestrators.url] {
        let foreign = ticket(url.expose())?;
        fixture
            .refused_ticket(foreign, Operation::UnknownTicket, TicketFault::BadSignature)
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn key_authorization_is_not_a_ticket() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let reply = fixture.relay.connect(ENVIRONMENT, key(9)).await?;
    let authorization = reply.harness_key_authorization.expose();
    fixture
        .refused_ticket(authorization, Operation::OrchestratorTicket, TicketFault::WrongPurpose)
        .await
}

#[tokio::test]
async fn ticket_of_revoked_token_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let admin = fixture.relay.token(Role::Admin, "*").await?;
    let executors = fixture.relay.register(ELSEWHERE).await?;
    let orchestrators = fixture.relay.connect(ENVIRONMENT, key(9)).await?;
    for token in [fixture.relay.executor_token(), fixture.relay.orchestrator_token()] {
        let id = token_id(token)?;
        let path = format!("/v1/tokens/{id}");
        let revoke = fixture.relay.request(Method::DELETE, &path).bearer_auth(admin.expose());
        ensure!(revoke.send().await?.status() == StatusCode::NO_CONTENT);
    }
    for (url, operation) in [
        (&executors.url, Operation::ExecutorTicket),
        (&orchestrators.url, Operation::OrchestratorTicket),
    ] {
        fixture.refused_ticket(ticket(url.expose())?, operation, TicketFault::Revoked).await?;
    }
    Ok(())
}

#[tokio::test]
async fn missing_ticket_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    fixture.refused_ticket("", Operation::UnknownTicket, TicketFault::Malformed).await
}

#[tokio::test]
async fn plain_request_does_not_consume_ticket() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let reply = fixture.relay.connect(ENVIRONMENT, key(9)).await?;
    let path = format!("/v1/rendezvous?ticket={}", ticket(reply.url.expose())?);
    let plain = async |relay: &TestRelay| refusal(relay.request(Method::GET, &path)).await;
    let (status, body) = fixture.watch(&[Counter::NotAnUpgrade], plain).await?;
    ensure!(status == StatusCode::BAD_REQUEST, "{status}");
    ensure!(body.error.code == ErrorCode::InvalidRequest, "{body:?}");
    Websocket::open(reply.url.expose()).await.map(drop)
}

// ---- websockets ------------------------------------------------------------

#[tokio::test]
async fn text_message_closes_the_websocket() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for socket in [fixture.orchestrator().await?, fixture.relay.executor(ELSEWHERE).await?] {
        let closed =
            fixture.closed(socket, &[ended(End::Text)], vec![Message::text("{\"id\":1}")]).await?;
        ensure!(closed == close(1003, "binary_messages_only"), "{closed:?}");
    }
    Ok(())
}

/// Frames that cannot be routed, and the reason.
fn unroutable() -> [(&'static str, Bytes); 6] {
    [
        ("empty", Bytes::new()),
        ("not protobuf", Bytes::from_static(b"\xff\xff\xff")),
        ("version 2", Bytes::from_static(b"\x08\x02\x12\x01s\x3a\x00")),
        ("no stream id", Bytes::from_static(b"\x08\x01\x3a\x00")),
        ("a blank stream id", Bytes::from_static(b"\x08\x01\x12\x01 \x3a\x00")),
        ("no body", Bytes::from_static(b"\x08\x01\x12\x01s")),
    ]
}

#[tokio::test]
async fn malformed_orchestrator_frame_closes_its_websocket() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for (what, bytes) in unroutable() {
        let socket = fixture.orchestrator().await?;
        let counters = [Counter::Dropped(Dropped::Malformed), ended(End::Malformed)];
        let closed = fixture.closed(socket, &counters, vec![Message::Binary(bytes)]).await?;
        ensure!(closed == close(1002, "malformed_frame"), "{what}: {closed:?}");
    }
    Ok(())
}

/// An executor's websocket carries the streams of others, so it stays open. The
/// witness's own executor is the one that misbehaves.
#[tokio::test]
async fn malformed_executor_frame_is_dropped() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    for (what, bytes) in unroutable() {
        fixture.witness.exchange().await?;
        let before = fixture.relay.counters();
        fixture.witness.executor.send_binary(bytes).await?;
        fixture.witness.exchange().await.context(what)?;
        fixture.relay.counted(&before, &[Counter::Dropped(Dropped::Malformed)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn frame_for_unknown_stream_is_dropped() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let before = fixture.relay.counters();
    let frame = data_frame(&StreamId::from_random([1; 16]), 0, b"unknown");
    fixture.witness.executor.send_binary(frame).await?;
    fixture.witness.exchange().await?;
    fixture.relay.counted(&before, &[Counter::Dropped(Dropped::UnknownStream)]).await
}

#[tokio::test]
async fn foreign_stream_id_is_refused() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let mut intruder = fixture.orchestrator().await?;
    let stream = fixture.witness.stream().clone();
    let in_use =
        [Counter::Dropped(Dropped::ForeignStream), Counter::Reset(ResetReason::StreamInUse)];
    for body in [
        Body::Resume { next_seq: 0 },
        Body::Handshake { message: Bytes::from_static(b"x"), profile: String::new() },
        Body::Ack,
    ] {
        let frame = Frame::bare(stream.clone(), body).encode();
        let answer = fixture
            .watch(&in_use, async |_| {
                intruder.send_binary(frame).await?;
                intruder.receive().await
            })
            .await?;
        let reason = ResetReason::StreamInUse.as_str().to_owned();
        let reset = Frame::bare(stream.clone(), Body::Reset { reason });
        ensure!(Frame::decode(answer)? == reset, "another answer");
    }
    // a reset is never answered by a reset, and ends nothing either
    let reset = Frame::bare(stream, Body::Reset { reason: "finished".to_owned() }).encode();
    let counters = [Counter::Dropped(Dropped::ForeignStream)];
    fixture.watch(&counters, async |_| intruder.send_binary(reset).await).await?;
    // the intruder's own streams still work
    let own = data_frame(&StreamId::from_random([9; 16]), 0, b"own");
    intruder.send_binary(own.clone()).await?;
    ensure!(fixture.witness.executor.receive().await? == own);
    Ok(())
}

#[tokio::test]
async fn message_above_limit_closes_the_websocket() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let frame = data_frame(&StreamId::from_random([9; 16]), 0, &vec![1; TOO_BIG_BYTES]);
    // the same bytes as fragments, each of which is below the limit
    let first = frame.slice(..TOO_BIG_BYTES / 2);
    let second = frame.slice(TOO_BIG_BYTES / 2..);
    let fragments = vec![
        Message::Frame(RawFrame::message(first, OpCode::Data(Data::Binary), false)),
        Message::Frame(RawFrame::message(second, OpCode::Data(Data::Continue), true)),
    ];
    for messages in [vec![Message::Binary(frame)], fragments] {
        for socket in [fixture.orchestrator().await?, fixture.relay.executor(ELSEWHERE).await?] {
            let closed = fixture.closed(socket, &[ended(End::TooBig)], messages.clone()).await?;
            ensure!(closed == close(1009, "message_too_big"), "{closed:?}");
        }
    }
    Ok(())
}

/// A message of exactly the limit is allowed.
#[tokio::test]
async fn largest_message_is_forwarded() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let mut orchestrator = fixture.orchestrator().await?;
    let stream = StreamId::from_random([9; 16]);
    let overhead = data_frame(&stream, 0, &vec![1; limits::MESSAGE_MAX_BYTES / 2]).len()
        - limits::MESSAGE_MAX_BYTES / 2;
    let frame = data_frame(&stream, 0, &vec![1; limits::MESSAGE_MAX_BYTES - overhead]);
    ensure!(frame.len() == limits::MESSAGE_MAX_BYTES, "{} bytes", frame.len());
    orchestrator.send_binary(frame.clone()).await?;
    ensure!(fixture.witness.executor.receive().await? == frame);
    fixture.witness.executor.send_binary(frame.clone()).await?;
    ensure!(orchestrator.receive().await? == frame);
    Ok(())
}

#[tokio::test]
async fn invalid_websocket_frame_ends_the_connection() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let reserved = RawFrame::message(Bytes::new(), OpCode::Data(Data::Reserved(3)), true);
    let socket = fixture.orchestrator().await?;
    let mut socket = socket;
    fixture
        .watch(&[ended(End::BrokenProtocol)], async |_| {
            socket.send(Message::Frame(reserved)).await?;
            ensure!(socket.receive().await.is_err(), "a frame came back");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn superseded_executor_is_closed() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let old = fixture.relay.register(ELSEWHERE).await?;
    let mut first = Websocket::open(old.url.expose()).await?;

    let new = fixture.relay.register(ELSEWHERE).await?;
    let counters =
        [Counter::Registry(Operation::ExecutorTicket, Outcome::Ok), ended(End::Superseded)];
    let (mut second, closed) = fixture
        .watch(&counters, async |_| {
            let second = Websocket::open(new.url.expose()).await?;
            Ok((second, first.closed().await?))
        })
        .await?;
    ensure!(closed == close(4001, "superseded"), "{closed:?}");

    let stale = ticket(old.url.expose())?;
    fixture.refused_ticket(stale, Operation::ExecutorTicket, TicketFault::Superseded).await?;
    // the new executor has the environment
    let mut orchestrator = fixture.relay.orchestrator(ELSEWHERE, key(9)).await?;
    let frame = data_frame(&StreamId::from_random([9; 16]), 0, b"to the new one");
    orchestrator.send_binary(frame.clone()).await?;
    ensure!(second.receive().await? == frame);
    Ok(())
}
