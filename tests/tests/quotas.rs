//! Quotas of single tokens and environments, set in the file while the relay runs,
//! and the audit of refusals.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use rendez_proto::audit::AuditKind;
use rendez_proto::frame::{Body, Frame};
use rendez_proto::ids::StreamId;
use rendez_proto::registry::admin::Role;
use rendez_proto::registry::error::ErrorBody;
use rendez_proto::registry::{ConnectReply, ConnectRequest, RegisterReply};
use rendez_relay::Quotas;
use rendez_relay_core::{Dropped, Quota};
use rendez_tests::poll::wait_until;
use rendez_tests::relay::{
    Counter, TestRelay, Websocket, answer, data_frame, http_client, key, register_request, token_id,
};
use rendez_tests::rendez::{OurRelay, TIMEOUT};
use reqwest::StatusCode;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Error;

/// A relay whose settings are in a file, and executors at `a` and `b`.
struct Fixture {
    relay: OurRelay,
    file: PathBuf,
    http: reqwest::Client,
    _directory: TempDir,
    _executors: Vec<Websocket>,
}

impl Fixture {
    async fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("relay.toml");
        fs::write(&file, "")?;
        let flag = file.to_str().context("a path in UTF-8")?;
        let relay = OurRelay::start_with(&["--config", flag]).await?;
        let http = http_client(relay.url())?;
        let mut fixture = Self { relay, file, http, _directory: directory, _executors: Vec::new() };
        let token = fixture.relay.token("executor").await?;
        for environment in ["a", "b"] {
            let request = fixture.post(environment, "register", &token).json(&register_request());
            let reply: RegisterReply = answer(request).await?;
            fixture._executors.push(Websocket::open(reply.url.expose()).await?);
        }
        Ok(fixture)
    }

    fn post(&self, environment: &str, call: &str, token: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/cloud/environment/{environment}/{call}", self.relay.url());
        self.http.post(url).bearer_auth(token)
    }

    /// Writes the file, reloads it, and waits until the relay has logged for each of
    /// `ids` that its quota changed from `old` to `new`.
    async fn set(&mut self, text: &str, ids: &[&str], old: &str, new: &str) -> Result<()> {
        fs::write(&self.file, text)?;
        let process = self.relay.process();
        process.signal(Signal::HUP)?;
        let value = |name: &str, value: &str| match value {
            "" => String::new(),
            value => format!(" {name}={value:?}"),
        };
        for id in ids {
            let wanted = format!("id={id:?}{}{}", value("old", old), value("new", new));
            let logged = |line: &str| {
                let line = line.trim_end();
                (line.contains("setting changed") && line.ends_with(&wanted)).then_some(())
            };
            process.stderr_line(TIMEOUT, logged).await.with_context(|| wanted.clone())?;
        }
        Ok(())
    }

    /// Opens an orchestrator's websocket, or returns the reason for the refusal.
    async fn open(&self, token: &str, environment: &str) -> Result<Result<Websocket, String>> {
        let body = ConnectRequest { harness_public_key: key(7), rendez: None };
        let reply: ConnectReply =
            answer(self.post(environment, "connect", token).json(&body)).await?;
        let error = match Websocket::open(reply.url.expose()).await {
            Ok(websocket) => return Ok(Ok(websocket)),
            Err(error) => error,
        };
        let Some(Error::Http(answer)) = error.downcast_ref() else { bail!(error) };
        ensure!(answer.status() == StatusCode::SERVICE_UNAVAILABLE, "{}", answer.status());
        let body = answer.body().as_deref().unwrap_or_default();
        Ok(Err(serde_json::from_slice::<ErrorBody>(body)?.error.message))
    }

    /// Opens a websocket that the quotas allow.
    async fn opened(&self, token: &str, environment: &str) -> Result<Websocket> {
        self.open(token, environment).await?.map_err(anyhow::Error::msg)
    }

    /// Opens a websocket that a quota refuses. Returns the reason.
    async fn full(&self, token: &str, environment: &str) -> Result<String> {
        match self.open(token, environment).await? {
            Ok(_) => bail!("the websocket was opened"),
            Err(why) => Ok(why),
        }
    }
}

#[tokio::test]
async fn token_quota_is_reloaded() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let (named, other) =
        (fixture.relay.token("orchestrator").await?, fixture.relay.token("orchestrator").await?);
    let id = token_id(&named)?;
    let first = fixture.opened(&named, "a").await?;

    let text = format!("[quota]\ntoken = \"streams=77\"\n[quota.tokens]\n{id} = \"connections=1\"");
    fixture.set(&text, &[&id], "", "connections=1").await?;
    let why = fixture.full(&named, "a").await?;
    ensure!(why.contains("the token's quota of connections"), "{why}");
    let others = [fixture.opened(&other, "a").await?, fixture.opened(&other, "b").await?];

    // an unchanged quota survives a reload
    fixture.set(&text.replace("streams=77", "streams=78"), &[], "", "").await?;
    let all = |line: &str| line.contains("new=\"streams=78\"").then_some(());
    fixture.relay.process().stderr_line(TIMEOUT, all).await?;
    fixture.full(&named, "b").await?;

    fixture.set("", &[&id], "connections=1", "").await?;
    let second = fixture.opened(&named, "b").await?;
    drop((first, second, others));
    Ok(())
}

#[tokio::test]
async fn environment_quota_is_reloaded() -> Result<()> {
    let mut fixture = Fixture::start().await?;
    let token = fixture.relay.token("orchestrator").await?;
    // the executor's own websocket counts
    fixture.set("[quota.environments]\na = \"connections=2\"", &["a"], "", "connections=2").await?;
    let first = fixture.opened(&token, "a").await?;
    let why = fixture.full(&token, "a").await?;
    ensure!(why.contains("the environment's quota of connections"), "{why}");
    let others = [fixture.opened(&token, "b").await?, fixture.opened(&token, "b").await?];

    let mut more = String::from("[quota.environments]\n");
    for id in ["a", "b"] {
        writeln!(more, "{id} = \"connections=3\"")?;
    }
    fixture.set(&more, &["a"], "connections=2", "connections=3").await?;
    let second = fixture.opened(&token, "a").await?;
    let why = fixture.full(&token, "b").await?;
    ensure!(why.contains("the environment's quota"), "{why}");

    // a file that cannot be used changes nothing
    fs::write(&fixture.file, "[quota.environments]\na = \"conections=9\"")?;
    fixture.relay.process().signal(Signal::HUP)?;
    let logged = |line: &str| {
        let named = line.contains("keeping the old ones") && line.contains("`connections`?");
        named.then_some(())
    };
    fixture.relay.process().stderr_line(TIMEOUT, logged).await?;
    fixture.full(&token, "b").await?;
    drop((first, second, others));
    Ok(())
}

/// However many requests are refused, the log gets a row at once and one per minute.
/// Their counts add up to all refusals.
#[tokio::test]
async fn refused_streams_and_handshakes_are_audited() -> Result<()> {
    const FRAMES: u64 = 500;
    let relay = TestRelay::start().await?;
    let _executor = relay.executor("a").await?;
    let began = Instant::now();
    let quotas = Quotas::default();
    let few = Quota { streams: 1, handshakes_per_minute: 1, ..quotas.token };
    let token = relay.token(Role::Orchestrator, "a").await?;
    let id = token_id(token.expose())?;
    relay.set_quotas(Quotas { tokens: [(id.clone(), few)].into(), ..quotas });

    let reply = relay.connect_with("a", key(7), token.expose()).await?;
    let mut greedy = Websocket::open(reply.url.expose()).await?;
    let stream = |n: u64| StreamId::from_random(u128::from(n).to_be_bytes());
    for n in 0..=FRAMES {
        greedy.feed_binary(data_frame(&stream(n), 0, b"x")).await?;
    }
    // the one handshake per minute, and a second one
    for _ in 0..2 {
        let message = Bytes::from_static(b"hello");
        let hello = Body::Handshake { message, profile: String::new() };
        greedy.feed_binary(Frame::bare(stream(0), hello).encode()).await?;
        let over = Body::Reset { reason: "x".to_owned() };
        greedy.feed_binary(Frame::bare(stream(0), over).encode()).await?;
    }
    greedy.flush().await?;
    let refused = || {
        let counters = relay.counters();
        [Dropped::Quota, Dropped::HandshakeRate].map(|why| counters.get(Counter::Dropped(why)))
    };
    wait_until(TIMEOUT, "all refusals are counted", || refused() == [FRAMES, 1]).await?;
    relay.stop();
    relay.stopped().await;

    let rows = relay.registry().audit().page(0).await?.rows;
    let rows_of = |what: &str| {
        let of = rows.iter().map(|row| &row.event).filter(|row| row.what.as_deref() == Some(what));
        of.collect::<Vec<_>>()
    };
    let streams = rows_of("streams of the token");
    ensure!(streams.iter().filter_map(|row| row.count).sum::<u64>() == FRAMES, "{streams:?}");
    let minutes = began.elapsed().as_secs() / 60;
    ensure!(streams.len() as u64 <= 2 + minutes, "{} rows", streams.len());
    let handshakes = rows_of("handshakes of the token");
    ensure!(handshakes.len() == 1, "{handshakes:?}");
    for row in streams.into_iter().chain(handshakes) {
        ensure!(row.kind == AuditKind::Quota && row.actor.as_deref() == Some(&id), "{row:?}");
        ensure!(row.environment.as_ref().is_some_and(|e| e.as_str() == "a"), "{row:?}");
    }
    Ok(())
}
