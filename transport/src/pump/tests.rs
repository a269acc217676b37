//! The pump against a real websocket library, over an in-memory pipe.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::Waker;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use rendez_proto::limits;
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::*;
use crate::socket;

/// More rounds than any test needs.
const ROUNDS_MAX: usize = 100_000;

/// A core that records received messages and sends queued ones.
#[derive(Default)]
struct Core {
    heard: Vec<Bytes>,
    outbox: VecDeque<Bytes>,
    /// Never has nothing to send: messages of the budget's size.
    bulk: bool,
    /// The sizes of those messages.
    budgets: Vec<usize>,
    full: bool,
    /// Echo every message without waking the pump.
    echo: bool,
    closing: Option<CloseFrame>,
    refuse: Option<CloseFrame>,
    drops_text: bool,
    waker: Option<Waker>,
    wants_ping: bool,
    short_timeout: bool,
    round_trips: Vec<Duration>,
    /// How often the pump came round.
    rounds: usize,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Core>>);

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Core)) {
        let mut core = self.0.lock().unwrap();
        change(&mut core);
        if let Some(waker) = core.waker.take() {
            waker.wake();
        }
    }
}

impl Protocol for Shared {
    fn handle_message(&mut self, _: Instant, message: Bytes) -> Result<(), Violation> {
        let mut core = self.0.lock().unwrap();
        if core.echo {
            core.outbox.push_back(message.clone());
        }
        core.heard.push(message);
        core.refuse.clone().map_or(Ok(()), |frame| Err(Violation(frame)))
    }
    fn handle_text(&mut self) -> Result<(), Violation> {
        if self.0.lock().unwrap().drops_text { Ok(()) } else { Err(Violation(CloseFrame::TEXT)) }
    }
    fn wants_read(&self) -> bool {
        !self.0.lock().unwrap().full
    }
    fn poll_transmit(&mut self, _: Instant, budget: usize) -> Option<Bytes> {
        let mut core = self.0.lock().unwrap();
        if core.bulk {
            core.budgets.push(budget);
            return Some(vec![7; budget].into());
        }
        core.outbox.pop_front()
    }
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    fn handle_timeout(&mut self, _: Instant) {}
    fn register(&mut self, waker: &Waker) {
        let mut core = self.0.lock().unwrap();
        core.waker = Some(waker.clone());
        core.rounds += 1;
        // Or a clock that stands still while it spins would never end a test.
        assert!(core.rounds < ROUNDS_MAX, "the pump spins");
    }
    fn closing(&self) -> Option<CloseFrame> {
        self.0.lock().unwrap().closing.clone()
    }
    fn wants_short_ping_timeout(&self) -> bool {
        self.0.lock().unwrap().short_timeout
    }
    fn wants_ping(&mut self) -> bool {
        std::mem::take(&mut self.0.lock().unwrap().wants_ping)
    }
    fn handle_pong(&mut self, _: Instant, round_trip: Duration) {
        self.0.lock().unwrap().round_trips.push(round_trip);
    }
}

type Ws = WebSocketStream<DuplexStream>;

async fn pair() -> (Ws, Ws) {
    let (left, right) = tokio::io::duplex(1024);
    (
        WebSocketStream::from_raw_socket(left, Role::Server, Some(socket::config())).await,
        WebSocketStream::from_raw_socket(right, Role::Client, None).await,
    )
}

/// Starts a pump; returns the core, the far end, and the pump's task.
async fn start() -> (Shared, Ws, tokio::task::JoinHandle<Ended>) {
    let (ours, theirs) = pair().await;
    let core = Shared::default();
    let mut driven = core.clone();
    let task = tokio::spawn(async move { pump(ours, &mut driven).await });
    (core, theirs, task)
}

fn binary(bytes: &'static [u8]) -> Message {
    Message::Binary(Bytes::from_static(bytes))
}

#[tokio::test]
async fn text_closes_unless_the_core_accepts_it() {
    let (core, mut theirs, task) = start().await;
    core.change(|core| core.drops_text = true);
    theirs.send(Message::text("{}")).await.unwrap();
    theirs.send(binary(b"frame")).await.unwrap();
    while core.0.lock().unwrap().heard.is_empty() {
        tokio::task::yield_now().await;
    }
    core.change(|core| core.drops_text = false);
    theirs.send(Message::text("{}")).await.unwrap();
    let Some(Ok(Message::Close(Some(frame)))) = theirs.next().await else { panic!() };
    assert_eq!(u16::from(frame.code), CloseFrame::TEXT.code);
    while theirs.next().await.is_some() {}
    assert!(matches!(task.await.unwrap(), Ended::ByUs(frame) if frame == CloseFrame::TEXT));
}

#[tokio::test]
async fn full_pipes_do_not_deadlock() {
    let (core, theirs, task) = start().await;
    let big = Bytes::from(vec![7; 50_000]);
    core.change(|core| core.outbox.extend((0..50).map(|_| big.clone())));
    let (mut sink, mut stream) = theirs.split();
    let send = async {
        for _ in 0..50 {
            sink.send(Message::Binary(big.clone())).await.unwrap();
        }
        sink.close().await.unwrap();
    };
    let receive = async {
        let mut count = 0;
        while let Some(Ok(message)) = stream.next().await {
            if message.is_binary() {
                assert_eq!(message.into_data(), big);
                count += 1;
            }
            if count == 50 {
                break;
            }
        }
        count
    };
    let ((), received) = tokio::join!(send, receive);
    assert_eq!(received, 50);
    assert!(matches!(task.await.unwrap(), Ended::ByPeer(_)));
    assert_eq!(core.0.lock().unwrap().heard.len(), 50);
}

#[tokio::test(start_paused = true)]
async fn slow_path_gets_small_messages_late() {
    /// Bytes that the path takes in 10 ms.
    const PIECE: usize = 1250;
    /// Bytes that the pipe holds.
    const PIPE: usize = 1024;
    let (ours, mut theirs) = tokio::io::duplex(PIPE);
    let ours = WebSocketStream::from_raw_socket(ours, Role::Server, Some(socket::config())).await;
    let core = Shared::default();
    core.change(|core| core.bulk = true);
    let mut driven = core.clone();
    let _task = tokio::spawn(async move { pump(ours, &mut driven).await });
    let mut passed = 0;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        theirs.read_exact(&mut [0; PIECE]).await.unwrap();
        passed += PIECE;
    }
    let core = core.0.lock().unwrap();
    let budget = *core.budgets.last().unwrap();
    assert!((2 * PIECE * 3 / 4..=2 * PIECE * 5 / 4).contains(&budget), "{budget}");
    let taken: usize = core.budgets.iter().sum();
    assert!(taken <= passed + PIPE + 2 * budget, "{taken} of {passed}");
}

#[tokio::test(start_paused = true)]
async fn answers_are_sent_in_the_same_turn() {
    let (core, mut theirs, _task) = start().await;
    core.change(|core| core.echo = true);
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        theirs.send(binary(b"acknowledge this")).await.unwrap();
        assert_eq!(theirs.next().await.unwrap().unwrap(), binary(b"acknowledge this"));
    }
    // The clock advances only while all tasks wait for a timer.
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn full_core_stops_reading() {
    let (core, mut theirs, task) = start().await;
    core.change(|core| core.full = true);
    tokio::task::yield_now().await;
    // more than pipe and buffers hold: cannot complete while the peer does not read
    let flood = async {
        for _ in 0..8 {
            theirs.send(Message::Binary(Bytes::from(vec![1; 50_000]))).await.unwrap();
        }
        theirs
    };
    let mut flood = std::pin::pin!(flood);
    for _ in 0..1000 {
        tokio::select! {
            biased;
            _ = &mut flood => panic!("the pump read for a full core"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert!(core.0.lock().unwrap().heard.is_empty());
    core.change(|core| core.full = false);
    let theirs = flood.await;
    drop(theirs);
    assert!(matches!(task.await.unwrap(), Ended::Lost(_)));
    assert_eq!(core.0.lock().unwrap().heard.len(), 8);
}

#[tokio::test]
async fn invalid_messages_get_their_close_codes() {
    async fn close_code(setup: impl FnOnce(&mut Core), message: Message) -> (u16, Ended) {
        let (core, mut theirs, task) = start().await;
        core.change(setup);
        theirs.send(message).await.unwrap();
        let code = loop {
            match theirs.next().await.unwrap().unwrap() {
                Message::Close(frame) => break frame.unwrap().code.into(),
                _ => continue,
            }
        };
        let _ = theirs.flush().await;
        drop(theirs);
        (code, task.await.unwrap())
    }
    let (code, ended) = close_code(|_| {}, Message::text("hello")).await;
    assert_eq!(code, 1003);
    assert!(matches!(ended, Ended::ByUs(frame) if frame == CloseFrame::TEXT));

    let frame = CloseFrame { code: 1002, reason: "test" };
    let (code, _) = close_code(|core| core.refuse = Some(frame), binary(b"x")).await;
    assert_eq!(code, 1002);

    let (ours, theirs) = pair().await;
    let mut core = Shared::default();
    let task = tokio::spawn(async move { pump(ours, &mut core).await });
    let (mut sink, mut stream) = theirs.split();
    let send = async {
        // the pump may hang up before all of it is out
        let _ = sink.send(Message::Binary(Bytes::from(vec![0; 300 * 1024]))).await;
    };
    let receive = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Close(frame))) => break frame.map(|frame| u16::from(frame.code)),
                Some(Ok(_)) => {}
                _ => break None,
            }
        }
    };
    let ((), code) = tokio::join!(send, receive);
    assert_eq!(code, Some(1009));
    assert!(matches!(task.await.unwrap(), Ended::Lost(SocketError::TooBig)));
}

#[tokio::test]
async fn closing_sends_queued_messages_first() {
    let (core, mut theirs, task) = start().await;
    core.change(|core| {
        core.outbox.push_back(Bytes::from_static(b"last words"));
        core.closing = Some(CloseFrame::NORMAL);
    });
    assert_eq!(theirs.next().await.unwrap().unwrap(), binary(b"last words"));
    assert!(theirs.next().await.unwrap().unwrap().is_close());
    let _ = theirs.flush().await;
    drop(theirs);
    assert!(matches!(task.await.unwrap(), Ended::ByUs(frame) if frame == CloseFrame::NORMAL));
}

#[tokio::test(start_paused = true)]
async fn silence_ends_the_connection() {
    let (_core, mut theirs, task) = start().await;
    let before = tokio::time::Instant::now();
    // Read pings without ever flushing the answers.
    let ping = std::future::poll_fn(|cx| Socket::poll_read(&mut theirs, cx)).await;
    assert!(matches!(ping, Some(Ok(Incoming::Alive))));
    assert_eq!(before.elapsed().as_secs(), limits::PING_INTERVAL.as_secs());
    assert!(matches!(task.await.unwrap(), Ended::Silent));
    assert_eq!(before.elapsed().as_secs(), limits::PONG_TIMEOUT.as_secs());
}

/// Pings, unsolicited pongs and the fragments of a message that never ends.
#[tokio::test(start_paused = true)]
async fn only_progress_keeps_a_peer_alive() {
    let fragment = |opcode| {
        let frame = Frame::message(Bytes::from_static(b"part"), OpCode::Data(opcode), false);
        Message::Frame(frame)
    };
    let (_core, mut theirs, task) = start().await;
    let before = tokio::time::Instant::now();
    theirs.send(fragment(Data::Binary)).await.unwrap();
    // It reads nothing, so it answers no ping.
    while before.elapsed() + Duration::from_secs(10) < limits::PONG_TIMEOUT {
        tokio::time::sleep(Duration::from_secs(10)).await;
        theirs.send(Message::Pong(Bytes::new())).await.unwrap();
        theirs.send(Message::Ping(Bytes::new())).await.unwrap();
        theirs.send(fragment(Data::Continue)).await.unwrap();
    }
    assert!(matches!(task.await.unwrap(), Ended::Silent));
    assert_eq!(before.elapsed().as_secs(), limits::PONG_TIMEOUT.as_secs());
}

/// A stock endpoint sends nothing of its own while it is idle.
#[tokio::test(start_paused = true)]
async fn answers_to_pings_keep_a_peer_alive() {
    let (core, mut theirs, task) = start().await;
    let before = tokio::time::Instant::now();
    while before.elapsed() < 5 * limits::PONG_TIMEOUT {
        assert!(theirs.next().await.unwrap().unwrap().is_ping());
        theirs.flush().await.unwrap();
    }
    assert!(!task.is_finished());
    assert!(core.0.lock().unwrap().round_trips.len() > 5);
}

#[tokio::test(start_paused = true)]
async fn requested_ping_is_immediate_and_matched() {
    let (core, mut theirs, _task) = start().await;
    core.change(|core| core.wants_ping = true);
    let payload = theirs.next().await.unwrap().unwrap().into_data();
    assert_eq!(payload.as_ref(), 1u64.to_be_bytes());

    // An unsolicited pong and a guessed one; then a message, behind which both are
    for foreign in [Bytes::new(), Bytes::copy_from_slice(&2u64.to_be_bytes())] {
        theirs.send(Message::Pong(foreign)).await.unwrap();
    }
    core.change(|core| core.echo = true);
    theirs.send(binary(b"after them")).await.unwrap();
    assert_eq!(theirs.next().await.unwrap().unwrap(), binary(b"after them"));
    assert_eq!(core.0.lock().unwrap().round_trips, []);

    // reading it has answered the ping by now, or does with the next flush
    tokio::time::advance(PING_ANSWER_TIMEOUT).await;
    core.change(|core| core.wants_ping = true);
    assert!(theirs.next().await.unwrap().unwrap().is_ping());
    theirs.send(Message::Pong(Bytes::copy_from_slice(&2u64.to_be_bytes()))).await.unwrap();
    theirs.send(binary(b"once more")).await.unwrap();
    assert_eq!(theirs.next().await.unwrap().unwrap(), binary(b"once more"));
    assert_eq!(core.0.lock().unwrap().round_trips, [Duration::ZERO]);
}

#[tokio::test(start_paused = true)]
async fn one_unanswered_ping_ends_a_resumable_connection() {
    let (core, _theirs, task) = start().await;
    let before = tokio::time::Instant::now();
    core.change(|core| (core.short_timeout, core.wants_ping) = (true, true));
    assert!(matches!(task.await.unwrap(), Ended::Silent));
    assert_eq!(before.elapsed(), PING_ANSWER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn busy_core_still_pings() {
    let (core, mut theirs, _task) = start().await;
    core.change(|core| {
        core.wants_ping = true;
        core.outbox.extend((0..10).map(|_| Bytes::from_static(b"data")));
    });
    assert!(theirs.next().await.unwrap().unwrap().is_ping());
}

#[tokio::test(start_paused = true)]
async fn full_socket_does_not_spin_on_timers() {
    let (core, mut theirs, _task) = start().await;
    for short_timeout in [false, true] {
        core.change(|core| {
            core.short_timeout = short_timeout;
            core.outbox.extend((0..4).map(|_| Bytes::from(vec![1; 200_000])));
        });
        // a ping is due and finds no room; the peer is heard of
        tokio::time::sleep(limits::PING_INTERVAL + Duration::from_secs(1)).await;
        theirs.send(binary(b"still here")).await.unwrap();
        let before = core.0.lock().unwrap().rounds;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let rounds = core.0.lock().unwrap().rounds - before;
        assert!(rounds <= 20, "{rounds} rounds in 20 s");
        // with room, it goes out
        let (mut pings, mut messages) = (0, 0);
        while pings == 0 || messages < 4 {
            match theirs.next().await.unwrap().unwrap() {
                Message::Ping(_) => pings += 1,
                _ => messages += 1,
            }
        }
        theirs.flush().await.unwrap();
    }
}

/// The bytes are read as they are: a library would answer the ping.
#[tokio::test(start_paused = true)]
async fn repeated_requests_send_one_ping() {
    let (core, mut theirs, _task) = start().await;
    let mut pings = 0;
    for n in 0..10 {
        if n == 9 {
            tokio::time::advance(PING_ANSWER_TIMEOUT).await;
            assert_eq!(pings, 1);
        }
        core.change(|core| {
            core.wants_ping = true;
            core.outbox.push_back(Bytes::copy_from_slice(&[n]));
        });
        loop {
            let raw = theirs.get_mut();
            let (kind, length) = (raw.read_u8().await.unwrap(), raw.read_u8().await.unwrap());
            let mut payload = vec![0; length.into()];
            raw.read_exact(&mut payload).await.unwrap();
            match kind {
                0x89 => pings += 1,
                _ => break assert_eq!(payload, [n]),
            }
        }
    }
    assert_eq!(pings, 2);
}
