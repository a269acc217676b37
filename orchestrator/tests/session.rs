//! Sessions and processes at an executor that does what a test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rendez_endpoint::{Config, Identity, IdentitySeed, Mux};
use rendez_orchestrator::{Client, Command, LinkState, ProcessError};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::process::{Read, Start, Write};
use rendez_proto::rpc::session::{EnvironmentStatus, Initialize};
use rendez_proto::rpc::{self, Json, Message, Method};
use rendez_rpc::{CallError, Channel, Endpoint, Incoming, Messages as _};
use rendez_transport::{pump, socket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A session outlives its streams.
const KEPT: Profile = Profile::NoiseHybridIkV1;
const REGISTRATION: &str = "reg-1";
/// Longer than anything here takes.
const WITHIN: Duration = Duration::from_secs(60);

/// What is done about a request.
enum Act {
    Answer(Value),
    /// It is kept, as one that has to wait.
    Keep,
    /// The stream ends.
    End,
}

/// By the number of the stream, from 0, and the name of the method.
type Script = fn(usize, &str) -> Act;

/// Requests without an answer.
type Kept = Arc<Mutex<Vec<Json>>>;

/// Registry and executor in one; each websocket has one stream.
struct Site {
    address: SocketAddr,
    profile: Profile,
    streams: Arc<AtomicUsize>,
    kept: Kept,
    task: JoinHandle<()>,
}

impl Site {
    async fn start(profile: Profile, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::new(AtomicUsize::new(0));
        let kept = Kept::default();
        let (count, keep) = (streams.clone(), kept.clone());
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut first = [0];
                tcp.peek(&mut first).await.unwrap();
                if first == *b"P" {
                    tokio::spawn(grant(tcp, address, profile));
                } else {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let executor = Executor { number, script, kept: keep.clone() };
                    tokio::spawn(executor.serve(tcp, profile));
                }
            }
        });
        Self { address, profile, streams, kept, task }
    }

    async fn connect(&self) -> rendez_orchestrator::Executor {
        let url = format!("http://{}", self.address);
        let client =
            Client::with_profiles(&url, "t0k".to_owned().into(), vec![self.profile]).unwrap();
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
async fn grant(mut tcp: TcpStream, address: SocketAddr, profile: Profile) {
    let mut request = Vec::new();
    while !request.ends_with(b"}") {
        assert_ne!(tcp.read_buf(&mut request).await.unwrap(), 0, "half a request");
    }
    let body = json!({
        "environment_id": "dev",
        "url": format!("ws://{address}/"),
        "security_profile": profile.name(),
        "executor_registration_id": REGISTRATION,
        "executor_public_key": identity().public(),
        "harness_key_authorization": "let me in",
    })
    .to_string();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close", body.len());
    tcp.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
}

/// One websocket with one stream.
struct Executor {
    number: usize,
    script: Script,
    kept: Kept,
}

impl Executor {
    async fn serve(self, tcp: TcpStream, profile: Profile) {
        let config = Config::executor(identity(), environment(), vec![profile]);
        let endpoint = Endpoint::new(Mux::new(config, [4; 32]));
        let websocket = tokio_tungstenite::accept_async_with_config(tcp, Some(socket::config()));
        let websocket = websocket.await.unwrap();
        let mut driver = endpoint.attach(REGISTRATION.parse().unwrap());
        tokio::spawn(async move {
            loop {
                match endpoint.incoming().await {
                    Incoming::Authorization(request) => request.authorize(),
                    Incoming::Opened(channel) => return self.answer(channel).await,
                }
            }
        });
        pump(websocket, &mut driver).await;
    }

    async fn answer(self, channel: Channel) {
        while let Some(bytes) = channel.recv().await {
            if let Message::Request { id, method, params } = Message::parse(&bytes).unwrap() {
                match (self.script)(self.number, &method) {
                    Act::Answer(reply) => {
                        let _ = channel.send(rpc::response(&id, Ok(&reply)).into()).await;
                    }
                    Act::Keep => self.kept.lock().unwrap().push(params),
                    Act::End => return,
                }
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
fn history(executor: &rendez_orchestrator::Executor) -> Arc<Mutex<Vec<LinkState>>> {
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
    let site = Site::start(KEPT, |stream, method| match (stream, method) {
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
    let site = Site::start(KEPT, |stream, method| match (stream, method) {
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

/// How many bytes each write has that is under way to a process that does not
/// read, at an executor that grants this.
async fn writes(profile: Profile, script: Script) -> Vec<usize> {
    let site = Site::start(profile, script).await;
    let executor = site.connect().await;
    let command = Command::new("cat").current_dir("/").stdin(true);
    let mut process = executor.spawn(command).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let writer =
        tokio::spawn(
            async move { stdin.write_all(&vec![0; 2 * limits::STDIN_WINDOW_MAX_BYTES]).await },
        );
    // what it sends before this comes before it
    let arrived = || site.kept.lock().unwrap().len();
    let in_time = async {
        while arrived() < limits::WRITES_UNANSWERED_PER_PROCESS - 2 {
            executor.ping().await.unwrap();
        }
        executor.ping().await.unwrap();
    };
    timeout(WITHIN, in_time).await.unwrap();
    writer.abort();
    let kept = site.kept.lock().unwrap();
    kept.iter().map(|params| params.parse::<Write>().unwrap().chunk.len()).collect()
}

#[tokio::test]
async fn as_much_input_is_under_way_as_the_executor_grants() {
    const BASE: usize = limits::STDIN_QUEUED_BYTES;
    const MOST: usize = limits::STDIN_WINDOW_MAX_BYTES;
    fn old(method: &str) -> Act {
        match method {
            Write::NAME => Act::Keep,
            method => willing(method),
        }
    }
    fn new(method: &str) -> Act {
        let rendez = json!({"version": 1, "stdinWindow": true});
        match method {
            Initialize::NAME => Act::Answer(json!({"sessionId": "s", "rendez": rendez})),
            Start::NAME => Act::Answer(json!({"processId": "p", "stdinWindow": MOST})),
            method => old(method),
        }
    }
    let ours = Profile::RendezHybridIkV1;
    for (profile, script, window) in [
        (ours, (|_, method| old(method)) as Script, BASE),
        (ours, |_, method| new(method), MOST),
        (KEPT, |_, method| old(method), BASE),
    ] {
        let writes = writes(profile, script).await;
        assert_eq!(writes.len(), limits::WRITES_UNANSWERED_PER_PROCESS - 2);
        let each = window / limits::WRITES_UNANSWERED_PER_PROCESS;
        assert!(writes.iter().all(|bytes| *bytes == each), "{writes:?} for {window}");
    }
}
