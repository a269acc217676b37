//! A websocket, independent of the library.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use rendez_proto::close::{CloseFrame, reconnect_window};
use rendez_proto::limits;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{CapacityError, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::{self, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// Bytes that one read may take from the kernel. A 60 KiB record is four
/// reads; the default of 128 KiB would cost that much memory per idle socket.
pub const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Bytes that are gathered before a write without a flush reaches the kernel:
/// many small frames become one system call.
pub const WRITE_BUFFER_BYTES: usize = 32 * 1024;

/// An incoming message.
#[derive(Debug)]
pub enum Incoming {
    /// A binary message.
    Binary(Bytes),
    /// A text message, which our protocols do not use.
    Text,
    /// A ping, which the library answers.
    Alive,
    /// The answer to a ping, with the number in that ping, if it is one of ours.
    Pong(Option<u64>),
    /// The peer closes, with its code.
    Close(Option<u16>),
    /// The peer closes because it goes away, and asks that we come back at a
    /// random moment within this span.
    ReconnectWithin(Duration),
}

impl From<Message> for Incoming {
    fn from(message: Message) -> Self {
        match message {
            Message::Binary(bytes) => Self::Binary(bytes),
            Message::Text(_) => Self::Text,
            Message::Close(frame) => {
                let frame = frame.as_ref().map(|frame| (frame.code.into(), frame.reason.as_str()));
                let window = frame.and_then(|(code, reason)| reconnect_window(code, reason));
                window.map_or(Self::Close(frame.map(|(code, _)| code)), Self::ReconnectWithin)
            }
            Message::Pong(payload) => {
                Self::Pong(payload.as_ref().try_into().ok().map(u64::from_be_bytes))
            }
            Message::Ping(_) | Message::Frame(_) => Self::Alive,
        }
    }
}

/// An outgoing message.
#[derive(Debug)]
pub enum Outgoing {
    /// A binary message.
    Binary(Bytes),
    /// A ping, with a number that identifies its answer.
    Ping(u64),
    /// The end.
    Close(CloseFrame),
}

impl From<Outgoing> for Message {
    fn from(message: Outgoing) -> Self {
        match message {
            Outgoing::Binary(bytes) => Message::Binary(bytes),
            // Big-endian. Peers send it back (RFC 6455, section 5.5.3).
            Outgoing::Ping(number) => Message::Ping(Bytes::copy_from_slice(&number.to_be_bytes())),
            Outgoing::Close(frame) => Message::Close(Some(protocol::CloseFrame {
                code: frame.code.into(),
                reason: frame.reason.into(),
            })),
        }
    }
}

/// The failure of a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The peer sent a message above the limit.
    #[error("the peer sent a message above the limit")]
    TooBig,
    /// The peer broke RFC 6455.
    #[error("the peer broke the websocket protocol: {0}")]
    Protocol(String),
    /// The path is gone.
    #[error("connection lost: {0}")]
    Lost(String),
}

/// A websocket as the [pump](crate::pump()) needs it; the first four methods are those
/// of `Stream` and `Sink`.
pub trait Socket: Send + Unpin {
    /// The next incoming message; `None` after the close handshake.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, SocketError>>>;
    /// Ready when [`start_send`](Self::start_send) may be called.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>>;
    /// Buffers a message.
    ///
    /// # Errors
    /// The socket broke.
    fn start_send(&mut self, message: Outgoing) -> Result<(), SocketError>;
    /// Ready when everything buffered is with the kernel.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>>;

    /// Bytes that the connection below has taken so far, if they are counted.
    fn taken_bytes(&self) -> Option<u64> {
        None
    }

    /// The moment since when the peer could have finished the message that it has begun.
    /// `None` if no message is unfinished, or if that is not observed.
    fn unfinished_since(&self) -> Option<Instant> {
        None
    }
}

/// The limits and buffers of every websocket of ours.
pub fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES + 2 * limits::MESSAGE_MAX_BYTES)
        .max_message_size(Some(limits::MESSAGE_MAX_BYTES))
        .max_frame_size(Some(limits::MESSAGE_MAX_BYTES))
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Socket for WebSocketStream<T> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, SocketError>>> {
        let next = Pin::new(self).poll_next(cx);
        next.map(|next| Some(next?.map(Incoming::from).map_err(SocketError::from)))
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        Sink::poll_ready(Pin::new(self), cx).map_err(SocketError::from)
    }

    fn start_send(&mut self, message: Outgoing) -> Result<(), SocketError> {
        Sink::start_send(Pin::new(self), message.into()).map_err(SocketError::from)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        Sink::poll_flush(Pin::new(self), cx).map_err(SocketError::from)
    }
}

impl From<Error> for SocketError {
    fn from(error: Error) -> Self {
        match error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => Self::TooBig,
            // A peer that vanishes without a close frame, as stock ends do
            // (WIRE.md, section 2), broke no rule worth telling.
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                Self::Lost("closed without a close frame".into())
            }
            Error::Protocol(error) => Self::Protocol(error.to_string()),
            other => Self::Lost(other.to_string()),
        }
    }
}
