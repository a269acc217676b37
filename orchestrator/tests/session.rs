//! Sessions and processes at an executor that does what a test says.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use rendez_endpoint::{Config, Identity, IdentitySeed, Mux};
use rendez_orchestrator::{
    Client, Command, ConnectionState, FileError, ProcessError, ProcessEvent,
};
use rendez_proto::ids::EnvironmentId;
use rendez_proto::limits;
use rendez_proto::profile::Profile;
use rendez_proto::rpc::fs::WriteFile;
use rendez_proto::rpc::process::{
    Chunk, CloseStdin, ClosedNotification, Exited, Output, ProcessId, Read, ReadReply, Start,
    Stream, Write,
};
use rendez_proto::rpc::session::{EnvironmentStatus, Initialize};
use rendez_proto::rpc::{self, Json, Message, Method, RequestId, RpcError};
use rendez_rpc::{CallError, Channel, Endpoint, Incoming, MessageStream as _};
use rendez_transport::{pump, socket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
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
    /// It is kept, and the answer to a write is yes.
    Accept,
    /// The executor says no.
    Refuse,
    /// A process is started that says `a` and ends; as soon as another request of
    /// this stream was refused.
    Run,
    /// Nothing goes through the socket any more, until it is cut.
    Stall,
    /// The stream ends.
    End,
}

/// By the number of the stream, from 0, and the name of the method.
type Script = fn(usize, &str) -> Act;

/// Requests of which a test looks at the parameters.
type Kept = Arc<Mutex<Vec<Json>>>;

/// The methods of all requests.
type Asked = Arc<Mutex<Vec<String>>>;

/// Registry and executor in one; each websocket has one stream.
struct Site {
    address: SocketAddr,
    profile: Profile,
    streams: Arc<AtomicUsize>,
    kept: Kept,
    asked: Asked,
    stalled: Arc<Stalled>,
    task: JoinHandle<()>,
}

/// The socket through which nothing goes.
#[derive(Default)]
struct Stalled {
    is: AtomicBool,
    cut: Notify,
}

impl Site {
    async fn start(profile: Profile, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::new(AtomicUsize::new(0));
        let (kept, asked, stalled) = (Kept::default(), Asked::default(), Arc::<Stalled>::default());
        let (count, keep, ask, stall) =
            (streams.clone(), kept.clone(), asked.clone(), stalled.clone());
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut first = [0];
                tcp.peek(&mut first).await.unwrap();
                if first == *b"P" {
                    tokio::spawn(grant(tcp, address, profile));
                } else {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let (kept, asked, stalled) = (keep.clone(), ask.clone(), stall.clone());
                    let executor = Executor { number, script, kept, asked, stalled };
                    tokio::spawn(executor.serve(tcp, profile));
                }
            }
        });
        Self { address, profile, streams, kept, asked, stalled, task }
    }

    /// How often a method was called.
    fn asked(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == method).count()
    }

    async fn connect(&self) -> rendez_orchestrator::Environment {
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
    asked: Asked,
    stalled: Arc<Stalled>,
}

impl Executor {
    async fn serve(self, tcp: TcpStream, profile: Profile) {
        let config = Config::executor(identity(), environment(), vec![profile]);
        let endpoint = Endpoint::new(Mux::new(config, [4; 32]));
        let websocket = tokio_tungstenite::accept_async_with_config(tcp, Some(socket::config()));
        let websocket = websocket.await.unwrap();
        let mut driver = endpoint.attach(REGISTRATION.parse().unwrap());
        let stalled = self.stalled.clone();
        tokio::spawn(async move {
            loop {
                match endpoint.incoming().await {
                    Incoming::Authorization(request) => request.authorize(),
                    Incoming::Opened(channel) => return self.answer(channel).await,
                }
            }
        });
        let mut pump = pin!(pump(websocket, &mut driver));
        let ended = poll_fn(|cx| match stalled.is.load(Ordering::Relaxed) {
            true => Poll::Ready(false),
            false => pump.as_mut().poll(cx).map(|_| true),
        });
        if !ended.await {
            stalled.cut.notified().await;
            stalled.is.store(false, Ordering::Relaxed);
        }
    }

    async fn answer(self, channel: Channel) {
        let (mut refused, mut starting) = (false, None);
        while let Some(bytes) = channel.recv().await {
            if let Message::Request { id, method, params } = Message::parse(&bytes).unwrap() {
                self.asked.lock().unwrap().push(method.clone());
                match (self.script)(self.number, &method) {
                    Act::Answer(reply) => send(&channel, rpc::response(&id, Ok(&reply))).await,
                    Act::Keep => self.kept.lock().unwrap().push(params),
                    Act::Accept => {
                        self.kept.lock().unwrap().push(params);
                        send(&channel, rpc::response(&id, Ok(&json!({"status": "accepted"}))))
                            .await;
                    }
                    Act::Refuse => {
                        send(&channel, rpc::refusal(&id, &RpcError::invalid_request("no"))).await;
                        refused = true;
                    }
                    Act::Run => starting = Some((id, params.parse::<Start>().unwrap())),
                    Act::Stall => self.stalled.is.store(true, Ordering::Relaxed),
                    Act::End => return,
                }
                if refused && let Some((id, start)) = starting.take() {
                    run(&channel, &id, start.process_id).await;
                }
            }
        }
    }
}

async fn send(channel: &Channel, message: Vec<u8>) {
    let _ = channel.send(message.into()).await;
}

async fn run(channel: &Channel, start: &RequestId, process_id: ProcessId) {
    let id = process_id.clone();
    let output =
        Output { process_id: id.clone(), seq: 1, stream: Stream::Stdout, chunk: "a".into() };
    let exited = Exited { process_id: id.clone(), seq: 2, exit_code: 0, sandbox_denied: false };
    let closed = ClosedNotification { process_id: id, seq: 3 };
    let started = json!({"processId": process_id, "sandboxType": "none"});
    for message in [
        rpc::response(start, Ok(&started)),
        rpc::notification(&output),
        rpc::notification(&exited),
        rpc::notification(&closed),
    ] {
        send(channel, message).await;
    }
}

fn willing(method: &str) -> Act {
    Act::Answer(match method {
        Initialize::NAME => json!({"sessionId": "s"}),
        Start::NAME => json!({"processId": "p", "sandboxType": "none"}),
        EnvironmentStatus::NAME => json!({"status": "ready"}),
        Read::NAME => json!({"chunks": [], "nextSeq": 1, "exited": false, "closed": false}),
        other => panic!("{other}"),
    })
}

/// Every state that the link takes from here on.
fn history(executor: &rendez_orchestrator::Environment) -> Arc<Mutex<Vec<ConnectionState>>> {
    let states = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut link) = (states.clone(), executor.connection_state());
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
    while states.lock().unwrap().last() != Some(&ConnectionState::Up) {
        tokio::task::yield_now().await;
    }
    assert_eq!(*states.lock().unwrap(), [ConnectionState::Resuming, ConnectionState::Up]);
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

/// The start waits for room in a stream that ends; then it is sent again on the
/// next one, where the executor is asked at once what the process has done.
#[tokio::test]
async fn a_process_that_was_not_started_when_its_stream_ended_is_not_lost() {
    let site = Site::start(KEPT, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) => Act::Stall,
        (1, Read::NAME) => Act::Refuse,
        (1, Start::NAME) => Act::Run,
        (_, method) => willing(method),
    })
    .await;
    let executor = site.connect().await;
    let mut ping = pin!(executor.ping());
    while !site.stalled.is.load(Ordering::Relaxed) {
        assert!(now(ping.as_mut()).await.is_none());
        tokio::task::yield_now().await;
    }
    let files = executor.files();
    let much = vec![0; limits::READ_FILE_MAX_BYTES];
    let mut fill = pin!(files.write("/more-than-a-socket-holds", &much));
    assert!(now(fill.as_mut()).await.is_none());
    let mut spawn = pin!(executor.spawn(Command::new("true").current_dir("/")));
    assert!(now(spawn.as_mut()).await.is_none());
    site.stalled.cut.notify_one();
    let mut process = timeout(WITHIN, spawn).await.unwrap().unwrap();
    let told = async {
        let mut told = Vec::new();
        while let Some(event) = process.next().await.unwrap() {
            told.push(event);
        }
        told
    };
    let told = timeout(WITHIN, told).await.unwrap();
    assert_eq!(told, [ProcessEvent::Stdout(b"a".to_vec()), ProcessEvent::Exited(0)]);
    assert!(matches!(ping.await, Err(CallError::Interrupted)));
}

#[tokio::test]
async fn input_is_closed_over_the_next_stream_if_nobody_said_that_it_is() {
    fn script(stream: usize, method: &str) -> Act {
        match (stream, method) {
            (_, Initialize::NAME) => {
                Act::Answer(json!({"sessionId": "s", "rendez": {"version": 1, "closeStdin": true}}))
            }
            (0, CloseStdin::NAME) => Act::End,
            (_, CloseStdin::NAME) => Act::Accept,
            (_, method) => willing(method),
        }
    }
    let site = Site::start(KEPT, script).await;
    let executor = site.connect().await;
    let command = Command::new("cat").current_dir("/").stdin(true);
    let mut process = executor.spawn(command).await.unwrap();
    let stdin = process.stdin.take().unwrap();
    timeout(WITHIN, stdin.close()).await.unwrap().unwrap();
    assert_eq!(site.asked(CloseStdin::NAME), 2);
}

#[tokio::test]
async fn input_has_no_hole_when_its_writer_gives_up_waiting() {
    let site = Site::start(KEPT, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) => Act::End,
        (0, Write::NAME) => Act::Keep,
        (_, Write::NAME) => Act::Accept,
        (_, method) => willing(method),
    })
    .await;
    let executor = site.connect().await;
    let command = Command::new("cat").current_dir("/").stdin(true);
    let mut process = executor.spawn(command).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let most = limits::WRITES_UNANSWERED_PER_PROCESS - 2;
    for number in 0..most {
        stdin.write_all(format!("{number} ").as_bytes()).await.unwrap();
    }
    assert!(now(pin!(stdin.write_all(b"too much"))).await.is_none());
    assert!(now(pin!(stdin.flush())).await.is_none());
    assert!(executor.ping().await.is_err());
    // there is no stream
    assert!(now(pin!(stdin.flush())).await.is_none());
    assert!(now(pin!(stdin.write_all(b"too early"))).await.is_none());
    site.kept.lock().unwrap().clear();
    timeout(WITHIN, stdin.flush()).await.unwrap().unwrap();
    stdin.write_all(b"last").await.unwrap();
    timeout(WITHIN, stdin.flush()).await.unwrap().unwrap();
    let kept = site.kept.lock().unwrap();
    let text: Vec<u8> =
        kept.iter().flat_map(|params| params.parse::<Write>().unwrap().chunk).collect();
    let all: String = (0..most).map(|number| format!("{number} ")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), all + "last");
}

/// Chunks that were missed, more than wait for a reader.
const MISSED: u64 = 200;

/// The task that reads a process waits for something else first, over two
/// streams that end.
#[tokio::test]
async fn a_stream_that_ends_while_missed_output_waits_for_its_reader_is_noticed() {
    let site = Site::start(KEPT, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) | (1, WriteFile::NAME) => Act::End,
        (1, Read::NAME) => Act::Answer(missed(1..=MISSED, false)),
        (_, Read::NAME) => Act::Answer(missed(MISSED + 1..=MISSED + 1, true)),
        (_, method) => willing(method),
    })
    .await;
    let executor = site.connect().await;
    let mut process = executor.spawn(Command::new("true").current_dir("/")).await.unwrap();
    assert!(executor.ping().await.is_err());
    let in_time = async {
        while site.asked(Read::NAME) == 0 {
            executor.ping().await.unwrap();
        }
        // comes behind the answer
        executor.ping().await.unwrap();
        let written = executor.files().write("/x", b"x").await;
        assert!(matches!(written, Err(FileError::Lost)), "{written:?}");
        executor.ping().await.unwrap();
        let mut told = Vec::new();
        while let Some(event) = process.next().await.unwrap() {
            match event {
                ProcessEvent::Stdout(chunk) => told.extend(chunk),
                other => assert_eq!(other, ProcessEvent::Exited(0)),
            }
        }
        told
    };
    let told = timeout(WITHIN, in_time).await.unwrap();
    let all: String = (1..=MISSED + 1).map(|seq| format!("{seq} ")).collect();
    assert_eq!(String::from_utf8(told).unwrap(), all);
}

/// What the executor has kept; `ended` if the process has, after that.
fn missed(seqs: RangeInclusive<u64>, ended: bool) -> Value {
    let next_seq = seqs.end() + 1 + if ended { 2 } else { 0 };
    let chunk =
        |seq| Chunk { seq, stream: Stream::Stdout, chunk: format!("{seq} ").into_bytes().into() };
    let reply = ReadReply {
        chunks: seqs.map(chunk).collect(),
        next_seq,
        exited: ended,
        exit_code: ended.then_some(0),
        closed: ended,
        failure: None,
        sandbox_denied: false,
    };
    Json::of(&reply).parse().unwrap()
}

#[tokio::test]
async fn a_process_of_a_connection_that_was_closed_is_lost() {
    for profile in [KEPT, Profile::RendezHybridIkV1] {
        let site = Site::start(profile, |_, method| willing(method)).await;
        let executor = site.connect().await;
        let mut process = executor.spawn(Command::new("true").current_dir("/")).await.unwrap();
        executor.close().await;
        let next = timeout(WITHIN, process.next()).await.unwrap();
        assert!(matches!(next, Err(ProcessError::Lost)), "{next:?}");
    }
}

/// What a future has to say without waiting.
async fn now<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
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
