//! An accepted websocket, with everything that it buffers charged to its accounts.
//!
//! * The bytes of an unfinished message are charged as soon as the head of a frame
//!   declares them. Charging bytes as they arrive would let many messages take part of
//!   the memory that each of them needs, so that none could be finished.
//! * A message that the accounts cannot pay for is not read: TCP slows its sender down.
//!   It is tried again after a pause.
//! * A message that arrives within one read, and a write that the connection takes at
//!   once, cost no charge.
//! * The library keeps the buffer of its largest message. It is dropped when the
//!   connection becomes idle.

use std::io::{self, ErrorKind, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rendez_proto::limits;
use rendez_relay_core::MemoryCharge;
use rendez_transport::socket::WRITE_BUFFER_BYTES;
use rendez_transport::{Incoming, Outgoing, Socket, SocketError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig, WebSocketContext};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::frame_parser::FrameParser;
use crate::connections::ConnectionGuard;

/// The buffer that a websocket always has for messages that it has not read whole:
/// most of the memory of an idle one, which no account pays for. It is filled from
/// larger reads, from the buffer that a thread's connections share.
const MESSAGE_BUFFER_BYTES: usize = 2 * 1024;
/// The largest buffer that an idle websocket keeps, and pays for: dropping it for each
/// small message would cost more than it saves.
const KEPT_BUFFER_MAX_BYTES: usize = 16 * 1024;
/// Room in the write buffer for answers to pings and for the close frame.
const CONTROL_FRAMES_BYTES: usize = 4 * 1024;
/// Bytes that are sent at most behind a blocked connection: the pump sends a message
/// only while fewer than [`WRITE_BUFFER_BYTES`] wait.
const WRITE_MAX_BYTES: usize =
    WRITE_BUFFER_BYTES + limits::MESSAGE_MAX_BYTES + CONTROL_FRAMES_BYTES;
/// The first pause before memory for a message is asked for again. It doubles each time.
const MEMORY_PAUSE: Duration = Duration::from_millis(25);
/// The longest such pause: with thousands of websockets that wait, asking costs little.
const MEMORY_PAUSE_MAX: Duration = Duration::from_millis(800);

/// An accepted websocket.
pub(super) struct AcceptedSocket<'a, T> {
    io: T,
    context: WebSocketContext,
    reading: Reading<'a>,
    writing: Writing,
    /// Whether the library or the connection may hold bytes that are not sent.
    unflushed: bool,
    ended: bool,
}

impl<'a, T: AsyncRead + AsyncWrite + Unpin> AcceptedSocket<'a, T> {
    /// A websocket over an upgraded connection that itself buffers at most
    /// `unsent_below` bytes of what it takes.
    pub(super) fn new(io: T, guard: &'a ConnectionGuard, unsent_below: usize) -> Self {
        let charge = || guard.connection().memory_charge();
        Self {
            io,
            context: new_context(),
            reading: Reading {
                parser: FrameParser::default(),
                charge: charge(),
                guard,
                since: None,
                wait: None,
            },
            writing: Writing {
                taken: 0,
                queued: 0,
                below: 0,
                below_max: unsent_below,
                charge: charge(),
            },
            unflushed: false,
            ended: false,
        }
    }

    /// Drops the library's buffer after a large message, once the library holds nothing.
    fn drop_large_buffer(&mut self) {
        let parser = &mut self.reading.parser;
        let is_kept =
            parser.largest() <= KEPT_BUFFER_MAX_BYTES && !self.reading.charge.is_overdrawn();
        if !is_kept && parser.is_between_messages() && !self.unflushed && self.context.can_write() {
            parser.reset_largest();
            self.context = new_context();
            self.reading.charge.set(0);
        }
    }
}

fn new_context() -> WebSocketContext {
    let config = WebSocketConfig::default()
        .read_buffer_size(MESSAGE_BUFFER_BYTES)
        // Only a flush writes.
        .write_buffer_size(WRITE_MAX_BYTES)
        .max_write_buffer_size(WRITE_MAX_BYTES + 1)
        .max_message_size(Some(limits::MESSAGE_MAX_BYTES))
        .max_frame_size(Some(limits::MESSAGE_MAX_BYTES));
    WebSocketContext::new(Role::Server, Some(config))
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for AcceptedSocket<'_, T> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, SocketError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let Self { io, reading, writing, .. } = self;
        let mut io = LibraryIo { io, cx: Some(cx), reading, writing };
        match self.context.read(&mut io) {
            Ok(message) => {
                // The library queues the answer to a ping and to a close frame.
                if let Message::Ping(payload) = &message {
                    self.writing.queue(payload.len());
                }
                self.unflushed |= matches!(message, Message::Ping(_) | Message::Close(_));
                Poll::Ready(Some(Ok(message.into())))
            }
            Err(error) if would_block(&error) => {
                self.drop_large_buffer();
                Poll::Pending
            }
            Err(error) => {
                self.ended = true;
                match error {
                    Error::AlreadyClosed | Error::ConnectionClosed => Poll::Ready(None),
                    error => Poll::Ready(Some(Err(error.into()))),
                }
            }
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        match self.writing.queued < WRITE_BUFFER_BYTES {
            true => Poll::Ready(Ok(())),
            false => self.poll_flush(cx),
        }
    }

    fn start_send(&mut self, message: Outgoing) -> Result<(), SocketError> {
        let message = Message::from(message);
        self.unflushed = true;
        self.writing.queue(message.len());
        let Self { io, reading, writing, .. } = self;
        match self.context.write(&mut LibraryIo { io, cx: None, reading, writing }, message) {
            // The library has taken the message and would have flushed it.
            Err(error) if would_block(&error) => Ok(()),
            result => result.map_err(SocketError::from),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        let Self { io, reading, writing, .. } = self;
        match self.context.flush(&mut LibraryIo { io, cx: Some(cx), reading, writing }) {
            Ok(()) | Err(Error::ConnectionClosed) => {
                self.unflushed = false;
                self.writing.flushed();
                Poll::Ready(Ok(()))
            }
            Err(error) if would_block(&error) => {
                self.writing.charge();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }

    fn taken_bytes(&self) -> Option<u64> {
        Some(self.writing.taken)
    }

    fn unfinished_since(&self) -> Option<Instant> {
        self.reading.unfinished_since()
    }
}

fn would_block(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::WouldBlock)
}

/// The messages that are read.
struct Reading<'a> {
    parser: FrameParser,
    /// For the library's buffers.
    charge: MemoryCharge,
    guard: &'a ConnectionGuard,
    /// The unfinished message, and when it was first seen to be unfinished. The time
    /// that it waits for memory does not count.
    since: Option<(u64, Instant)>,
    wait: Option<MemoryWait>,
}

/// A message that waits for memory.
struct MemoryWait {
    began: Instant,
    pause: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Reading<'_> {
    /// Ready when everything is paid for that the library needs to read on.
    fn poll_memory(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let bytes = match self.parser.buffered_bytes() {
            0..=MESSAGE_BUFFER_BYTES => 0,
            bytes => bytes,
        };
        if bytes == self.charge.bytes() {
            return Poll::Ready(());
        }
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.timer.as_mut().poll(cx));
            }
            if self.charge.try_set(bytes) {
                self.end_wait();
                return Poll::Ready(());
            }
            let wait = self.wait.get_or_insert_with(|| {
                self.guard.count_memory_wait();
                MemoryWait {
                    began: now(),
                    pause: MEMORY_PAUSE,
                    timer: Box::pin(sleep(MEMORY_PAUSE)),
                }
            });
            if wait.timer.is_elapsed() {
                wait.pause = MEMORY_PAUSE_MAX.min(2 * wait.pause);
                wait.timer.as_mut().reset(tokio::time::Instant::now() + wait.pause);
            }
        }
    }

    fn end_wait(&mut self) {
        if let Some(wait) = self.wait.take()
            && let Some((_, since)) = &mut self.since
        {
            *since += now().saturating_duration_since(wait.began);
        }
    }

    /// Nothing more has arrived.
    fn note_unfinished(&mut self) {
        let seen = self.since.map(|(message, _)| message);
        match self.parser.message() {
            None => self.since = None,
            Some(message) if seen != Some(message) => self.since = Some((message, now())),
            Some(_) => {}
        }
    }

    fn unfinished_since(&self) -> Option<Instant> {
        let (message, since) = self.since?;
        (self.wait.is_none() && self.parser.message() == Some(message)).then_some(since)
    }
}

/// The bytes that are written.
struct Writing {
    /// Bytes that the connection has taken.
    taken: u64,
    /// Bytes in the library's buffer.
    queued: usize,
    /// Bytes that the connection has taken and may still hold.
    below: usize,
    below_max: usize,
    /// For both, while the connection is blocked.
    charge: MemoryCharge,
}

impl Writing {
    /// A frame with this payload was put into the library's buffer.
    fn queue(&mut self, payload: usize) {
        let head = match payload {
            0..126 => 2,
            126..65_536 => 4,
            _ => 10,
        };
        self.queued = WRITE_MAX_BYTES.min(self.queued + head + payload);
    }

    fn wrote(&mut self, bytes: usize) {
        self.taken += bytes as u64;
        self.queued = self.queued.saturating_sub(bytes);
        self.below = self.below_max.min(self.below + bytes);
    }

    fn flushed(&mut self) {
        (self.queued, self.below) = (0, 0);
        self.charge.set(0);
    }

    /// The messages were charged while they waited in their lanes, so there was room.
    fn charge(&mut self) {
        self.charge.set(self.queued + self.below);
    }
}

/// The connection as the library uses it: a call that has to wait returns
/// [`ErrorKind::WouldBlock`], and always does without a context.
struct LibraryIo<'a, 'w, 'g, T> {
    io: &'a mut T,
    cx: Option<&'a mut Context<'w>>,
    reading: &'a mut Reading<'g>,
    writing: &'a mut Writing,
}

impl<T: AsyncRead + Unpin> Read for LibraryIo<'_, '_, '_, T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some(cx) = &mut self.cx else { return Err(ErrorKind::WouldBlock.into()) };
        if self.reading.poll_memory(cx).is_pending() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut buf = ReadBuf::new(buf);
        match Pin::new(&mut *self.io).poll_read(cx, &mut buf) {
            Poll::Ready(Ok(())) => {
                self.reading.parser.advance(buf.filled());
                Ok(buf.filled().len())
            }
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => {
                self.reading.note_unfinished();
                Err(ErrorKind::WouldBlock.into())
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> Write for LibraryIo<'_, '_, '_, T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(cx) = &mut self.cx else { return Err(ErrorKind::WouldBlock.into()) };
        match Pin::new(&mut *self.io).poll_write(cx, buf) {
            Poll::Ready(written) => written.inspect(|written| self.writing.wrote(*written)),
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(cx) = &mut self.cx else { return Err(ErrorKind::WouldBlock.into()) };
        match Pin::new(&mut *self.io).poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

/// The pump's clock.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
