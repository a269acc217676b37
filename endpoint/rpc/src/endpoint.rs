//! One endpoint: the streams it opens and accepts.
//!
//! Streams and what they hold outlive the websocket: a [`Driver`] attaches the
//! core to one socket, and dropping it detaches.

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

/// What an executor's endpoint receives.
pub enum Incoming {
    /// An orchestrator wants a stream; the registry must say whether it may.
    Authorization(AuthorizationRequest),
    /// An authorized stream is open.
    Opened(Channel),
}

/// A handshake that waits for the registry's verdict. Dropping it unanswered
/// refuses it.
pub struct AuthorizationRequest {
    /// The stream's id on the relay.
    pub stream: StreamId,
    /// The registration under which the handshake came.
    pub registration: RegistrationId,
    /// The orchestrator's static key, proven by the handshake.
    pub peer: PublicKey,
    /// The registry's opaque authorization for that key.
    pub authorization: Bytes,
    mux: SharedMux,
    pending: Option<(Key, PendingHandshake)>,
    gone: watch::Receiver<()>,
}

impl AuthorizationRequest {
    /// Waits until the handshake is over without a verdict: its peer reset it,
    /// or the websocket or the time for it is gone. Nobody cares for the verdict
    /// any more.
    pub async fn cancelled(&self) {
        // its sender goes with the handshake, and says nothing before
        let _ = self.gone.clone().changed().await;
    }

    /// Lets the stream open: the registry has said yes for [`Self::peer`].
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
            self.mux.settle(&mut state);
        }
    }
}

impl Drop for AuthorizationRequest {
    fn drop(&mut self) {
        self.answer(|mux, key, _| mux.refuse(now(), key, Refusal::Denied));
    }
}

impl Endpoint {
    /// Shares a core.
    pub fn new(mux: Mux) -> Self {
        Self { mux: SharedMux::new(mux) }
    }

    /// Attaches the core to a socket; give the driver to the pump.
    pub fn attach(&self, registration: RegistrationId) -> Driver {
        self.mux.change(|mux| mux.socket_opened(now(), registration));
        Driver::new(self.mux.clone())
    }

    /// Opens a stream and waits for its handshake.
    ///
    /// # Errors
    /// [`OpenError`] tells a misuse from what the other end decided.
    pub async fn connect(&self, connect: Connect) -> Result<Channel, OpenError> {
        // Owns the stream from here on: cancelling this future closes it.
        let channel = {
            let mut state = self.mux.lock();
            let key = state.mux.connect(now(), connect)?;
            let readiness = state.add_stream(key, StreamPhase::Opening);
            self.mux.settle(&mut state);
            Channel::new(self.mux.clone(), key, readiness)
        };
        channel.opened().await.map_err(OpenError::Closed)?;
        Ok(channel)
    }

    /// The next event of an executor's endpoint. One task asks at a time.
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
                gone,
            } => Incoming::Authorization(AuthorizationRequest {
                stream,
                registration,
                peer,
                authorization,
                mux,
                pending: Some((key, pending)),
                gone,
            }),
            IncomingEvent::Opened { key, readiness } => {
                Incoming::Opened(Channel::new(mux, key, readiness))
            }
        }
    }

    /// Closes the socket in good order once everything is sent. Final: a
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

    /// Lets `duration` pass while no socket is attached. The core's timers,
    /// which a pump runs otherwise, go on: a stream whose grace is over ends.
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

    /// Ends every stream here as lost: there is no way back to the other end.
    pub fn abandon(&self) {
        for readiness in self.mux.lock().streams.values() {
            readiness.close(Closed::Lost);
        }
    }

    /// The core's counters.
    pub fn stats(&self) -> Stats {
        self.mux.lock().mux.stats()
    }
}

/// Why a stream did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The request itself cannot be served.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stream ended before it was open.
    #[error("{0}")]
    Closed(Closed),
}
