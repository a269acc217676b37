//! A relay in this process, and raw endpoints that exchange bytes with it.
//!
//! - Raw endpoints have made-up keys. A relay never looks into keys, so they suffice
//!   for everything but a handshake.
//! - [`Counters`] hold everything that a relay counts, so that a test can require
//!   that exactly one counter went up.
//! - A [`Witness`] is a pair of endpoints that a test must not disturb: it fails on
//!   every frame that is lost, changed or foreign.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ed25519_dalek::{SigningKey, VerifyingKey};
use futures_util::{SinkExt as _, StreamExt as _};
use rendez_program::signals::Shutdown;
use rendez_proto::frame::{Body, Frame, ResetReason};
use rendez_proto::ids::{Seq, StreamId};
use rendez_proto::keys::PublicKey;
use rendez_proto::profile::Profile;
use rendez_proto::registry::admin::{CreateToken, Role, TokenText};
use rendez_proto::registry::error::ErrorBody;
use rendez_proto::registry::{ConnectReply, ConnectRequest, RegisterReply, RegisterRequest};
use rendez_registry::Registry;
use rendez_registry::signer::SIGNING_KEY_FILE;
use rendez_registry::stats::{Operation, Outcome};
use rendez_relay::connections::{
    ConnectionCounts, ConnectionLimit, ConnectionTable, End, StrangerClosed,
};
use rendez_relay::{Config, Quotas, Relay};
use rendez_relay_core::Dropped;
use rendez_transport::tls;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::poll::poll;

/// Longest wait for anything that should happen at once.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(10);
/// More connections than any test opens.
const CONNECTIONS_MAX: usize = 1000;

/// A relay on a free port with a throw-away state directory. Dropping it stops
/// it.
pub struct TestRelay {
    base: String,
    http: reqwest::Client,
    registry: Registry,
    connections: Arc<ConnectionTable>,
    limit: ConnectionLimit,
    executor_token: TokenText,
    orchestrator_token: TokenText,
    stop: Shutdown,
    stopped: CancellationToken,
    _running: DropGuard,
    state: TempDir,
}

impl TestRelay {
    /// Starts a relay that accepts connections when this returns.
    pub async fn start() -> Result<Self> {
        Self::start_with_connections(CONNECTIONS_MAX).await
    }

    /// The same, for at most this many connections at once.
    pub async fn start_with_connections(connections_max: usize) -> Result<Self> {
        Self::start_with(|config| config.connections_max = connections_max).await
    }

    /// The same, with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> Result<Self> {
        let state = tempfile::tempdir()?;
        let mut config = Config {
            listen: ([127, 0, 0, 1], 0).into(),
            state: state.path().to_owned(),
            connect_wait: Duration::ZERO,
            connections_max: CONNECTIONS_MAX,
            ..Config::default()
        };
        change(&mut config);
        let relay = Relay::bind(config).await?;
        let base = format!("http://{}", relay.local_addr());
        let registry = relay.registry().clone();
        let (connections, limit) = (relay.connections().clone(), relay.connection_limit());
        let (stop, stopped) = (Shutdown::default(), CancellationToken::new());
        let (serve, done) = (relay.serve(stop.clone()), stopped.clone().drop_guard());
        tokio::spawn(async move {
            serve.await;
            drop(done);
        });
        Ok(Self {
            http: http_client(&base)?,
            base,
            executor_token: create_token(&registry, Role::Executor, "*").await?,
            orchestrator_token: create_token(&registry, Role::Orchestrator, "*").await?,
            registry,
            connections,
            limit,
            _running: stop.graceful.clone().drop_guard(),
            stop,
            stopped,
            state,
        })
    }

    /// Starts its shutdown, as SIGTERM does.
    pub fn stop(&self) {
        self.stop.graceful.cancel();
    }

    /// Ends it at once, as a second SIGTERM does.
    pub fn stop_now(&self) {
        self.stop.immediate.cancel();
    }

    /// Waits until it has stopped.
    pub async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// `http://127.0.0.1:PORT`.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// Its state directory.
    pub fn state(&self) -> &Path {
        self.state.path()
    }

    /// A token for executors of every environment.
    pub fn executor_token(&self) -> &str {
        self.executor_token.expose()
    }

    /// A token for orchestrators of every environment.
    pub fn orchestrator_token(&self) -> &str {
        self.orchestrator_token.expose()
    }

    /// A new token.
    pub async fn token(&self, role: Role, environments: &str) -> Result<TokenText> {
        create_token(&self.registry, role, environments).await
    }

    /// Its registry, without HTTP.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The key that verifies its tickets.
    pub fn verifying_key(&self) -> VerifyingKey {
        self.registry.verifying_key()
    }

    /// The key that signs its tickets, read from its state directory.
    pub fn signing_key(&self) -> Result<SigningKey> {
        let text = std::fs::read_to_string(self.state().join(SIGNING_KEY_FILE))?;
        let (_, seed) = text.trim_end().split_once(' ').context("a key file has two words")?;
        let seed = STANDARD.decode(seed)?;
        Ok(SigningKey::from_bytes(seed.as_slice().try_into()?))
    }

    // ---- HTTP ------------------------------------------------------------

    /// A request to a path of the relay.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A request for one of the registry's calls: `register`, `connect` or
    /// `validate`.
    pub fn call(&self, environment: &str, call: &str) -> RequestBuilder {
        self.request(Method::POST, &format!("/cloud/environment/{environment}/{call}"))
    }

    /// Registers an executor that offers the Codex profile.
    pub async fn register(&self, environment: &str) -> Result<RegisterReply> {
        self.register_with(environment, self.executor_token()).await
    }

    /// The same, with a token of the caller's.
    pub async fn register_with(&self, environment: &str, token: &str) -> Result<RegisterReply> {
        let request = self.call(environment, "register").bearer_auth(token);
        answer(request.json(&register_request())).await
    }

    /// Requests a connection to an executor, in the Codex profile.
    pub async fn connect(&self, environment: &str, key: PublicKey) -> Result<ConnectReply> {
        self.connect_with(environment, key, self.orchestrator_token()).await
    }

    /// The same, with a token of the caller's.
    pub async fn connect_with(
        &self,
        environment: &str,
        key: PublicKey,
        token: &str,
    ) -> Result<ConnectReply> {
        let request = self.call(environment, "connect").bearer_auth(token);
        answer(request.json(&ConnectRequest { harness_public_key: key, rendez: None })).await
    }

    /// Requests a websocket upgrade that must be refused, and returns the refusal.
    pub async fn refused_upgrade(&self, url: &str) -> Result<(StatusCode, ErrorBody)> {
        let url = url.replacen("ws://", "http://", 1);
        let request = self
            .http
            .get(url)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        refusal(request).await
    }

    // ---- websockets ------------------------------------------------------

    /// Registers a raw executor and opens its websocket.
    pub async fn executor(&self, environment: &str) -> Result<Websocket> {
        Websocket::open(self.register(environment).await?.url.expose()).await
    }

    /// Opens a raw orchestrator's websocket.
    pub async fn orchestrator(&self, environment: &str, key: PublicKey) -> Result<Websocket> {
        Websocket::open(self.connect(environment, key).await?.url.expose()).await
    }

    // ---- counters --------------------------------------------------------

    /// The current value of every counter.
    pub fn counters(&self) -> Counters {
        let registry = self.registry.stats();
        let hubs = self.connections.hub_stats();
        let registry = registry.nonzero().map(|(op, out, n)| (Counter::Registry(op, out), n));
        let all =
            registry
                .chain(End::ALL.map(|end| {
                    (Counter::Ended(end), self.connections.connection_stats().ended(end))
                }))
                .chain(Dropped::ALL.map(|why| (Counter::Dropped(why), hubs.dropped(why))))
                .chain(ResetReason::ALL.map(|why| (Counter::Reset(why), hubs.resets(why))))
                .chain([
                    (Counter::NotAnUpgrade, self.connections.connection_stats().not_an_upgrade()),
                    (Counter::HeadTimeout, self.connections.connection_stats().head_timeouts()),
                    (Counter::AnswerTimeout, self.connections.connection_stats().answer_timeouts()),
                    (Counter::BadHead, self.connections.connection_stats().bad_heads()),
                ]);
        Counters(all.filter(|(_, n)| *n > 0).collect())
    }

    /// Waits until each of `wanted` has gone up since `before`. Each must have gone
    /// up by one, and no other.
    pub async fn counted(&self, before: &Counters, wanted: &[Counter]) -> Result<()> {
        let wanted: HashMap<Counter, u64> = wanted.iter().map(|counter| (*counter, 1)).collect();
        // Some go up just after the peer got its answer.
        let since = poll(SHORT_TIMEOUT, async || {
            let since = self.counters().since(before);
            let all = wanted.keys().all(|counter| since.0.contains_key(counter));
            Ok(if all { Ok(since) } else { Err(format!("{:?}, not {wanted:?}", since.0)) })
        });
        let since = since.await?;
        ensure!(since.0 == wanted, "counted {:?} instead of {wanted:?}", since.0);
        Ok(())
    }

    /// The number of open connections, by kind.
    pub fn connection_counts(&self) -> ConnectionCounts {
        self.connections.counts()
    }

    /// Replaces all quotas while the relay runs.
    pub fn set_quotas(&self, quotas: Quotas) {
        self.connections.quotas().set_quotas(quotas);
    }

    /// Bytes of frames that wait in the relay.
    pub fn memory_used(&self) -> usize {
        self.connections.quotas().node().usage().memory_bytes
    }

    /// How often the rate limiter paused reading from a websocket.
    pub fn held_back(&self) -> u64 {
        self.connections.hub_stats().throttled
    }

    /// Strangers that were closed for this reason.
    pub fn strangers_closed(&self, why: StrangerClosed) -> u64 {
        self.limit.strangers_closed(why)
    }

    /// Calls that wait for an offline executor.
    pub fn waiting(&self) -> usize {
        self.connections.waiting()
    }

    /// Connected executors and orchestrators.
    pub fn connected(&self) -> (usize, usize) {
        let counts = self.connections.counts();
        (counts.executors, counts.orchestrators)
    }
}

/// A counter of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// A call of the registry, or a ticket.
    Registry(Operation, Outcome),
    /// A request to the rendezvous endpoint that is not an upgrade.
    NotAnUpgrade,
    /// A request head that timed out.
    HeadTimeout,
    /// A client that did not read its response.
    AnswerTimeout,
    /// An invalid request head.
    BadHead,
    /// The end of a websocket.
    Ended(End),
    /// A frame that was not forwarded.
    Dropped(Dropped),
    /// A reset that the relay sent.
    Reset(ResetReason),
}

/// The counters of a relay at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters(HashMap<Counter, u64>);

impl Counters {
    /// The value of a counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(&counter).copied().unwrap_or_default()
    }

    /// The increase of each counter since `before`.
    fn since(&self, before: &Counters) -> Counters {
        let by = |(counter, n): (&Counter, &u64)| {
            (*counter, n - before.0.get(counter).copied().unwrap_or_default())
        };
        Counters(self.0.iter().map(by).filter(|(_, n)| *n > 0).collect())
    }
}

async fn create_token(registry: &Registry, role: Role, environments: &str) -> Result<TokenText> {
    let new = CreateToken { environments: environments.to_owned(), ..CreateToken::new(role) };
    Ok(registry.tokens().create(None, &new).await?.token)
}

/// The id in a token's text.
pub fn token_id(text: &str) -> Result<String> {
    let parsed = rendez_registry::bearer_token::BearerToken::parse(text)?;
    Ok(parsed.id().as_str().to_owned())
}

/// A client with one connection per request, so that none stays open and idle.
pub fn http_client(base: &str) -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(rustls::ClientConfig::clone(&*tls::for_url(base)?))
        .no_proxy()
        .timeout(2 * SHORT_TIMEOUT)
        .pool_max_idle_per_host(0)
        .build()?)
}

/// Sends a request that must succeed, and parses its response.
pub async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T> {
    let answer = request.send().await?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(serde_json::from_slice(&body)?)
}

/// Sends a request that must be refused, and parses the error.
pub async fn refusal(request: RequestBuilder) -> Result<(StatusCode, ErrorBody)> {
    let answer = request.send().await?;
    let (status, body) = (answer.status(), answer.bytes().await?);
    ensure!(!status.is_success() && !status.is_informational(), "{status} is not a refusal");
    let error = serde_json::from_slice(&body)
        .with_context(|| format!("{status}: {}", String::from_utf8_lossy(&body)))?;
    Ok((status, error))
}

/// A made-up hybrid key.
pub fn key(n: u8) -> PublicKey {
    PublicKey::hybrid([n; 32], Box::new([n; 1184]))
}

/// The body that a stock executor sends to `register`.
pub fn register_request() -> RegisterRequest {
    RegisterRequest {
        security_profile: Profile::NoiseHybridIkV1,
        executor_public_key: key(1),
        rendez: None,
    }
}

/// The ticket in a websocket URL.
pub fn ticket(url: &str) -> Result<&str> {
    Ok(url.split_once("ticket=").context("a websocket URL has a ticket")?.1)
}

/// An encoded data frame.
pub fn data_frame(stream: &StreamId, seq: u32, record: &[u8]) -> Bytes {
    let record = Bytes::copy_from_slice(record);
    Frame::bare(stream.clone(), Body::Data { seq: Seq(seq), record }).encode()
}

/// A websocket without an endpoint. It answers pings while it is read.
pub struct Websocket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Websocket {
    /// Opens a websocket at a `ws://` URL.
    pub async fn open(url: &str) -> Result<Self> {
        let (socket, _) = timeout(SHORT_TIMEOUT, connect_async(url)).await.context("opening")??;
        Ok(Self(socket))
    }

    /// Sends one message.
    pub async fn send(&mut self, message: Message) -> Result<()> {
        timeout(SHORT_TIMEOUT, self.0.send(message)).await.context("sending")?.map_err(Into::into)
    }

    /// Buffers one binary message. Waits for room without a deadline.
    pub async fn feed_binary(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        Ok(self.0.feed(Message::Binary(bytes.into())).await?)
    }

    /// Sends the buffered messages, without a deadline.
    pub async fn flush(&mut self) -> Result<()> {
        Ok(self.0.flush().await?)
    }

    /// Sends one binary message, without a deadline.
    pub async fn send_without_timeout(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.feed_binary(bytes).await?;
        self.flush().await
    }

    /// The next binary message, without a deadline.
    pub async fn receive_without_timeout(&mut self) -> Result<Bytes> {
        loop {
            match self.0.next().await.transpose()? {
                Some(Message::Binary(bytes)) => return Ok(bytes),
                Some(Message::Ping(_) | Message::Pong(_)) => {}
                other => bail!("{other:?} instead of a frame"),
            }
        }
    }

    /// Sends one binary message.
    pub async fn send_binary(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        self.send(Message::Binary(bytes.into())).await
    }

    /// The next message, which must be binary.
    pub async fn receive(&mut self) -> Result<Bytes> {
        match self.next().await? {
            Some(Message::Binary(bytes)) => Ok(bytes),
            other => bail!("{other:?} instead of a frame"),
        }
    }

    /// Waits for a close frame, which must be the next message, and answers it.
    /// Returns its code and reason.
    pub async fn closed(&mut self) -> Result<(u16, String)> {
        self.closed_within(SHORT_TIMEOUT).await
    }

    /// The same, with another deadline.
    pub async fn closed_within(&mut self, limit: Duration) -> Result<(u16, String)> {
        match self.next_within(limit).await? {
            Some(Message::Close(Some(frame))) => {
                // The library answers the close frame during the next read, which
                // then fails or ends.
                let _ = self.next().await;
                Ok((frame.code.into(), frame.reason.as_str().to_owned()))
            }
            other => bail!("{other:?} instead of a close frame"),
        }
    }

    async fn next(&mut self) -> Result<Option<Message>> {
        self.next_within(SHORT_TIMEOUT).await
    }

    async fn next_within(&mut self, limit: Duration) -> Result<Option<Message>> {
        let next = async {
            loop {
                match self.0.next().await.transpose()? {
                    Some(Message::Ping(_) | Message::Pong(_)) => {}
                    other => return Ok(other),
                }
            }
        };
        timeout(limit, next).await.context("nothing was received in time")?
    }
}

/// An executor and an orchestrator that a test must not disturb.
pub struct Witness {
    /// The executor's end.
    pub executor: Websocket,
    /// The orchestrator's end.
    pub orchestrator: Websocket,
    stream: StreamId,
    sent: u32,
}

impl Witness {
    /// The orchestrator's key, which owns the stream.
    pub fn key() -> PublicKey {
        key(200)
    }

    /// Connects both ends and a stream between them.
    pub async fn start(relay: &TestRelay, environment: &str) -> Result<Self> {
        let executor = relay.executor(environment).await?;
        let orchestrator = relay.orchestrator(environment, Self::key()).await?;
        let stream = StreamId::from_random([7; 16]);
        let mut witness = Self { executor, orchestrator, stream, sent: 0 };
        witness.exchange().await?;
        Ok(witness)
    }

    /// The id of its stream.
    pub fn stream(&self) -> &StreamId {
        &self.stream
    }

    /// Sends a frame each way. Each must arrive unchanged, as the next message.
    pub async fn exchange(&mut self) -> Result<()> {
        self.sent += 1;
        let there = data_frame(&self.stream, self.sent, b"there");
        self.orchestrator.send_binary(there.clone()).await?;
        let received = self.executor.receive().await.context("the witness's executor")?;
        ensure!(received == there, "the witness's executor received {received:?}");
        let back = data_frame(&self.stream, self.sent, b"and back");
        self.executor.send_binary(back.clone()).await?;
        let received = self.orchestrator.receive().await.context("the witness's orchestrator")?;
        ensure!(received == back, "the witness's orchestrator received {received:?}");
        Ok(())
    }
}
