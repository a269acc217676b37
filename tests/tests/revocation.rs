//! A revocation closes live websockets, on any path to revoke and with any peer;
//! other websockets are not affected.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use futures_util::stream::{StreamExt as _, TryStreamExt as _, iter};
use rendez_proto::ids::StreamId;
use rendez_proto::limits::PONG_TIMEOUT;
use rendez_proto::registry::admin::{CreateToken, Role};
use rendez_proto::registry::error::ErrorCode;
use rendez_registry::model::Subject;
use rendez_registry::{Options, Registry};
use rendez_tests::poll::wait_until;
use rendez_tests::relay::{
    TestRelay, Websocket, Witness, answer, data_frame, key, refusal, register_request, token_id,
};
use reqwest::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::timeout;

/// Longest wait for a close. It should take less than 5 s, but the machine may be
/// busy.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The subject of a token.
fn subject(token: &str) -> Result<Subject> {
    Ok(token_id(token)?.parse()?)
}

/// Opens the relay's state directory, as another process on the machine does.
async fn from_outside(relay: &TestRelay) -> Result<Registry> {
    Ok(Registry::open(relay.state(), Options::default()).await?)
}

/// Connects an executor with its own token.
async fn executor(relay: &TestRelay, environment: &str, token: &str) -> Result<Websocket> {
    Websocket::open(relay.register_with(environment, token).await?.url.expose()).await
}

#[tokio::test]
async fn revoked_token_closes_only_its_websockets() -> Result<()> {
    let relay = TestRelay::start().await?;
    let mut witness = Witness::start(&relay, "dev").await?;
    let theirs = relay.token(Role::Executor, "*").await?;
    let mut executor = executor(&relay, "other", theirs.expose()).await?;

    let admin = relay.token(Role::Admin, "*").await?;
    let path = format!("/v1/tokens/{}", subject(theirs.expose())?);
    let revoked = relay.request(reqwest::Method::DELETE, &path).bearer_auth(admin.expose());
    ensure!(revoked.send().await?.status() == StatusCode::NO_CONTENT);
    let closed = executor.closed_within(TIMEOUT).await?;
    assert_eq!(closed, (4002, "token_revoked".to_owned()));
    witness.exchange().await?;

    let again = relay.call("other", "register").bearer_auth(theirs.expose());
    let (status, body) = refusal(again.json(&register_request())).await?;
    assert_eq!((status, body.error.code), (StatusCode::UNAUTHORIZED, ErrorCode::Unauthorized));
    ensure!(body.error.message.contains("revoked"), "{}", body.error.message);

    // an orchestrator's token, by another process
    let outside = from_outside(&relay).await?;
    outside.tokens().revoke(None, &subject(relay.orchestrator_token())?).await?;
    let closed = witness.orchestrator.closed_within(TIMEOUT).await?;
    assert_eq!(closed, (4002, "token_revoked".to_owned()));
    Ok(())
}

#[tokio::test]
async fn revoked_environment_refuses_old_credentials() -> Result<()> {
    let relay = TestRelay::start().await?;
    let mut witness = Witness::start(&relay, "dev").await?;
    let mut executor = relay.executor("gone").await?;
    let mut orchestrator = relay.orchestrator("gone", key(2)).await?;
    let outside = from_outside(&relay).await?;

    ensure!(outside.environments().revoke(None, &"gone".parse()?).await?);
    for end in [&mut executor, &mut orchestrator] {
        let closed = end.closed_within(TIMEOUT).await?;
        assert_eq!(closed, (4004, "registration_ended".to_owned()));
    }
    let again = relay.call("gone", "register").bearer_auth(relay.executor_token());
    let (status, body) = refusal(again.json(&register_request())).await?;
    assert_eq!((status, body.error.code), (StatusCode::FORBIDDEN, ErrorCode::Forbidden));
    ensure!(body.error.message.contains("environment was revoked"), "{}", body.error.message);
    witness.exchange().await?;

    let new = relay.token(Role::Executor, "gone").await?;
    relay.register_with("gone", new.expose()).await?;
    relay.register("elsewhere").await.context("the old token is valid for other environments")?;
    Ok(())
}

#[tokio::test]
async fn ended_registration_can_be_renewed() -> Result<()> {
    let relay = TestRelay::start().await?;
    let reply = relay.register("dev").await?;
    let mut executor = Websocket::open(reply.url.expose()).await?;
    let admin = relay.token(Role::Admin, "*").await?;
    let end = || {
        let path = "/v1/environments/dev/registration";
        relay.request(reqwest::Method::DELETE, path).bearer_auth(admin.expose())
    };
    ensure!(end().send().await?.status() == StatusCode::NO_CONTENT);
    let closed = executor.closed_within(TIMEOUT).await?;
    assert_eq!(closed, (4004, "registration_ended".to_owned()));
    assert_eq!(refusal(end()).await?.0, StatusCode::NOT_FOUND);
    // its ticket is refused, its token is not
    let (status, _) = relay.refused_upgrade(reply.url.expose()).await?;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    relay.executor("dev").await?;
    Ok(())
}

#[tokio::test]
async fn expired_token_closes_its_websockets() -> Result<()> {
    let relay = TestRelay::start().await?;
    let new = CreateToken { expires_in_secs: Some(3), ..CreateToken::new(Role::Executor) };
    let token = relay.registry().tokens().create(None, &new).await?.token;
    let mut executor = executor(&relay, "dev", token.expose()).await?;
    let closed = executor.closed_within(TIMEOUT).await?;
    assert_eq!(closed, (4003, "token_expired".to_owned()));
    Ok(())
}

#[tokio::test]
async fn revocation_drops_peer_that_does_not_read() -> Result<()> {
    let relay = TestRelay::start().await?;
    let token = relay.token(Role::Executor, "*").await?;
    let _stalled = executor(&relay, "dev", token.expose()).await?;
    let mut orchestrator = relay.orchestrator("dev", key(2)).await?;
    // until every buffer is full
    let stream = StreamId::from_random([1; 16]);
    let record = vec![0; 60 * 1024];
    let full = async {
        for seq in 0.. {
            orchestrator.send_binary(data_frame(&stream, seq, &record)).await?;
        }
        anyhow::Ok(())
    };
    let _ = timeout(Duration::from_secs(2), full).await;

    relay.registry().tokens().revoke(None, &subject(token.expose())?).await?;
    // well before the keep-alive timeout
    let dropped = || relay.connected().0 == 0;
    wait_until(PONG_TIMEOUT / 2, "the executor is dropped", dropped).await
}

/// The figure is printed: `cargo test --test revocation thousand -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_closes_a_thousand_websockets() -> Result<()> {
    const SOCKETS: usize = 1000;
    // two descriptors each, because both ends are in this process
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files })?;
    let relay = TestRelay::start_with_connections(2 * SOCKETS).await?;
    let mut witness = Witness::start(&relay, "witness").await?;
    let token = relay.token(Role::Executor, "*").await?;
    let names: Vec<String> = (0..SOCKETS).map(|n| format!("box-{n}")).collect();
    let opening: Vec<_> = names.iter().map(|name| executor(&relay, name, token.expose())).collect();
    let mut sockets: Vec<Websocket> = iter(opening).buffer_unordered(16).try_collect().await?;
    assert_eq!(relay.connected().0, SOCKETS + 1);

    let admin = relay.token(Role::Admin, "*").await?;
    let path = format!("/v1/tokens/{}", subject(token.expose())?);
    let start = Instant::now();
    let revoke = relay.request(reqwest::Method::DELETE, &path).bearer_auth(admin.expose());
    ensure!(revoke.send().await?.status().is_success());
    let closed =
        try_join_all(sockets.iter_mut().map(|socket| socket.closed_within(TIMEOUT))).await?;
    let took = start.elapsed();
    println!("{SOCKETS} websockets were closed {took:.2?} after the revocation was asked for");
    ensure!(closed.iter().all(|(code, _)| *code == 4002));
    witness.exchange().await?;
    let _: serde_json::Value =
        answer(relay.request(reqwest::Method::GET, "/v1/tokens").bearer_auth(admin.expose()))
            .await?;
    Ok(())
}
