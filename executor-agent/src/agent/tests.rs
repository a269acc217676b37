//! An agent against a scripted registry and, in place of a relay, an
//! orchestrator's endpoint at the other end of its websocket.

use futures_util::SinkExt as _;
use rendez_endpoint::{Connect, IdentitySeed};
use rendez_proto::frame::ResetReason;
use rendez_proto::ids::StreamId;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::session::{Initialize, InitializeReply, Initialized};
use rendez_proto::rpc::{Message, Method, RequestId, notification, process, request};
use rendez_rpc::OpenError;
use rendez_transport::{Ended, pump};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite as ws;

use super::phase::DIALS_PER_REGISTRATION;
use super::*;
use crate::testing::{config, process_id, wait_until_gone};
use rendez_registry_client::testing::FakeRegistry;

/// A running agent and its states.
struct Running {
    registry: FakeRegistry,
    listener: TcpListener,
    states: mpsc::UnboundedReceiver<AgentState>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
    key: PublicKey,
    _state: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        let mut agent = Self::start_without_registration().await;
        agent.grant("reg-1");
        while !matches!(agent.states.recv().await, Some(AgentState::Registered { .. })) {}
        agent
    }

    /// Starts an agent whose registry is not available.
    async fn start_without_registration() -> Self {
        let registry = FakeRegistry::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = tempfile::tempdir().unwrap();
        let agent = Agent::new(config(&registry.url(), state.path())).unwrap();
        let key = agent.public_key().clone();
        let cancel = CancellationToken::new();
        let (sender, states) = mpsc::unbounded_channel();
        registry.answer("validate", 200, r#"{"valid":true}"#);
        let running = agent.run(cancel.clone(), move |state| sender.send(state).unwrap());
        let task = tokio::spawn(running);
        Self { registry, listener, states, cancel, task, key, _state: state }
    }

    /// Makes the registry grant this registration, with the URL of our listener.
    fn grant(&self, registration: &str) {
        let body = format!(
            r#"{{"environment_id":"dev","url":"ws://{}/?ticket=x","executor_registration_id":
            "{registration}","security_profile":"noise_hybrid_ik_v1"}}"#,
            self.listener.local_addr().unwrap()
        );
        self.registry.answer("register", 200, &body);
    }

    async fn next(&mut self) -> AgentState {
        self.states.recv().await.expect("the agent ended")
    }

    async fn registered(&mut self, expected: &str) {
        assert_eq!(self.next().await, AgentState::Registering);
        let registration = expected.parse().unwrap();
        assert_eq!(self.next().await, AgentState::Registered { registration });
    }

    /// Accepts the agent's websocket and connects it to `peer`.
    async fn accept(&mut self, peer: &Peer) -> JoinHandle<Ended> {
        self.accept_after(peer, []).await
    }

    /// Does the same after the relay has sent `messages`.
    async fn accept_after(
        &mut self,
        peer: &Peer,
        messages: impl IntoIterator<Item = ws::Message>,
    ) -> JoinHandle<Ended> {
        let (tcp, _) = self.listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(tcp).await.unwrap();
        for message in messages {
            socket.send(message).await.unwrap();
        }
        let mut driver = peer.endpoint.attach(peer.registration.parse().unwrap());
        let task = tokio::spawn(async move { pump(socket, &mut driver).await });
        assert_eq!(self.next().await, AgentState::Connected);
        task
    }

    async fn stop(self) -> Result<(), AgentError> {
        self.cancel.cancel();
        self.task.await.unwrap()
    }
}

/// The endpoint of an orchestrator.
struct Peer {
    endpoint: Endpoint,
    registration: &'static str,
    executor: PublicKey,
}

impl Peer {
    fn of(agent: &Running, registration: &'static str) -> Self {
        let seed = IdentitySeed::from_bytes([9; IdentitySeed::BYTES]);
        let core = Config {
            profiles: Profile::ALL.to_vec(),
            ..Config::orchestrator(Identity::from_seed(&seed), "dev".parse().unwrap())
        };
        let endpoint = Endpoint::new(Mux::new(core, [1; 32]));
        Self { endpoint, registration, executor: agent.key.clone() }
    }

    async fn open(&self, profile: Profile) -> Result<Channel, OpenError> {
        let connect = Connect {
            stream: StreamId::from_random([profile as u8; 16]),
            profile,
            registration: self.registration.parse().unwrap(),
            peer: self.executor.for_suite(profile.suite()).unwrap(),
            authorization: bytes::Bytes::from_static(b"auth-1"),
        };
        self.endpoint.connect(connect).await
    }
}

async fn call<M: Method>(channel: &Channel, params: &M::Params) -> M::Reply {
    channel.send(request::<M>(&RequestId::Number(1), params).into()).await.unwrap();
    loop {
        let message = channel.recv().await.expect("the stream ended");
        if let Message::Response { outcome, .. } = Message::parse(&message).unwrap() {
            return outcome.unwrap().parse().unwrap();
        }
    }
}

async fn initialize(channel: &Channel) -> InitializeReply {
    let reply = call::<Initialize>(channel, &Initialize::default()).await;
    channel.send(notification(&Initialized {}).into()).await.unwrap();
    reply
}

fn sleeper() -> process::Start {
    let argv = ["/bin/sh", "-c", "echo $$; exec sleep 1000"].map(str::to_owned).to_vec();
    let cwd = rendez_proto::rpc::path::PathUri::from_path("/").unwrap();
    process::Start::new(process_id("p"), argv, cwd)
}

#[tokio::test]
async fn serves_every_offered_profile() {
    let mut agent = Running::start().await;
    let peer = Peer::of(&agent, "reg-1");
    let _socket = agent.accept(&peer).await;
    for profile in Profile::ALL {
        let channel = peer.open(profile).await.unwrap();
        let reply = initialize(&channel).await;
        assert_eq!(reply.environment_info.unwrap().cwd.unwrap().path(), "/tmp", "{profile}");
    }
    let calls: Vec<_> = agent.registry.requests().into_iter().map(|call| call.path).collect();
    assert_eq!(calls.iter().filter(|path| path.ends_with("/validate")).count(), 3);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn invalid_orchestrator_key_is_refused() {
    let mut agent = Running::start().await;
    let peer = Peer::of(&agent, "reg-1");
    let _socket = agent.accept(&peer).await;
    agent.registry.answer("validate", 200, r#"{"valid":false}"#);
    assert!(peer.open(Profile::RendezHybridIkV1).await.is_err());
    agent.registry.answer("validate", 401, "");
    let error = peer.open(Profile::NoiseHybridIkV1).await.err().unwrap();
    assert!(
        matches!(error, OpenError::Closed(rendez_endpoint::Closed::AuthenticationRejected)),
        "{error}"
    );
    agent.registry.answer("validate", 200, r#"{"valid":true}"#);
    peer.open(Profile::RendezIkV1).await.unwrap();
    agent.stop().await.unwrap();
}

/// Stock executors use the same reset reason.
#[tokio::test]
async fn invalid_message_resets_the_stream() {
    let mut agent = Running::start().await;
    let peer = Peer::of(&agent, "reg-1");
    let _socket = agent.accept(&peer).await;
    for (profile, nonsense) in [
        (Profile::NoiseHybridIkV1, "{nonsense"),
        (Profile::RendezHybridIkV1, "[]"),
        (Profile::RendezIkV1, "1"),
    ] {
        let channel = peer.open(profile).await.unwrap();
        initialize(&channel).await;
        channel.send(nonsense.into()).await.unwrap();
        while channel.recv().await.is_some() {}
        let why = rendez_endpoint::Closed::Reset(ResetReason::ProtocolError);
        assert_eq!(channel.closed().await, why, "{profile}");
    }
    // other streams are not affected
    let channel = peer.open(Profile::NoiseHybridIkV1).await.unwrap();
    initialize(&channel).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn stream_and_process_outlive_the_websocket() {
    let mut agent = Running::start().await;
    let peer = Peer::of(&agent, "reg-1");
    let socket = agent.accept(&peer).await;
    let channel = peer.open(Profile::RendezHybridIkV1).await.unwrap();
    initialize(&channel).await;
    call::<process::Start>(&channel, &sleeper()).await;
    socket.abort();
    assert!(matches!(agent.next().await, AgentState::Waiting { .. }));
    // it reconnects with the same registration
    let _socket = agent.accept(&peer).await;
    let terminate = process::Terminate { process_id: process_id("p") };
    assert!(call::<process::Terminate>(&channel, &terminate).await.running);
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn text_message_from_relay_is_ignored() {
    let mut agent = Running::start().await;
    let peer = Peer::of(&agent, "reg-1");
    let socket = agent.accept_after(&peer, ["{\"id\":1}", ""].map(ws::Message::text)).await;
    let channel = peer.open(Profile::NoiseHybridIkV1).await.unwrap();
    initialize(&channel).await;
    call::<process::Start>(&channel, &sleeper()).await;
    assert_eq!(agent.states.try_recv(), Err(mpsc::error::TryRecvError::Empty));
    let terminate = process::Terminate { process_id: process_id("p") };
    assert!(call::<process::Terminate>(&channel, &terminate).await.running);
    assert!(!socket.is_finished());
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn refused_ticket_causes_new_registration() {
    let mut agent = Running::start().await;
    agent.grant("reg-2");
    let (mut tcp, _) = agent.listener.accept().await.unwrap();
    let refusal = b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut tcp, refusal).await.unwrap();
    let AgentState::Waiting { error, .. } = agent.next().await else { panic!() };
    assert_eq!(error, "the relay refused the ticket (HTTP 403)");
    agent.registered("reg-2").await;
    let peer = Peer::of(&agent, "reg-2");
    let _socket = agent.accept(&peer).await;
    initialize(&peer.open(Profile::NoiseHybridIkV1).await.unwrap()).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn repeated_failed_dials_cause_new_registration() {
    let mut agent = Running::start().await;
    for _ in 0..DIALS_PER_REGISTRATION {
        drop(agent.listener.accept().await.unwrap());
        assert!(matches!(agent.next().await, AgentState::Waiting { .. }));
    }
    agent.registered("reg-1").await;
    agent.stop().await.unwrap();
}

/// Relay and registry failed together: the registration may still be valid.
#[tokio::test]
async fn unavailable_registry_keeps_the_registration() {
    let mut agent = Running::start().await;
    agent.registry.answer("register", 503, "");
    for _ in 0..DIALS_PER_REGISTRATION {
        drop(agent.listener.accept().await.unwrap());
        assert!(matches!(agent.next().await, AgentState::Waiting { .. }));
    }
    assert_eq!(agent.next().await, AgentState::Registering);
    assert!(matches!(agent.next().await, AgentState::Waiting { .. }));
    let peer = Peer::of(&agent, "reg-1");
    let _socket = agent.accept(&peer).await;
    initialize(&peer.open(Profile::NoiseHybridIkV1).await.unwrap()).await;
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn only_a_refused_token_ends_the_agent() {
    let mut agent = Running::start_without_registration().await;
    for _ in 0..2 {
        assert_eq!(agent.next().await, AgentState::Registering);
        let AgentState::Waiting { error, .. } = agent.next().await else { panic!() };
        assert!(error.contains("cannot serve the request now: HTTP 503"), "{error}");
    }
    let body = r#"{"error":{"code":"unauthorized","message":"revoked"}}"#;
    agent.registry.answer("register", 401, body);
    let error = agent.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("refused the token: revoked"), "{error}");
}

#[tokio::test]
async fn agent_stops_during_back_off() {
    let mut agent = Running::start_without_registration().await;
    while !matches!(agent.next().await, AgentState::Waiting { .. }) {}
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn stopping_kills_processes_and_finishes_streams() {
    let mut agent = Running::start().await;
    let peer = Peer::of(&agent, "reg-1");
    let socket = agent.accept(&peer).await;
    let channel = peer.open(Profile::RendezHybridIkV1).await.unwrap();
    initialize(&channel).await;
    channel
        .send(request::<process::Start>(&RequestId::Number(2), &sleeper()).into())
        .await
        .unwrap();
    let pid = loop {
        let message = channel.recv().await.unwrap();
        if let Message::Notification { params, .. } = Message::parse(&message).unwrap() {
            let output: process::Output = params.parse().unwrap();
            break String::from_utf8(output.chunk.to_vec()).unwrap().trim().to_owned();
        }
    };
    agent.stop().await.unwrap();
    assert!(matches!(socket.await.unwrap(), Ended::ByPeer(Some(1000))));
    while channel.recv().await.is_some() {}
    assert_eq!(channel.closed().await, rendez_endpoint::Closed::Finished);
    wait_until_gone(&pid).await;
}
