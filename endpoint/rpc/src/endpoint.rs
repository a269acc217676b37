//! One endpoint: the streams it opens and accepts.
//!
//! Streams and their buffers outlive the websocket: a [`Driver`] attaches the
//! [`Mux`] to one socket, and dropping it detaches.

use std::time::Duration;

use bytes::Bytes;
use rendez_endpoint::{Closed, Connect, ConnectError, Key, Mux, PendingHandshake, Refusal, Stats};
use rendez_proto::close::CloseFrame;
use rendez_proto::ids::{RegistrationId, StreamId};
use rendez_proto::keys::PublicKey;
use tokio::sync::watch;

use crate::channel::Channel;
use crate::driver::Driver;
use crate::shared_mux::{IncomingEvent, SharedMux, StreamPhase, now};

/// A shared endpoint; clones are handles to the same one.
#[derive(Clone)]
pub struct Endpoint {
    mux: SharedMux,
}

/// An event of an executor's endpoint.
pub enum Incoming {
    /// An orchestrator requests a stream; the registry must decide.
    Authorization(AuthorizationRequest),
    /// An authorized stream is open.
    Opened(Channel),
}

/// A handshake that waits for the registry's verdict. Dropping it unanswered
/// refuses the peer.
pub struct AuthorizationRequest {
    /// The stream's id on the relay.
    pub stream: StreamId,
    /// The registration that the handshake addressed.
    pub registration: RegistrationId,
    /// The orchestrator's static key, proven by the handshake.
    pub peer: PublicKey,
    /// The registry's opaque authorization for that key.
    pub authorization: Bytes,
    mux: SharedMux,
    pending: Option<(Key, PendingHandshake)>,
    cancelled: watch::Receiver<()>,
}

impl AuthorizationRequest {
    /// Waits until the handshake ends without a verdict: its peer reset it, it
    /// timed out, or the websocket was lost. The verdict is no longer needed.
    pub async fn cancelled(&self) {
        // its sender is dropped with the handshake, and sends no value
        let _ = self.cancelled.clone().changed().await;
    }

    /// Opens the stream. Call this only after the registry has authorized
    /// [`Self::peer`].
    pub fn authorize(mut self) {
        self.answer(|mux, key, pending| mux.authorize(now(), key, pending.authorize()));
    }

    /// Refuses the stream.
    pub fn refuse(mut self, why: Refusal) {
        self.answer(|mux, key, _| mux.refuse(now(), key, why));
    }

    fn answer(&mut self, answer: impl FnOnce(&mut Mux, Key, PendingHandshake)) {
        if let Some((key, pending)) = self.pending.take() {
            let mut state = self.mux.lock();
            state.pending.remove(&key);
            answer(&mut state.mux, key, pending);
            self.mux.apply_events(&mut state);
        }
    }
}

impl Drop for AuthorizationRequest {
    fn drop(&mut self) {
        self.answer(|mux, key, _| mux.refuse(now(), key, Refusal::Denied));
    }
}

impl Endpoint {
    /// Creates an endpoint around a [`Mux`].
    pub fn new(mux: Mux) -> Self {
        Self { mux: SharedMux::new(mux) }
    }

    /// Attaches the [`Mux`] to a socket; pass the driver to the pump.
    pub fn attach(&self, registration: RegistrationId) -> Driver {
        self.mux.change(|mux| mux.socket_opened(now(), registration));
        Driver::new(self.mux.clone())
    }

    /// Opens a stream and waits for its handshake.
    ///
    /// # Errors
    /// [`OpenError`] distinguishes an invalid request from a decision of the
    /// other end.
    pub async fn connect(&self, connect: Connect) -> Result<Channel, OpenError> {
        // Owns the stream from here on: cancelling this future closes it.
        let channel = {
            let mut state = self.mux.lock();
            let key = state.mux.connect(now(), connect)?;
            let readiness = state.add_stream(key, StreamPhase::Opening);
            self.mux.apply_events(&mut state);
            Channel::new(self.mux.clone(), key, readiness)
        };
        channel.opened().await.map_err(OpenError::Closed)?;
        Ok(channel)
    }

    /// Returns the next event of an executor's endpoint. One task calls it at a
    /// time.
    pub async fn incoming(&self) -> Incoming {
        let mux = self.mux.clone();
        match self.mux.incoming().await {
            IncomingEvent::Authorization {
                key,
                stream,
                registration,
                peer,
                authorization,
                pending,
                cancelled,
            } => Incoming::Authorization(AuthorizationRequest {
                stream,
                registration,
                peer,
                authorization,
                mux,
                pending: Some((key, pending)),
                cancelled,
            }),
            IncomingEvent::Opened { key, readiness } => {
                Incoming::Opened(Channel::new(mux, key, readiness))
            }
        }
    }

    /// Closes the socket gracefully once everything is sent. This is final: a
    /// socket that is attached later closes at once.
    pub fn shut_down(&self, frame: CloseFrame) {
        let mut state = self.mux.lock();
        state.closing = Some(frame);
        state.wake_pump();
    }

    /// Whether [`shut_down`](Self::shut_down) was called.
    pub fn is_shut_down(&self) -> bool {
        self.mux.lock().closing.is_some()
    }

    /// Whether a stream is open or opening.
    pub fn has_streams(&self) -> bool {
        self.mux.lock().streams.values().any(|readiness| !readiness.is_closed())
    }

    /// Waits for `duration` while no socket is attached. Meanwhile it runs the
    /// timers of the [`Mux`], as a pump does otherwise, so a stream whose grace
    /// expires ends.
    pub async fn wait_detached(&self, duration: Duration) {
        let until = now() + duration;
        loop {
            let next = self.mux.lock().mux.poll_timeout().map_or(until, |at| at.min(until));
            tokio::time::sleep_until(next.into()).await;
            let now = now();
            self.mux.change(|mux| mux.handle_timeout(now));
            if now >= until {
                return;
            }
        }
    }

    /// Ends every stream as lost, because the other end cannot be reached any
    /// more.
    pub fn abandon(&self) {
        for readiness in self.mux.lock().streams.values() {
            readiness.close(Closed::Lost);
        }
    }

    /// The counters of the [`Mux`].
    pub fn stats(&self) -> Stats {
        self.mux.lock().mux.stats()
    }
}

/// The reason why a stream did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The request itself is invalid.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stream ended before it was open.
    #[error("{0}")]
    Closed(Closed),
}
