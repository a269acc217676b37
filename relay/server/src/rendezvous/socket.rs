//! axum's websocket as a [`Socket`] of the pump.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::ws;
use futures_util::{Sink, Stream};
use rendez_transport::socket::ping_payload;
use rendez_transport::{Incoming, Outgoing, Socket, SocketError};

/// An accepted websocket.
pub(crate) struct AcceptedSocket(pub(crate) ws::WebSocket);

impl Socket for AcceptedSocket {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, SocketError>>> {
        Pin::new(&mut self.0).poll_next(cx).map(|next| {
            Some(match next? {
                Ok(message) => Ok(match message {
                    ws::Message::Binary(bytes) => Incoming::Binary(bytes),
                    ws::Message::Text(_) => Incoming::Text,
                    ws::Message::Close(frame) => Incoming::close(
                        frame.as_ref().map(|frame| (frame.code, frame.reason.as_str())),
                    ),
                    ws::Message::Pong(payload) => Incoming::pong(&payload),
                    ws::Message::Ping(_) => Incoming::Alive,
                }),
                Err(error) => Err(socket_error(error)),
            })
        })
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        Sink::poll_ready(Pin::new(&mut self.0), cx).map_err(socket_error)
    }

    fn start_send(&mut self, message: Outgoing) -> Result<(), SocketError> {
        let message = match message {
            Outgoing::Binary(bytes) => ws::Message::Binary(bytes),
            Outgoing::Ping(number) => ws::Message::Ping(ping_payload(number)),
            Outgoing::Close(frame) => ws::Message::Close(Some(ws::CloseFrame {
                code: frame.code,
                reason: frame.reason.into(),
            })),
        };
        Sink::start_send(Pin::new(&mut self.0), message).map_err(socket_error)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        Sink::poll_flush(Pin::new(&mut self.0), cx).map_err(socket_error)
    }
}

fn socket_error(error: axum::Error) -> SocketError {
    SocketError::from_boxed(error.into_inner())
}
