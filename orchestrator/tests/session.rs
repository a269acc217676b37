//! What becomes of a session while its streams come and go, at an executor of
//! the Codex profile that does what a test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rendez_endpoint::{Config, Identity, IdentitySeed, Mux};
use rendez_orchestrator::{Client, Command, Executor, LinkState, ProcessError};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::process::{Read, Start};
use rendez_proto::rpc::session::{EnvironmentStatus, Initialize};
use rendez_proto::rpc::{self, Message, Method};
use rendez_rpc::{CallError, Channel, Endpoint, Incoming, Messages as _};
use rendez_transport::{pump, socket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PROFILE: Profile = Profile::NoiseHybridIkV1;
const REGISTRATION: &str = "reg-1";
/// Longer than anything here takes.
const WITHIN: Duration = Duration::from_secs(60);

/// What is done about a request.
enum Act {
    Answer(Value),
    /// The stream ends.
    End,
}

/// By the number of the stream, from 0, and the name of the method.
type Script = fn(usize, &str) -> Act;

/// Registry and executor in one; each websocket has one stream.
struct Site {
    address: SocketAddr,
    streams: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Site {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::new(AtomicUsize::new(0));
        let count = streams.clone();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut first = [0];
                tcp.peek(&mut first).await.unwrap();
                if first == *b"P" {
                    tokio::spawn(grant(tcp, address));
                } else {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(serve(tcp, number, script));
                }
            }
        });
        Self { address, streams, task }
    }

    async fn connect(&self) -> Executor {
        let url = format!("http://{}", self.address);
        let client = Client::with_profiles(&url, "t0k".to_owned().into(), vec![PROFILE]).unwrap();
        client.connect(&environment()).await.unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn environment() -> EnvironmentId {
    "dev".parse().unwrap()
}

fn identity() -> Identity {
    Identity::from_seed(&IdentitySeed::from_bytes([7; IdentitySeed::BYTES]))
}

/// Answers `POST …/connect`.
async fn grant(mut tcp: TcpStream, address: SocketAddr) {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        assert_ne!(tcp.read_buf(&mut request).await.unwrap(), 0, "half a request");
    }
    let body = json!({
        "environment_id": "dev",
        "url": format!("ws://{address}/"),
        "security_profile": PROFILE.name(),
        "executor_registration_id": REGISTRATION,
        "executor_public_key": identity().public(),
        "harness_key_authorization": "let me in",
    })
    .to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close", body.len());
    tcp.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
}

/// One websocket with one stream.
async fn serve(tcp: TcpStream, number: usize, script: Script) {
    let config = Config::executor(identity(), environment(), vec![PROFILE]);
    let endpoint = Endpoint::new(Mux::new(config, [4; 32]));
    let websocket = tokio_tungstenite::accept_async_with_config(tcp, Some(socket::config()));
    let websocket = websocket.await.unwrap();
    let mut driver = endpoint.attach(REGISTRATION.parse().unwrap());
    tokio::spawn(async move {
        loop {
            match endpoint.incoming().await {
                Incoming::Authorization(request) => request.authorize(),
                Incoming::Opened(channel) => return answer(channel, number, script).await,
            }
        }
    });
    pump(websocket, &mut driver).await;
}

async fn answer(channel: Channel, number: usize, script: Script) {
    while let Some(bytes) = channel.recv().await {
        if let Message::Request { id, method, .. } = Message::parse(&bytes).unwrap() {
            match script(number, &method) {
                Act::Answer(reply) => {
                    let _ = channel.send(rpc::response(&id, Ok(&reply)).into()).await;
                }
                Act::End => return,
            }
        }
    }
}

fn willing(method: &str) -> Act {
    Act::Answer(match method {
        Initialize::NAME => json!({"sessionId": "s"}),
        Start::NAME => json!({"processId": "p", "sandboxType": "none"}),
        EnvironmentStatus::NAME => json!({"status": "ready"}),
        other => panic!("{other}"),
    })
}

/// Every state that the link takes from here on.
fn history(executor: &Executor) -> Arc<Mutex<Vec<LinkState>>> {
    let states = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut link) = (states.clone(), executor.link());
    tokio::spawn(async move {
        while link.changed().await.is_ok() {
            seen.lock().unwrap().push(*link.borrow_and_update());
        }
    });
    states
}

#[tokio::test]
async fn a_stream_that_ends_in_a_try_does_not_break_the_session_that_the_next_one_took_up() {
    let site = Site::start(|stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) | (1, Initialize::NAME) => Act::End,
        (_, method) => willing(method),
    })
    .await;
    let executor = site.connect().await;
    let states = history(&executor);
    assert!(matches!(executor.ping().await, Err(CallError::Interrupted)));
    timeout(WITHIN, executor.ping()).await.unwrap().unwrap();
    while states.lock().unwrap().last() != Some(&LinkState::Up) {
        tokio::task::yield_now().await;
    }
    assert_eq!(*states.lock().unwrap(), [LinkState::Resuming, LinkState::Up]);
    assert_eq!(site.streams.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_process_is_lost_if_what_it_did_meanwhile_cannot_be_understood() {
    let site = Site::start(|stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) => Act::End,
        (_, Read::NAME) => Act::Answer(json!("what?")),
        (_, method) => willing(method),
    })
    .await;
    let executor = site.connect().await;
    let mut process = executor.spawn(Command::new("true").current_dir("/")).await.unwrap();
    assert!(executor.ping().await.is_err());
    let next = timeout(WITHIN, process.next()).await.unwrap();
    assert!(matches!(next, Err(ProcessError::Lost)), "{next:?}");
    executor.ping().await.unwrap();
}
