//! Bad input at every door of a relay. Each test demands three things: the
//! documented status or close code, that exactly the counters it names went up
//! by one, and that a witness pair which was connected all the time noticed
//! nothing.

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
    Counter, SOON, TestRelay, Websocket, Witness, data_frame, key, refusal, register_request,
    ticket, token_id,
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
/// Where executors misbehave.
const ELSEWHERE: &str = "elsewhere";
/// More than [`limits::MESSAGE_MAX_BYTES`].
const TOO_BIG_BYTES: usize = 300 * 1024;

/// A relay with a witness.
struct Scene {
    relay: TestRelay,
    witness: Witness,
}

impl Scene {
    async fn start() -> Result<Self> {
        let relay = TestRelay::start().await?;
        let witness = Witness::start(&relay, ENVIRONMENT).await?;
        Ok(Self { relay, witness })
    }

    /// Runs `input`, which may cost exactly one of each of `counters` and must
    /// not reach the witness.
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
        // again: the exchange has given what was late the time to show
        self.relay.counted(&before, counters).await?;
        Ok(output)
    }

    /// A request to the registry that must be refused, and be counted so.
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

    /// A ticket that must be refused, and be counted so.
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

    /// A message upon which the relay must close the sender's websocket.
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

    /// What the relay says in a ticket.
    fn claims(&self, ticket: &str, purpose: Purpose) -> Result<Claims> {
        Ok(Ticket::verify(ticket, &self.relay.verifying_key(), purpose, now()?)?)
    }
}

/// The table of WIRE.md, sections 1.1 to 1.3, and of the API.
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
        other => panic!("no test asks for {other}"),
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
async fn a_wrong_token() -> Result<()> {
    let mut scene = Scene::start().await?;
    let other = TestRelay::start().await?;
    let stranger = other.executor_token();
    let mut wrong_secret = scene.relay.executor_token().to_owned();
    let last = if wrong_secret.ends_with("AAAA") { "BBBB" } else { "AAAA" };
    wrong_secret.replace_range(wrong_secret.len() - 4.., last);
    for token in ["nonsense", "sk-live-1", stranger, &wrong_secret] {
        for (operation, call, body, _) in good_calls(&other)? {
            let request =
                |relay: &TestRelay| relay.call(ENVIRONMENT, call).bearer_auth(token).json(&body);
            scene.refused(operation, ErrorCode::Unauthorized, request).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn no_token() -> Result<()> {
    let mut scene = Scene::start().await?;
    for (operation, call, body, _) in good_calls(&TestRelay::start().await?)? {
        let request = |relay: &TestRelay| relay.call(ENVIRONMENT, call).json(&body);
        scene.refused(operation, ErrorCode::Unauthorized, request).await?;
        let basic = |relay: &TestRelay| {
            relay.call(ENVIRONMENT, call).basic_auth("a", Some("b")).json(&body)
        };
        scene.refused(operation, ErrorCode::Unauthorized, basic).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_of_the_wrong_role() -> Result<()> {
    let mut scene = Scene::start().await?;
    let admin = scene.relay.token(Role::Admin, "*").await?;
    let executor = scene.relay.executor_token().to_owned();
    let orchestrator = scene.relay.orchestrator_token().to_owned();
    for (operation, call, body, right) in good_calls(&TestRelay::start().await?)? {
        let right_role = right.split('_').nth(1);
        for token in [admin.expose(), &executor, &orchestrator] {
            if token.split('_').nth(1) == right_role {
                continue;
            }
            let request =
                |relay: &TestRelay| relay.call(ENVIRONMENT, call).bearer_auth(token).json(&body);
            scene.refused(operation, ErrorCode::Forbidden, request).await?;
        }
    }
    let list = |relay: &TestRelay| relay.request(Method::GET, "/v1/tokens").bearer_auth(&executor);
    scene.refused(Operation::Tokens, ErrorCode::Forbidden, list).await
}

#[tokio::test]
async fn a_token_that_does_not_cover_the_environment() -> Result<()> {
    let mut scene = Scene::start().await?;
    for (operation, call, body, right) in good_calls(&TestRelay::start().await?)? {
        let executors = right.starts_with("rdz_e");
        let role = if executors { Role::Executor } else { Role::Orchestrator };
        let token = scene.relay.token(role, "other-*").await?;
        let request = |relay: &TestRelay| {
            relay.call(ENVIRONMENT, call).bearer_auth(token.expose()).json(&body)
        };
        scene.refused(operation, ErrorCode::Forbidden, request).await?;
    }
    Ok(())
}

// ---- bodies and paths ------------------------------------------------------

#[tokio::test]
async fn an_unknown_environment() -> Result<()> {
    let mut scene = Scene::start().await?;
    let offline =
        Counter::Registry(Operation::Connect, Outcome::Error(ErrorCode::EnvironmentOffline));
    let connect = async |relay: &TestRelay| {
        let request = relay.call("nowhere", "connect").bearer_auth(relay.orchestrator_token());
        refusal(request.json(&connect_body())).await
    };
    let (status, body) = scene.watch(&[offline], connect).await?;
    ensure!(status == StatusCode::CONFLICT, "{status}");
    ensure!(body.error.code == ErrorCode::EnvironmentOffline, "{body:?}");
    ensure!(body.rendez.map(|absence| absence.state) == Some(AbsenceState::Unknown), "{body:?}");

    let validate = |relay: &TestRelay| {
        relay.call("nowhere", "validate").bearer_auth(relay.executor_token()).json(&validate_body())
    };
    scene.refused(Operation::Validate, ErrorCode::RegistrationSuperseded, validate).await?;
    // what is no environment id at all
    let register =
        |relay: &TestRelay| relay.call("no%2Fid", "register").bearer_auth(relay.executor_token());
    scene.refused(Operation::Register, ErrorCode::InvalidRequest, register).await
}

#[tokio::test]
async fn a_body_that_is_not_json() -> Result<()> {
    let mut scene = Scene::start().await?;
    let calls = TestRelay::start().await?;
    for (operation, call, _, right) in good_calls(&calls)? {
        let executors = right.starts_with("rdz_e");
        for body in ["{", "no json", "\u{0}", "[1]", "\"text\"", "{\"security_profile\":1}"] {
            let request = |relay: &TestRelay| {
                let token =
                    if executors { relay.executor_token() } else { relay.orchestrator_token() };
                relay.call(ENVIRONMENT, call).bearer_auth(token).body(body)
            };
            scene.refused(operation, ErrorCode::InvalidRequest, request).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn keys_of_the_wrong_length_or_suite() -> Result<()> {
    let mut scene = Scene::start().await?;
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
        scene.refused(Operation::Register, ErrorCode::InvalidRequest, request).await?;
        let connect = json!({ "harness_public_key": key });
        let request = |relay: &TestRelay| {
            relay
                .call(ENVIRONMENT, "connect")
                .bearer_auth(relay.orchestrator_token())
                .json(&connect)
        };
        scene.refused(Operation::Connect, ErrorCode::InvalidRequest, request).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_profile_that_nobody_speaks() -> Result<()> {
    let mut scene = Scene::start().await?;
    let body = json!({ "security_profile": "direct_jsonrpc_v1", "executor_public_key": key(9) });
    let request = |relay: &TestRelay| {
        relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token()).json(&body)
    };
    scene.refused(Operation::Register, ErrorCode::UnsupportedProfile, request).await
}

#[tokio::test]
async fn a_legacy_registration() -> Result<()> {
    let mut scene = Scene::start().await?;
    for body in [None, Some(""), Some("{}"), Some("{\"name\":\"old\"}")] {
        let request = |relay: &TestRelay| {
            let request = relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token());
            match body {
                None => request,
                Some(body) => request.body(body),
            }
        };
        scene.refused(Operation::Register, ErrorCode::LegacyRegistration, request).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_oversized_body() -> Result<()> {
    let mut scene = Scene::start().await?;
    for length in [limits::REGISTRY_BODY_MAX_BYTES + 1, REGISTRY_BODY_DRAIN_BYTES] {
        let body = vec![b' '; length];
        let request = |relay: &TestRelay| {
            let request = relay.call(ENVIRONMENT, "register").bearer_auth(relay.executor_token());
            request.body(body.clone())
        };
        scene.refused(Operation::Register, ErrorCode::BodyTooLarge, request).await?;
    }
    // a stranger's body is not even read
    let request = |relay: &TestRelay| {
        relay.call(ENVIRONMENT, "register").body(vec![b' '; limits::REGISTRY_BODY_MAX_BYTES + 1])
    };
    scene.refused(Operation::Register, ErrorCode::Unauthorized, request).await
}

// ---- slow and broken HTTP --------------------------------------------------

/// Sends `request` and waits until the relay closes; what it said.
async fn raw_http(relay: &TestRelay, request: &[u8]) -> Result<String> {
    let mut tcp = TcpStream::connect(relay.address()).await?;
    tcp.write_all(request).await?;
    let mut answer = Vec::new();
    // The relay's patience is ten seconds, and then it needs a moment.
    timeout(2 * SOON, tcp.read_to_end(&mut answer)).await.context("the relay waits on")??;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn a_slow_request_head() -> Result<()> {
    let mut scene = Scene::start().await?;
    let half = async |relay: &TestRelay| raw_http(relay, b"GET /livez HTTP/1.1\r\nhost: x").await;
    let answer = scene.watch(&[Counter::HeadTimeout], half).await?;
    ensure!(answer.is_empty(), "half a request was answered: {answer}");
    Ok(())
}

#[tokio::test]
async fn a_slow_request_body() -> Result<()> {
    let mut scene = Scene::start().await?;
    let late = Counter::Registry(Operation::Register, Outcome::Error(ErrorCode::RequestTimeout));
    let half = async |relay: &TestRelay| {
        let token = relay.executor_token();
        let request = format!(
            "POST /cloud/environment/dev/register HTTP/1.1\r\nhost: x\r\n\
             authorization: Bearer {token}\r\ncontent-length: 10\r\n\r\n{{"
        );
        raw_http(relay, request.as_bytes()).await
    };
    let answer = scene.watch(&[late], half).await?;
    ensure!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    ensure!(answer.contains("request_timeout"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn what_is_not_http() -> Result<()> {
    let mut scene = Scene::start().await?;
    let too_large = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(64 * 1024));
    for (request, status) in
        [("\u{16}\u{3}\u{1} no TLS here\r\n\r\n", "400"), (too_large.as_str(), "431")]
    {
        let send = async |relay: &TestRelay| raw_http(relay, request.as_bytes()).await;
        let answer = scene.watch(&[Counter::BadHead], send).await?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    Ok(())
}

#[tokio::test]
async fn a_path_that_does_not_exist() -> Result<()> {
    let mut scene = Scene::start().await?;
    let request = |relay: &TestRelay| relay.request(Method::GET, "/wp-login.php");
    scene.refused(Operation::UnknownRoute, ErrorCode::NotFound, request).await
}

#[tokio::test]
async fn more_connections_than_there_are_places() -> Result<()> {
    let relay = TestRelay::start_for(3).await?;
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
    ensure!(timeout(SOON, fourth).await??.status() == StatusCode::OK);
    witness.exchange().await
}

// ---- tickets ---------------------------------------------------------------

#[tokio::test]
async fn a_used_ticket() -> Result<()> {
    let mut scene = Scene::start().await?;
    let reply = scene.relay.connect(ENVIRONMENT, key(9)).await?;
    let mut first = Websocket::open(reply.url.expose()).await?;
    let ticket = ticket(reply.url.expose())?;
    scene.refused_ticket(ticket, Operation::OrchestratorTicket, TicketFault::Used).await?;
    // whoever used it first has lost nothing
    let frame = data_frame(&StreamId::from_random([9; 16]), 0, b"still here");
    first.send_binary(frame.clone()).await?;
    ensure!(scene.witness.executor.receive().await? == frame);
    Ok(())
}

#[tokio::test]
async fn an_expired_ticket() -> Result<()> {
    let mut scene = Scene::start().await?;
    let reply = scene.relay.connect(ENVIRONMENT, key(9)).await?;
    let claims = scene.claims(ticket(reply.url.expose())?, Purpose::Orchestrator)?;
    let end = claims.expires_at_unix_secs.context("an orchestrator's ticket ends")?;
    ensure!(end <= now()? + limits::ORCHESTRATOR_TICKET_TTL.as_secs(), "it lives too long");

    let expired = Claims { expires_at_unix_secs: Some(now()?), ..claims };
    let expired = Ticket::issue(&expired, &scene.relay.signing_key()?)?;
    scene
        .refused_ticket(expired.expose(), Operation::OrchestratorTicket, TicketFault::Expired)
        .await?;
    // the same ticket was good a moment ago, and only its time was changed
    Websocket::open(reply.url.expose()).await.map(drop)
}

#[tokio::test]
async fn a_forged_ticket() -> Result<()> {
    let mut scene = Scene::start().await?;
    let stranger = TestRelay::start().await?.signing_key()?;
    let executors = scene.relay.register(ELSEWHERE).await?;
    let genuine = scene.claims(ticket(executors.url.expose())?, Purpose::Executor)?;
    // the same claims, signed by somebody else
    let forged = Ticket::issue(&genuine, &stranger)?;
    scene
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
    scene.refused_ticket(&spliced, Operation::UnknownTicket, TicketFault::BadSignature).await?;
    let rubbish = "A".repeat(TICKET_MAX_BYTES + 1);
    for text in ["rubbish", "%00", "a.b.c", &rubbish] {
        scene.refused_ticket(text, Operation::UnknownTicket, TicketFault::Malformed).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_ticket_of_another_registry() -> Result<()> {
    let mut scene = Scene::start().await?;
    let other = TestRelay::start().await?;
    let executors = other.register(ENVIRONMENT).await?;
    let _executor = Websocket::open(executors.url.expose()).await?;
    let orchestrators = other.connect(ENVIRONMENT, key(9)).await?;
    for url in [&executors.url, &orchestrators.url] {
        let foreign = ticket(url.expose())?;
        scene.refused_ticket(foreign, Operation::UnknownTicket, TicketFault::BadSignature).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_key_authorization_as_ticket() -> Result<()> {
    let mut scene = Scene::start().await?;
    let reply = scene.relay.connect(ENVIRONMENT, key(9)).await?;
    let authorization = reply.harness_key_authorization.expose();
    scene
        .refused_ticket(authorization, Operation::OrchestratorTicket, TicketFault::WrongPurpose)
        .await
}

#[tokio::test]
async fn a_ticket_whose_token_was_revoked() -> Result<()> {
    let mut scene = Scene::start().await?;
    let admin = scene.relay.token(Role::Admin, "*").await?;
    let executors = scene.relay.register(ELSEWHERE).await?;
    let orchestrators = scene.relay.connect(ENVIRONMENT, key(9)).await?;
    for token in [scene.relay.executor_token(), scene.relay.orchestrator_token()] {
        let id = token_id(token)?;
        let path = format!("/v1/tokens/{id}");
        let revoke = scene.relay.request(Method::DELETE, &path).bearer_auth(admin.expose());
        ensure!(revoke.send().await?.status() == StatusCode::NO_CONTENT);
    }
    for (url, operation) in [
        (&executors.url, Operation::ExecutorTicket),
        (&orchestrators.url, Operation::OrchestratorTicket),
    ] {
        scene.refused_ticket(ticket(url.expose())?, operation, TicketFault::Revoked).await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_ticket() -> Result<()> {
    let mut scene = Scene::start().await?;
    scene.refused_ticket("", Operation::UnknownTicket, TicketFault::Malformed).await
}

#[tokio::test]
async fn a_plain_request_does_not_use_up_a_ticket() -> Result<()> {
    let mut scene = Scene::start().await?;
    let reply = scene.relay.connect(ENVIRONMENT, key(9)).await?;
    let path = format!("/v1/rendezvous?ticket={}", ticket(reply.url.expose())?);
    let plain = async |relay: &TestRelay| refusal(relay.request(Method::GET, &path)).await;
    let (status, body) = scene.watch(&[Counter::NotAnUpgrade], plain).await?;
    ensure!(status == StatusCode::BAD_REQUEST, "{status}");
    ensure!(body.error.code == ErrorCode::InvalidRequest, "{body:?}");
    Websocket::open(reply.url.expose()).await.map(drop)
}

// ---- websockets ------------------------------------------------------------

#[tokio::test]
async fn text_frames() -> Result<()> {
    let mut scene = Scene::start().await?;
    for socket in [scene.orchestrator().await?, scene.relay.executor(ELSEWHERE).await?] {
        let closed =
            scene.closed(socket, &[ended(End::Text)], vec![Message::text("{\"id\":1}")]).await?;
        ensure!(closed == close(1003, "binary_messages_only"), "{closed:?}");
    }
    Ok(())
}

/// What cannot be routed, and why.
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
async fn frames_of_an_orchestrator_that_do_not_parse() -> Result<()> {
    let mut scene = Scene::start().await?;
    for (what, bytes) in unroutable() {
        let socket = scene.orchestrator().await?;
        let counters = [Counter::Dropped(Dropped::Malformed), ended(End::Malformed)];
        let closed = scene.closed(socket, &counters, vec![Message::Binary(bytes)]).await?;
        ensure!(closed == close(1002, "malformed_frame"), "{what}: {closed:?}");
    }
    Ok(())
}

/// An executor's socket carries the streams of others: it stays. The witness's
/// own executor is the one that misbehaves.
#[tokio::test]
async fn frames_of_an_executor_that_do_not_parse() -> Result<()> {
    let mut scene = Scene::start().await?;
    for (what, bytes) in unroutable() {
        scene.witness.exchange().await?;
        let before = scene.relay.counters();
        scene.witness.executor.send_binary(bytes).await?;
        scene.witness.exchange().await.context(what)?;
        scene.relay.counted(&before, &[Counter::Dropped(Dropped::Malformed)]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_frame_of_an_executor_for_a_stream_that_nobody_has() -> Result<()> {
    let mut scene = Scene::start().await?;
    let before = scene.relay.counters();
    let frame = data_frame(&StreamId::from_random([1; 16]), 0, b"for nobody");
    scene.witness.executor.send_binary(frame).await?;
    scene.witness.exchange().await?;
    scene.relay.counted(&before, &[Counter::Dropped(Dropped::UnknownStream)]).await
}

#[tokio::test]
async fn a_stream_id_of_another_orchestrator() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut intruder = scene.orchestrator().await?;
    let stream = scene.witness.stream().clone();
    let in_use =
        [Counter::Dropped(Dropped::ForeignStream), Counter::Reset(ResetReason::StreamInUse)];
    for body in [
        Body::Resume { next_seq: 0 },
        Body::Handshake { message: Bytes::from_static(b"x"), profile: String::new() },
        Body::Ack,
    ] {
        let frame = Frame::bare(stream.clone(), body).encode();
        let answer = scene
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
    scene.watch(&counters, async |_| intruder.send_binary(reset).await).await?;
    // and the intruder may still do what is its own business
    let own = data_frame(&StreamId::from_random([9; 16]), 0, b"own");
    intruder.send_binary(own.clone()).await?;
    ensure!(scene.witness.executor.receive().await? == own);
    Ok(())
}

#[tokio::test]
async fn messages_above_the_limit() -> Result<()> {
    let mut scene = Scene::start().await?;
    let frame = data_frame(&StreamId::from_random([9; 16]), 0, &vec![1; TOO_BIG_BYTES]);
    // the same bytes as fragments, each of which is below the limit
    let first = frame.slice(..TOO_BIG_BYTES / 2);
    let second = frame.slice(TOO_BIG_BYTES / 2..);
    let fragments = vec![
        Message::Frame(RawFrame::message(first, OpCode::Data(Data::Binary), false)),
        Message::Frame(RawFrame::message(second, OpCode::Data(Data::Continue), true)),
    ];
    for messages in [vec![Message::Binary(frame)], fragments] {
        for socket in [scene.orchestrator().await?, scene.relay.executor(ELSEWHERE).await?] {
            let closed = scene.closed(socket, &[ended(End::TooBig)], messages.clone()).await?;
            ensure!(closed == close(1009, "message_too_big"), "{closed:?}");
        }
    }
    Ok(())
}

/// The limit itself is no offence.
#[tokio::test]
async fn the_largest_message_passes() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut orchestrator = scene.orchestrator().await?;
    let stream = StreamId::from_random([9; 16]);
    let overhead = data_frame(&stream, 0, &vec![1; limits::MESSAGE_MAX_BYTES / 2]).len()
        - limits::MESSAGE_MAX_BYTES / 2;
    let frame = data_frame(&stream, 0, &vec![1; limits::MESSAGE_MAX_BYTES - overhead]);
    ensure!(frame.len() == limits::MESSAGE_MAX_BYTES, "{} bytes", frame.len());
    orchestrator.send_binary(frame.clone()).await?;
    ensure!(scene.witness.executor.receive().await? == frame);
    scene.witness.executor.send_binary(frame.clone()).await?;
    ensure!(orchestrator.receive().await? == frame);
    Ok(())
}

#[tokio::test]
async fn bytes_that_break_rfc_6455() -> Result<()> {
    let mut scene = Scene::start().await?;
    let reserved = RawFrame::message(Bytes::new(), OpCode::Data(Data::Reserved(3)), true);
    let socket = scene.orchestrator().await?;
    let mut socket = socket;
    scene
        .watch(&[ended(End::BrokenProtocol)], async |_| {
            socket.send(Message::Frame(reserved)).await?;
            ensure!(socket.receive().await.is_err(), "a frame came back");
            Ok(())
        })
        .await
}

#[tokio::test]
async fn an_executor_that_was_superseded() -> Result<()> {
    let mut scene = Scene::start().await?;
    let old = scene.relay.register(ELSEWHERE).await?;
    let mut first = Websocket::open(old.url.expose()).await?;

    let new = scene.relay.register(ELSEWHERE).await?;
    let counters =
        [Counter::Registry(Operation::ExecutorTicket, Outcome::Ok), ended(End::Superseded)];
    let (mut second, closed) = scene
        .watch(&counters, async |_| {
            let second = Websocket::open(new.url.expose()).await?;
            Ok((second, first.closed().await?))
        })
        .await?;
    ensure!(closed == close(4001, "superseded"), "{closed:?}");

    let stale = ticket(old.url.expose())?;
    scene.refused_ticket(stale, Operation::ExecutorTicket, TicketFault::Superseded).await?;
    // the new one has the environment
    let mut orchestrator = scene.relay.orchestrator(ELSEWHERE, key(9)).await?;
    let frame = data_frame(&StreamId::from_random([9; 16]), 0, b"to the new one");
    orchestrator.send_binary(frame.clone()).await?;
    ensure!(second.receive().await? == frame);
    Ok(())
}
