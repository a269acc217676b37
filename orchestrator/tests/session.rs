//! Sessions and processes at a scripted executor.
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
    Client, Command, ConnectionState, Environment, FileError, ProcessError, ProcessEvent,
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

/// A profile whose sessions outlive their streams.
const RESUMABLE: Profile = Profile::NoiseHybridIkV1;
const REGISTRATION: &str = "reg-1";
/// Longer than any step of these tests takes.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The reaction of the executor to a request.
enum Action {
    Answer(Value),
    /// Records the parameters and does not respond.
    Hold,
    /// Records the parameters and accepts the write.
    Accept,
    /// Refuses the request.
    Refuse,
    /// Starts a process that prints `a` and ends, as soon as another request on
    /// this stream was refused.
    Run,
    /// Stops all traffic on the socket until it is cut.
    Stall,
    /// Ends the stream.
    End,
}

/// Selects the action by the number of the stream, from 0, and the method.
type Script = fn(usize, &str) -> Action;

/// The parameters of recorded requests.
type HeldParams = Arc<Mutex<Vec<Json>>>;

/// The methods of all received requests.
type CalledMethods = Arc<Mutex<Vec<String>>>;

/// Registry and executor in one server. Each websocket has one stream.
struct FakeRelay {
    address: SocketAddr,
    profile: Profile,
    streams: Arc<AtomicUsize>,
    held: HeldParams,
    asked: CalledMethods,
    stalled: Arc<Stalled>,
    task: JoinHandle<()>,
}

/// The state of the stalled socket.
#[derive(Default)]
struct Stalled {
    is: AtomicBool,
    cut: Notify,
}

impl FakeRelay {
    async fn start(profile: Profile, script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::new(AtomicUsize::new(0));
        let (held, asked, stalled) =
            (HeldParams::default(), CalledMethods::default(), Arc::<Stalled>::default());
        let (count, keep, ask, stall) =
            (streams.clone(), held.clone(), asked.clone(), stalled.clone());
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut first = [0];
                tcp.peek(&mut first).await.unwrap();
                if first == *b"P" {
                    tokio::spawn(answer_connect(tcp, address, profile));
                } else {
                    let number = count.fetch_add(1, Ordering::Relaxed);
                    let (held, asked, stalled) = (keep.clone(), ask.clone(), stall.clone());
                    let executor = FakeExecutor { number, script, held, asked, stalled };
                    tokio::spawn(executor.serve(tcp, profile));
                }
            }
        });
        Self { address, profile, streams, held, asked, stalled, task }
    }

    /// Returns how often a method was called.
    fn calls_of(&self, method: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == method).count()
    }

    async fn connect(&self) -> Environment {
        let url = format!("http://{}", self.address);
        let client =
            Client::with_profiles(&url, "t0k".to_owned().into(), vec![self.profile]).unwrap();
        client.connect(&environment()).await.unwrap()
    }
}

impl Drop for FakeRelay {
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

/// Responds to `POST …/connect`.
async fn answer_connect(mut tcp: TcpStream, address: SocketAddr, profile: Profile) {
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

/// The executor's end of one websocket with one stream.
struct FakeExecutor {
    number: usize,
    script: Script,
    held: HeldParams,
    asked: CalledMethods,
    stalled: Arc<Stalled>,
}

impl FakeExecutor {
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
                    Action::Answer(reply) => send(&channel, rpc::response(&id, Ok(&reply))).await,
                    Action::Hold => self.held.lock().unwrap().push(params),
                    Action::Accept => {
                        self.held.lock().unwrap().push(params);
                        send(&channel, rpc::response(&id, Ok(&json!({"status": "accepted"}))))
                            .await;
                    }
                    Action::Refuse => {
                        send(&channel, rpc::refusal(&id, &RpcError::invalid_request("no"))).await;
                        refused = true;
                    }
                    Action::Run => starting = Some((id, params.parse::<Start>().unwrap())),
                    Action::Stall => self.stalled.is.store(true, Ordering::Relaxed),
                    Action::End => return,
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

fn default_action(method: &str) -> Action {
    Action::Answer(match method {
        Initialize::NAME => json!({"sessionId": "s"}),
        Start::NAME => json!({"processId": "p", "sandboxType": "none"}),
        EnvironmentStatus::NAME => json!({"status": "ready"}),
        Read::NAME => json!({"chunks": [], "nextSeq": 1, "exited": false, "closed": false}),
        other => panic!("{other}"),
    })
}

/// Records every state of the connection from now on.
fn record_states(executor: &Environment) -> Arc<Mutex<Vec<ConnectionState>>> {
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
async fn failed_resume_does_not_break_the_next() {
    let relay = FakeRelay::start(RESUMABLE, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) | (1, Initialize::NAME) => Action::End,
        (_, method) => default_action(method),
    })
    .await;
    let executor = relay.connect().await;
    let states = record_states(&executor);
    assert!(matches!(executor.ping().await, Err(CallError::Interrupted)));
    timeout(TEST_TIMEOUT, executor.ping()).await.unwrap().unwrap();
    while states.lock().unwrap().last() != Some(&ConnectionState::Connected) {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        *states.lock().unwrap(),
        [ConnectionState::Reconnecting, ConnectionState::Connected]
    );
    assert_eq!(relay.streams.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn malformed_read_reply_loses_the_process() {
    let relay = FakeRelay::start(RESUMABLE, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) => Action::End,
        (_, Read::NAME) => Action::Answer(json!("what?")),
        (_, method) => default_action(method),
    })
    .await;
    let executor = relay.connect().await;
    let mut process = executor.spawn(Command::new("true").current_dir("/")).await.unwrap();
    assert!(executor.ping().await.is_err());
    let next = timeout(TEST_TIMEOUT, process.next()).await.unwrap();
    assert!(matches!(next, Err(ProcessError::Lost)), "{next:?}");
    executor.ping().await.unwrap();
}

/// The start waits for room in a stream that ends. It is then sent on the next
/// stream, where the catch-up task reads the events of the process at once.
#[tokio::test]
async fn unsent_start_is_sent_on_next_stream() {
    let relay = FakeRelay::start(RESUMABLE, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) => Action::Stall,
        (1, Read::NAME) => Action::Refuse,
        (1, Start::NAME) => Action::Run,
        (_, method) => default_action(method),
    })
    .await;
    let executor = relay.connect().await;
    let mut ping = pin!(executor.ping());
    while !relay.stalled.is.load(Ordering::Relaxed) {
        assert!(poll_once(ping.as_mut()).await.is_none());
        tokio::task::yield_now().await;
    }
    let files = executor.files();
    let much = vec![0; limits::READ_FILE_MAX_BYTES];
    let mut fill = pin!(files.write("/more-than-a-socket-holds", &much));
    assert!(poll_once(fill.as_mut()).await.is_none());
    let mut spawn = pin!(executor.spawn(Command::new("true").current_dir("/")));
    assert!(poll_once(spawn.as_mut()).await.is_none());
    relay.stalled.cut.notify_one();
    let mut process = timeout(TEST_TIMEOUT, spawn).await.unwrap().unwrap();
    let events = async {
        let mut events = Vec::new();
        while let Some(event) = process.next().await.unwrap() {
            events.push(event);
        }
        events
    };
    let events = timeout(TEST_TIMEOUT, events).await.unwrap();
    assert_eq!(events, [ProcessEvent::Stdout(b"a".to_vec()), ProcessEvent::Exited(0)]);
    assert!(matches!(ping.await, Err(CallError::Interrupted)));
}

#[tokio::test]
async fn stdin_close_is_repeated_on_next_stream() {
    fn script(stream: usize, method: &str) -> Action {
        match (stream, method) {
            (_, Initialize::NAME) => Action::Answer(
                json!({"sessionId": "s", "rendez": {"version": 1, "closeStdin": true}}),
            ),
            (0, CloseStdin::NAME) => Action::End,
            (_, CloseStdin::NAME) => Action::Accept,
            (_, method) => default_action(method),
        }
    }
    let relay = FakeRelay::start(RESUMABLE, script).await;
    let executor = relay.connect().await;
    let command = Command::new("cat").current_dir("/").stdin(true);
    let mut process = executor.spawn(command).await.unwrap();
    let stdin = process.stdin.take().unwrap();
    timeout(TEST_TIMEOUT, stdin.close()).await.unwrap().unwrap();
    assert_eq!(relay.calls_of(CloseStdin::NAME), 2);
}

#[tokio::test]
async fn cancelled_write_leaves_no_gap_in_stdin() {
    let relay = FakeRelay::start(RESUMABLE, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) => Action::End,
        (0, Write::NAME) => Action::Hold,
        (_, Write::NAME) => Action::Accept,
        (_, method) => default_action(method),
    })
    .await;
    let executor = relay.connect().await;
    let command = Command::new("cat").current_dir("/").stdin(true);
    let mut process = executor.spawn(command).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let most = limits::WRITES_UNANSWERED_PER_PROCESS - 2;
    for number in 0..most {
        stdin.write_all(format!("{number} ").as_bytes()).await.unwrap();
    }
    assert!(poll_once(pin!(stdin.write_all(b"too much"))).await.is_none());
    assert!(poll_once(pin!(stdin.flush())).await.is_none());
    assert!(executor.ping().await.is_err());
    // No stream is open.
    assert!(poll_once(pin!(stdin.flush())).await.is_none());
    assert!(poll_once(pin!(stdin.write_all(b"too early"))).await.is_none());
    relay.held.lock().unwrap().clear();
    timeout(TEST_TIMEOUT, stdin.flush()).await.unwrap().unwrap();
    stdin.write_all(b"last").await.unwrap();
    timeout(TEST_TIMEOUT, stdin.flush()).await.unwrap().unwrap();
    let held = relay.held.lock().unwrap();
    let text: Vec<u8> =
        held.iter().flat_map(|params| params.parse::<Write>().unwrap().chunk).collect();
    let all: String = (0..most).map(|number| format!("{number} ")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), all + "last");
}

/// The number of missed chunks: more than the reader's queue holds.
const MISSED: u64 = 200;

/// The task that reads the process first awaits other calls, while two streams
/// end.
#[tokio::test]
async fn stream_end_is_noticed_during_catch_up() {
    let relay = FakeRelay::start(RESUMABLE, |stream, method| match (stream, method) {
        (0, EnvironmentStatus::NAME) | (1, WriteFile::NAME) => Action::End,
        (1, Read::NAME) => Action::Answer(missed(1..=MISSED, false)),
        (_, Read::NAME) => Action::Answer(missed(MISSED + 1..=MISSED + 1, true)),
        (_, method) => default_action(method),
    })
    .await;
    let executor = relay.connect().await;
    let mut process = executor.spawn(Command::new("true").current_dir("/")).await.unwrap();
    assert!(executor.ping().await.is_err());
    let in_time = async {
        while relay.calls_of(Read::NAME) == 0 {
            executor.ping().await.unwrap();
        }
        // This response comes behind the reply to the read.
        executor.ping().await.unwrap();
        let written = executor.files().write("/x", b"x").await;
        assert!(matches!(written, Err(FileError::Lost)), "{written:?}");
        executor.ping().await.unwrap();
        let mut events = Vec::new();
        while let Some(event) = process.next().await.unwrap() {
            match event {
                ProcessEvent::Stdout(chunk) => events.extend(chunk),
                other => assert_eq!(other, ProcessEvent::Exited(0)),
            }
        }
        events
    };
    let events = timeout(TEST_TIMEOUT, in_time).await.unwrap();
    let all: String = (1..=MISSED + 1).map(|seq| format!("{seq} ")).collect();
    assert_eq!(String::from_utf8(events).unwrap(), all);
}

/// The reply to a read of these chunks; with `ended`, also of exit and close.
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
async fn process_of_closed_connection_is_lost() {
    for profile in [RESUMABLE, Profile::RendezHybridIkV1] {
        let relay = FakeRelay::start(profile, |_, method| default_action(method)).await;
        let executor = relay.connect().await;
        let mut process = executor.spawn(Command::new("true").current_dir("/")).await.unwrap();
        executor.close().await;
        let next = timeout(TEST_TIMEOUT, process.next()).await.unwrap();
        assert!(matches!(next, Err(ProcessError::Lost)), "{next:?}");
    }
}

/// Polls a future once.
async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Returns the sizes of the writes in flight to a process that does not read.
async fn writes(profile: Profile, script: Script) -> Vec<usize> {
    let relay = FakeRelay::start(profile, script).await;
    let executor = relay.connect().await;
    let command = Command::new("cat").current_dir("/").stdin(true);
    let mut process = executor.spawn(command).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let writer =
        tokio::spawn(
            async move { stdin.write_all(&vec![0; 2 * limits::STDIN_WINDOW_MAX_BYTES]).await },
        );
    // Earlier writes arrive before a later ping.
    let arrived = || relay.held.lock().unwrap().len();
    let in_time = async {
        while arrived() < limits::WRITES_UNANSWERED_PER_PROCESS - 2 {
            executor.ping().await.unwrap();
        }
        executor.ping().await.unwrap();
    };
    timeout(TEST_TIMEOUT, in_time).await.unwrap();
    writer.abort();
    let held = relay.held.lock().unwrap();
    held.iter().map(|params| params.parse::<Write>().unwrap().chunk.len()).collect()
}

#[tokio::test]
async fn stdin_in_flight_fills_granted_window() {
    const BASE: usize = limits::STDIN_QUEUED_BYTES;
    const MOST: usize = limits::STDIN_WINDOW_MAX_BYTES;
    fn old(method: &str) -> Action {
        match method {
            Write::NAME => Action::Hold,
            method => default_action(method),
        }
    }
    fn new(method: &str) -> Action {
        let rendez = json!({"version": 1, "stdinWindow": true});
        match method {
            Initialize::NAME => Action::Answer(json!({"sessionId": "s", "rendez": rendez})),
            Start::NAME => Action::Answer(json!({"processId": "p", "stdinWindow": MOST})),
            method => old(method),
        }
    }
    let ours = Profile::RendezHybridIkV1;
    for (profile, script, window) in [
        (ours, (|_, method| old(method)) as Script, BASE),
        (ours, |_, method| new(method), MOST),
        (RESUMABLE, |_, method| old(method), BASE),
    ] {
        let writes = writes(profile, script).await;
        assert_eq!(writes.len(), limits::WRITES_UNANSWERED_PER_PROCESS - 2);
        let each = window / limits::WRITES_UNANSWERED_PER_PROCESS;
        assert!(writes.iter().all(|bytes| *bytes == each), "{writes:?} for {window}");
    }
}
